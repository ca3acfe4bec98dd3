# SPDX-License-Identifier: Apache-2.0
"""Public weights by the names that timm and torchvision give them.

A name is that of a network and of its training: "resnet50.a1_in1k" is timm's, on the
Hugging Face Hub "timm/resnet50.a1_in1k"; "resnet50.IMAGENET1K_V2" is torchvision's. The
table has the preprocessing with which each was trained, as both projects register it.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rn_jax.errors import InputError, package_needed, unknown_name
from rn_jax.interop.torch import from_torch, torch_fields
from rn_jax.models import create_model
from rn_jax.models.network import Network
from rn_jax.weight_files import read_weights

Triple = tuple[float, float, float]
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network.

    The shorter side is resized to floor(size / crop) pixels, and the central square of
    `size` pixels is normalised.

    Attributes:
        size: side of the input in pixels.
        crop: side of the square, relative to the shorter side of the image.
        interpolation: "bilinear" or "bicubic", Pillow's filters with antialiasing.
        mean, std: of the channels, for pixels from 0 to 1.
    """

    size: int
    crop: float
    interpolation: str
    mean: Triple = _IMAGENET[0]
    std: Triple = _IMAGENET[1]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the input of the network, f32[size, size, 3].

        Args:
            image: uint8[H, W, 3], in RGB.

        Raises:
            InputError: the image has another shape or dtype, or Pillow is not
                installed.
        """
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(
                "The image must be uint8[H, W, 3], in RGB, not "
                f"{image.dtype}{list(image.shape)}."
            )
        with package_needed("Resizing an image needs Pillow", "Pillow"):
            from PIL import Image
        height, width = image.shape[:2]
        shorter, resized = min(height, width), math.floor(self.size / self.crop)
        width, height = (resized * side // shorter for side in (width, height))
        resample = getattr(Image.Resampling, self.interpolation.upper())
        picture = Image.fromarray(image).resize((width, height), resample)
        left, top = (round((side - self.size) / 2) for side in (width, height))
        square = np.asarray(picture)[top : top + self.size, left : left + self.size]
        pixels = square.astype(np.float32) / 255
        mean, std = (np.array(v, np.float32) for v in (self.mean, self.std))
        return (pixels - mean) / std


@dataclasses.dataclass(frozen=True)
class PublicWeights:
    """A row of the table.

    Attributes:
        network: name of the network in `list_models()`.
        preprocessing: that of training images' evaluation, at the size of training.
        at_test: the same at the larger size with which timm reports the best accuracy;
            equal to `preprocessing` if there is none.
    """

    network: str
    preprocessing: Preprocessing
    at_test: Preprocessing


PUBLIC: dict[str, PublicWeights] = {}


def _add(trainings, networks, usual, at_test=None):
    """Add weights that all have one preprocessing."""
    for network in networks.split():
        for training in trainings.split():
            row = PublicWeights(network, usual, at_test or usual)
            PUBLIC[f"{network}.{training}"] = row


def _bicubic(size, crop, *statistics):
    return Preprocessing(size, crop, "bicubic", *statistics)


_RESNETS = "resnet18 resnet34 resnet50 resnet101 resnet152"
_DEEP = "resnet50 resnet101 resnet152"
_WIDE = "wide_resnet50_2 wide_resnet101_2"
_VGGS = "vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn"
_DENSENETS = "densenet121 densenet161 densenet169 densenet201"
_USUAL = Preprocessing(224, 0.875, "bilinear")
_LATER = Preprocessing(224, 0.965, "bilinear")

# timm's (1.0).
_A = _bicubic(224, 0.95), _bicubic(288, 1.0)
_add("a1_in1k a2_in1k", f"{_RESNETS} resnext50_32x4d", *_A)
_add("a1h_in1k", "resnet101 resnet152 resnext50_32x4d", *_A)
_add("a1h_in1k", "resnet50", _bicubic(176, 0.9), _bicubic(224, 1.0))
_add("b1k_in1k b2k_in1k c1_in1k c2_in1k d_in1k", "resnet50", *_A)
_add("c1_in1k", "resnext101_64x4d", *_A)
_A3 = _bicubic(160, 0.95), _bicubic(224, 0.95)
_add("a3_in1k", f"{_RESNETS} resnext50_32x4d", *_A3)
_RA = _bicubic(224, 0.875), _bicubic(288, 0.95)
_add("bt_in1k", "resnet34 resnet50", *_RA)
_add("ra_in1k", "resnet50 resnext50_32x4d densenet121", *_RA)
_add("ram_in1k", "resnet50", *_RA)
_add("racm_in1k", "wide_resnet50_2", *_RA)
_add("am_in1k", "resnet50", _bicubic(224, 0.875))
_GLUON = f"{_RESNETS} resnext50_32x4d resnext101_32x4d resnext101_64x4d"
_add("gluon_in1k", _GLUON, _bicubic(224, 0.875))
_RA4 = _bicubic(224, 0.9, _HALF, _HALF), _bicubic(288, 1.0, _HALF, _HALF)
_add("ra4_e3600_r224_in1k", "resnet34 resnetv2_18 resnetv2_34", *_RA4)
_A1H = _bicubic(224, 0.95, _HALF, _HALF), _bicubic(288, 1.0, _HALF, _HALF)
_add("a1h_in1k", "resnetv2_50 resnetv2_101", *_A1H)
_FB = "resnet18 resnet50 resnext50_32x4d resnext101_32x4d resnext101_32x8d"
_add("fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k", _FB, _USUAL)
_add("fb_wsl_ig1b_ft_in1k", "resnext101_32x8d", _USUAL)
_TV = f"{_RESNETS} {_WIDE} {_VGGS} resnext50_32x4d resnext101_32x8d resnext101_64x4d"
_add("tv_in1k", _TV, _USUAL)
_add("tv_in1k", _DENSENETS, _bicubic(224, 0.875))
_TV2 = f"{_DEEP} {_WIDE} resnext50_32x4d resnext101_32x8d"
_add("tv2_in1k", _TV2, Preprocessing(176, 0.875, "bilinear"), _LATER)

# torchvision's (0.28). Its trained GoogLeNet has a layer before the first, which makes
# its input of mean and deviation 0.5 from images normalised as for other networks.
_V1 = f"{_RESNETS} {_WIDE} {_VGGS} {_DENSENETS} alexnet"
_add("IMAGENET1K_V1", f"{_V1} resnext50_32x4d resnext101_32x8d", _USUAL)
_add("IMAGENET1K_V1", "resnext101_64x4d", _LATER)
_add("IMAGENET1K_V2", _TV2, _LATER)
_add("IMAGENET1K_V1", "googlenet", Preprocessing(224, 0.875, "bilinear", _HALF, _HALF))


def preprocessing(name: str, *, at_test: bool = False) -> Preprocessing:
    """Return how images become the input of a network with public weights.

        x = preprocessing("resnet50.a1_in1k")(image)[None]  # uint8[H, W, 3] -> f32

    Args:
        name: a name of `PUBLIC`, also with "timm/" or "hf-hub:timm/" before it.
        at_test: return the larger size with which timm reports the best accuracy, where
            there is one, instead of the size of training.

    Raises:
        InputError: the name is unknown.
    """
    row = _row(name)
    return row.at_test if at_test else row.preprocessing


def load_public(
    name: str, file: str | os.PathLike | None = None
) -> tuple[Network, dict[str, Any]]:
    """Load a network with public weights for `model.apply(variables, x, train=False)`.

    Args:
        name: as in `preprocessing`.
        file: the file of these weights; None: timm's are downloaded from the Hugging
            Face Hub into the cache of huggingface_hub.

    Returns:
        The network and its variables, as from `rn_jax.load`.

    Raises:
        InputError: the name is unknown; torchvision's weights have no file; or as
            `read_weights` and `from_torch`.
    """
    row, short = _row(name), _short(name)
    if file is None:
        if "IMAGENET1K" in short:
            raise InputError(
                f"torchvision's weights {short} are not on the Hugging Face Hub: "
                "download them with torchvision and pass their file, or choose timm's "
                "copy of the same network, such as resnet50.tv_in1k."
            )
        file = f"hf-hub:timm/{short}"
    weights: Mapping[str, Any] = read_weights(file)
    fields = torch_fields(row.network, weights)
    variables = from_torch(row.network, weights, **fields)
    head = variables["params"].get("head")
    classes = None if head is None else head["bias"].shape[0]
    return create_model(row.network, num_classes=classes, **fields), variables


def _short(name):
    return name.removeprefix("hf-hub:").removeprefix("timm/")


def _row(name):
    short = _short(name)
    if short not in PUBLIC:
        hint = "rn_jax.interop.public.PUBLIC lists all"
        raise unknown_name("public weights", name, PUBLIC, hint)
    return PUBLIC[short]
