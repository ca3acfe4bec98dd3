# SPDX-License-Identifier: Apache-2.0
"""Networks that were not trained, to be studied on random images."""

import jax
import numpy as np
import pytest

from experiments.studies import Lab, Subject
from rn_jax import data


@pytest.fixture
def make_lab(random_variables):
    """make(model, image=(8, 8, 3), **options): a lab of a network on 40 images."""

    def make(model, image=(8, 8, 3), **options):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (40, *image), dtype=np.uint8)
        examples = data.Examples(images, rng.integers(0, 3, 40).astype(np.int32))
        subject = Subject(
            label="untrained",
            source="none",
            model_name="small",
            model_kwargs={},
            model=model,
            variables=dict(random_variables(model, image)),
            dataset="noise",
            normalization="channel",
            preprocess=lambda pixels: data.normalize(pixels, 128.0, 64.0),
            train=examples,
            test=examples,
            devices=jax.devices()[:2],
        )
        return Lab(subject, **{"draws": 2, "batch_size": 20, **options})

    return make
