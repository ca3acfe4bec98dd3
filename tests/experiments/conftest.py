# SPDX-License-Identifier: Apache-2.0
"""The small network that the command trains here, in the table for these tests only."""

import jax
import matplotlib.figure
import numpy as np
import pytest
from driver import train_tiny
from tiny import TINY

from experiments.studies import subject
from rn_jax.models import MODELS


@pytest.fixture(autouse=True)
def tiny_in_the_table(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)


@pytest.fixture(scope="module")
def saved_figures():
    """The figures that are saved in a module's tests, in order."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def savefig(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", savefig)
        yield figures


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run of four blocks with stochastic depth."""
    path = tmp_path_factory.mktemp("run") / "tiny_sd"
    train_tiny(str(path))
    return path


@pytest.fixture(scope="module")
def trained(run):
    """The run's logits of the test images, by the code that studies use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tiny", TINY)
        found = subject.from_run(str(run))
    logits = jax.jit(lambda x: found.model.apply(found.variables, x, train=False))
    return np.asarray(logits(found.preprocess(found.test.images))), found.test
