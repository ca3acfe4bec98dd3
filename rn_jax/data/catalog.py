# SPDX-License-Identifier: Apache-2.0
"""What is known about each data set before it is read."""

import dataclasses

from rn_jax.errors import unknown_name


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known about a data set before it is read.

    Attributes:
        name: the name in `DATASETS`, which is TFDS's except for `digits`.
        image_shape: (H, W, C).
        num_classes: number of labels, which are 0 .. num_classes - 1.
        train_splits: TFDS splits that make up the training part, in this order.
        num_train: number of training examples; None if it is known only after reading.
        test_split: TFDS split used as the test part.
        pad: zeros added to each side before a random crop, in pixels; 0 for no crop.
        flip: whether a mirrored image (left to right) still belongs to its class.
        validation_per_class: number of examples of each class that `split_validation`
            holds out, for each of `train_splits`; None for a tenth of all examples.
        class_names: one name per label, or None if they are not recorded here.
        downloads: files to download by hand before TFDS can prepare the data set.
        crops_on_host: whether images have many sizes, and the host crops and mirrors
            them; else all have `image_shape`, and are in memory.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    train_splits: tuple[str, ...] = ("train",)
    num_train: int | None = None
    test_split: str = "test"
    pad: int = 4
    flip: bool = False
    validation_per_class: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    downloads: tuple[str, ...] = ()
    crops_on_host: bool = False


_DIGIT_NAMES = tuple("0123456789")
_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_FASHION_NAMES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,"
_FASHION_NAMES += "Ankle boot"

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="cifar10",
            num_train=50_000,
            image_shape=(32, 32, 3),
            num_classes=10,
            flip=True,
            class_names=tuple(_CIFAR10_NAMES.split()),
        ),
        DatasetSpec(
            name="cifar100",
            image_shape=(32, 32, 3),
            num_classes=100,
            num_train=50_000,
            flip=True,
        ),
        # Huang et al. 2016 and DenseNet train on train + extra, hold out 6,000 examples
        # balanced by class, and do not augment.
        DatasetSpec(
            name="svhn_cropped",
            image_shape=(32, 32, 3),
            num_classes=10,
            train_splits=("train", "extra"),
            num_train=73_257 + 531_131,
            pad=0,
            validation_per_class=(400, 200),
            class_names=_DIGIT_NAMES,
        ),
        # MNIST's digits occupy the middle 20x20 pixels: a shift by 4 cuts none off.
        DatasetSpec(
            name="mnist",
            num_train=60_000,
            image_shape=(28, 28, 1),
            num_classes=10,
            class_names=_DIGIT_NAMES,
        ),
        DatasetSpec(
            name="fashion_mnist",
            num_train=60_000,
            image_shape=(28, 28, 1),
            num_classes=10,
            flip=True,
            class_names=tuple(_FASHION_NAMES.split(",")),
        ),
        # 1 of 8 pixels, in proportion to 4 of 32.
        DatasetSpec(
            name="digits",
            num_train=1_437,
            image_shape=(8, 8, 1),
            num_classes=10,
            pad=1,
            class_names=_DIGIT_NAMES,
        ),
    )
}


# `rn_jax.data.imagenet` reads it; `image_shape` is that of the usual training crop.
IMAGENET = DatasetSpec(
    name="imagenet2012",
    image_shape=(224, 224, 3),
    num_classes=1000,
    num_train=1_281_167,
    test_split="validation",
    pad=0,
    flip=True,
    downloads=("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    crops_on_host=True,
)


def get_spec(name: str) -> DatasetSpec:
    """Return the `DatasetSpec` of `name` without reading any data.

    Raises:
        InputError: `name` is neither in `DATASETS` nor "imagenet2012"; the message
            lists similar names.
    """
    specs = {**DATASETS, IMAGENET.name: IMAGENET}
    if name not in specs:
        raise unknown_name("data set", name, specs)
    return specs[name]
