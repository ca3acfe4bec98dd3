# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, batches and feeds made of them, and augmentation on devices."""

from rn_jax.data.augment import (
    augment,
    augment_color,
    color_jitter,
    contrast_normalize,
    cutmix_share,
    mix,
    mixup_share,
    normalize,
    normalizer,
    pca_noise,
    random_crop,
    random_flip,
)
from rn_jax.data.batches import (
    Feed,
    epoch_permutation,
    rows_of_host,
    steps_per_epoch,
)
from rn_jax.data.catalog import DATASETS, DatasetSpec, get_spec
from rn_jax.data.in_memory import (
    Dataset,
    Examples,
    InMemory,
    eval_batches,
    held_out,
    load,
    split_validation,
    train_batch,
)
from rn_jax.data.statistics import NORMALIZATIONS, Normalization, normalization

__all__ = [
    "DATASETS",
    "NORMALIZATIONS",
    "Dataset",
    "DatasetSpec",
    "Examples",
    "Feed",
    "InMemory",
    "Normalization",
    "augment",
    "augment_color",
    "color_jitter",
    "contrast_normalize",
    "cutmix_share",
    "epoch_permutation",
    "eval_batches",
    "get_spec",
    "held_out",
    "load",
    "mix",
    "mixup_share",
    "normalization",
    "normalize",
    "normalizer",
    "pca_noise",
    "random_crop",
    "random_flip",
    "rows_of_host",
    "split_validation",
    "steps_per_epoch",
    "train_batch",
]
