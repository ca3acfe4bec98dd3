# SPDX-License-Identifier: Apache-2.0
"""Small TFDS data sets with random pixels, prepared without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from rn_jax.data.datasets import DATASETS

SIZES = {"train": 23, "test": 11, "extra": 7}


def png(image):
    """Encode uint8[H, W, C] as PNG bytes: TFDS needs TensorFlow to do the same."""
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        stream, "PNG"
    )
    return stream.getvalue()


def random_split(name, split):
    """Return the images and labels of a split; no two images are equal."""
    spec = DATASETS[name]
    rng = np.random.default_rng([len(name), *split.encode()])
    n = SIZES[split]
    images = rng.integers(0, 256, (n, *spec.image_shape), dtype=np.uint8)
    return images, rng.integers(0, spec.num_classes, n)


def prepare(name, data_dir, *, splits=None, file_format="array_record"):
    """Prepare a data set with the version and the features of the real one.

    Returns its folder. The class stays out of TFDS's registry, so that `load` meets the
    real builder.
    """
    spec = DATASETS[name]
    real = tfds.builder_cls(name)
    splits = splits or (*spec.train_splits, spec.test_split)

    class Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = real.VERSION

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=spec.image_shape),
                "label": tfds.features.ClassLabel(num_classes=spec.num_classes),
            }
            if name.startswith("cifar"):
                features["id"] = tfds.features.Text()
            if name == "cifar100":
                features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            images, labels = random_split(name, split)
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                example = {"image": png(image), "label": int(label)}
                if name.startswith("cifar"):
                    example["id"] = f"{split}_{index:05d}"
                if name == "cifar100":
                    example["coarse_label"] = int(label) // 5
                yield index, example

    Generated.name = name
    builder = Generated(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare()
    return builder.data_path
