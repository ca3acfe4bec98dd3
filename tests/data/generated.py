# SPDX-License-Identifier: Apache-2.0
"""Small TFDS data sets, prepared without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from rn_jax.data import DATASETS

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


def picture(rng, height, width):
    """Return a window of a photograph of scikit-learn, uint8[height, width, 3]."""
    from sklearn.datasets import load_sample_images  # slow to import

    photograph = rng.choice(load_sample_images().images)
    window_height = rng.integers(200, 427, endpoint=True)
    window_width = min(640, window_height * width // height)
    top = rng.integers(427 - window_height, endpoint=True)
    left = rng.integers(640 - window_width, endpoint=True)
    window = photograph[top : top + window_height, left : left + window_width]
    return np.asarray(Image.fromarray(window).resize((width, height), Image.LANCZOS))


def encode(image, file_format="JPEG", mode="RGB"):
    """Encode uint8[H, W, 3] as the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, file_format)
    return stream.getvalue()


# Heights and widths of the images in the copy of ImageNet, in turn.
SHAPES = [(375, 500), (500, 375), (300, 300), (160, 224), (120, 90), (150, 400)]
# The first few images of a split are not RGB JPEGs.
CODINGS = [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")]


def imagenet_split(split, size):
    """Return the files of a split; their indices are the labels."""
    rng = np.random.default_rng(list(split.encode()))
    codings = CODINGS + [("JPEG", "RGB")] * (size - len(CODINGS))
    return [
        encode(picture(rng, *SHAPES[i % len(SHAPES)]), *coding)
        for i, coding in enumerate(codings[:size])
    ]


def prepare_imagenet(data_dir, *, train=24, validation=11):
    """Prepare a small imagenet2012, with the real one's version and features.

    Args:
        data_dir: for TFDS data sets.
        train: number of training examples, at most 1000.
        validation: number of validation images, at most 1000.

    Returns its folder.
    """
    real = tfds.builder_cls("imagenet2012")
    sizes = {"train": train, "validation": validation}

    class Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = real.VERSION

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=1000),
                    "file_name": tfds.features.Text(),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in sizes}

        def _generate_examples(self, split):
            for label, encoded in enumerate(imagenet_split(split, sizes[split])):
                name = f"{split}_{label:04d}.JPEG"
                yield name, {"image": encoded, "label": label, "file_name": name}

    Generated.name = "imagenet2012"
    builder = Generated(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def halve_picture(record):
    """Return the record with the first half of its image's file."""
    example = tf_example_pb2.Example.FromString(record)
    pictures = example.features.feature["image"].bytes_list.value
    pictures[0] = pictures[0][: len(pictures[0]) // 2]
    return example.SerializeToString()


def no_example(record):
    """Return bytes that are not a tf.train.Example."""
    return b"no example"


def spoil_records(shard, spoil):
    """Rewrite an array_record file with spoil[i](record) in place of record i.

    If spoil[i] is "flip", bytes of the record are changed in the file itself.
    """
    reader = ArrayRecordReader(str(shard))
    records = reader.read_all()
    reader.close()
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for i, record in enumerate(records):
        writer.write(record if spoil.get(i, "flip") == "flip" else spoil[i](record))
    writer.close()
    content = shard.read_bytes()
    for i in (i for i, how in spoil.items() if how == "flip"):
        middle = len(records[i]) // 2
        part = records[i][middle : middle + 50]
        assert content.count(part) == 1  # pictures are not compressed again
        content = content.replace(part, bytes(byte ^ 255 for byte in part))
    shard.write_bytes(content)
