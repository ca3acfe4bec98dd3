# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, batches cut from them, and augmentation on the device."""

from rn_jax.data.augment import augment, normalize, random_crop, random_flip
from rn_jax.data.datasets import (
    DATASETS,
    NORMALIZATIONS,
    Dataset,
    DatasetSpec,
    Examples,
    Normalization,
    epoch_permutation,
    eval_batches,
    get_spec,
    load,
    normalization,
    split_validation,
    steps_per_epoch,
    train_batch,
    validation_size,
)

__all__ = [
    "DATASETS",
    "NORMALIZATIONS",
    "Dataset",
    "DatasetSpec",
    "Examples",
    "Normalization",
    "augment",
    "epoch_permutation",
    "eval_batches",
    "get_spec",
    "load",
    "normalization",
    "normalize",
    "random_crop",
    "random_flip",
    "split_validation",
    "steps_per_epoch",
    "train_batch",
    "validation_size",
]
