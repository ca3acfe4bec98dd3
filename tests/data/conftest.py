# SPDX-License-Identifier: Apache-2.0
"""A small copy of each data set of TFDS."""

import generated
import pytest

from rn_jax import data


@pytest.fixture(scope="session")
def generated_dir(tmp_path_factory):
    """A TFDS folder with a small data set of each schema."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in data.DATASETS:
        if name != "digits":
            generated.prepare(name, folder)
    return folder
