# SPDX-License-Identifier: Apache-2.0
"""Finished runs, opened for reading."""

import json
import shutil

import jax
import numpy as np
from driver import final_state

from experiments.training import trained
from rn_jax import train


def test_the_last_state_is_read_and_none_is_made(run, monkeypatch):
    create = train.create_state

    def abstract(key, **parts):
        assert isinstance(key, jax.core.Tracer)
        return create(key, **parts)

    monkeypatch.setattr(train, "create_state", abstract)
    found = trained.finished(str(run))
    state = final_state(run)
    for part in ("params", "batch_stats"):
        for path, leaf in jax.tree_util.tree_leaves_with_path(found.variables[part]):
            name = f"['{part}']{jax.tree_util.keystr(path)}"
            np.testing.assert_array_equal(leaf, state[name], err_msg=name)
    steps = found.summary["steps"]
    np.testing.assert_array_equal(found.opened, state["['open_counts']"] / steps)


def test_a_run_that_ended_before_stochastic_depth_began_has_constant_depth(
    run, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    for epoch, is_constant in ((config["epochs"] - 1, False), (config["epochs"], True)):
        changed = {**config, "stochastic_depth_from_epoch": epoch}
        (folder / "config.json").write_text(json.dumps(changed))
        found = trained.finished(str(folder))
        assert (found.model.stochastic_depth is None) == is_constant
