# SPDX-License-Identifier: Apache-2.0
"""The same networks in PyTorch, for comparison. Needs optional dependencies."""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from rn_jax.errors import InputError


@contextlib.contextmanager
def importable_torchvision():
    """Allow the import of torchvision, and of timm, with a CPU-only torch.

    The wheel on PyPI is built for CUDA, and registers shape rules for operators that a
    CPU-only torch cannot load. These operators are not used here, so the rules are
    skipped. With any other torch nothing changes.
    """
    if torch.version.cuda is not None:
        yield
        return
    register, torch.library.register_fake = (
        torch.library.register_fake,
        lambda *args, **kwargs: lambda function: function,
    )
    try:
        yield
    finally:
        torch.library.register_fake = register


class Block(nn.Module):
    """A basic block with shortcut A, and timm's DropPath if its rate is not 0."""

    def __init__(self, channels: int, features: int, stride: int, drop: float):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.extra = stride, features - channels
        self.drop_path = nn.Identity()
        if drop:
            with importable_torchvision():
                from timm.layers import DropPath
            self.drop_path = DropPath(drop)

    def forward(self, x):
        """Apply the block to [B, C, H, W] in channels_last memory."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.drop_path(self.bn2(self.conv2(y)))
        return F.relu(self.shortcut(x) + y)

    def shortcut(self, x):
        """Return x with the block's stride, and zeros for new channels."""
        if not self.extra:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.extra))


class CifarResNet(nn.Module):
    """A ResNet of depth 6n + 2 with shortcut A."""

    def __init__(self, n: int, last_survival: float | None):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        blocks, channels, total = [], 16, 3 * n
        for stage, features in enumerate((16, 32, 64)):
            for place in range(n):
                stride = 2 if stage and not place else 1
                depth = (len(blocks) + 1) / total
                drop = 0.0 if last_survival is None else depth * (1 - last_survival)
                blocks.append(Block(channels, features, stride, drop))
                channels = features
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        """Return the logits of [B, 3, H, W]."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


def build(model: str, last_survival: float | None) -> nn.Module:
    """Build a network by its name: a CIFAR ResNet of basic blocks, or torchvision's.

    Raises:
        InputError: there is no such network, or none with stochastic depth.
    """
    if model in {f"resnet{6 * n + 2}" for n in (3, 5, 7, 9, 18, 200)}:
        depth = int(model.removeprefix("resnet"))
        return CifarResNet((depth - 2) // 6, last_survival)
    with importable_torchvision():
        import torchvision

    if model not in torchvision.models.list_models() or last_survival is not None:
        raise InputError(
            f"PyTorch has no {model} to compare with, or no DropPath in it."
        )
    return torchvision.models.get_model(model)


class Step:
    """A training step on random images; a call takes one step and waits for it.

    Args:
        model: see `build`.
        batch_size: images per step.
        image_size: side of the images in pixels.
        last_survival: 1 - the last DropPath's rate; None for constant depth.
        dtype: "float32" (TF32 if the device has it) or "bfloat16" by autocast.
        compile_mode: of torch.compile, such as "default"; None: not compiled.
    """

    def __init__(
        self,
        model: str,
        *,
        batch_size: int,
        image_size: int,
        last_survival: float | None = None,
        dtype: str = "float32",
        compile_mode: str | None = None,
    ):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        net = build(model, last_survival).to(self.device).train()
        self.net = net.to(memory_format=torch.channels_last)
        self.forward = self.net
        if compile_mode is not None:
            self.forward = torch.compile(self.net, mode=compile_mode)
        self.optimizer = torch.optim.SGD(
            net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
        )
        rng = np.random.default_rng(0)
        shape = (batch_size, 3, image_size, image_size)
        images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(rng.integers(0, 10, batch_size))
        self.dtype = {"float32": None, "bfloat16": torch.bfloat16}[dtype]

    def __call__(self) -> None:
        """Take one step."""
        self.enqueue()
        self.wait()

    def keep_batch_on_device(self) -> None:
        """Move the batch to the device once, instead of in every step."""
        self.images = self.images.to(self.device)
        self.labels = self.labels.to(self.device)

    def enqueue(self) -> None:
        """Take one step, whose end on a GPU need not have come."""
        images = (self.images.to(self.device).float() - 128) / 64
        labels = self.labels.to(self.device)
        with torch.autocast(self.device, self.dtype, enabled=self.dtype is not None):
            loss = F.cross_entropy(self.forward(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def wait(self) -> None:
        """Wait for all steps."""
        if self.device == "cuda":
            torch.cuda.synchronize()
