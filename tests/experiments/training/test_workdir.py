# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: what it holds, and folders that are refused."""

import pytest
from driver import arguments, in_process, lines
from etils import epath

from configs.default import Config
from experiments.training.workdir import Workdir, read_checkpoint
from rn_jax import InputError
from rn_jax.filesystem import read_json


def test_lines_after_the_checkpoint_are_cut_and_half_a_line_is_dropped(tmp_path):
    workdir = Workdir(tmp_path, Config(model="m"))
    workdir.open()
    text = '{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste'
    (tmp_path / "metrics.jsonl").write_text(text)
    workdir.resume_at(2)
    workdir.log("metrics", {"step": 3, "kind": "step", "loss": 1.0})
    workdir.close()
    assert [ln["step"] for ln in lines(tmp_path)] == [1, 2, 3]
    assert lines(tmp_path)[2]["loss"] == 1.0


def test_workdir_that_is_a_file_or_has_lost_its_config(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    assert in_process(monkeypatch, arguments(tmp_path / "file")) == 2
    assert "file is a file; --workdir must name a folder" in capsys.readouterr().err
    (tmp_path / "lost/checkpoints").mkdir(parents=True)
    assert in_process(monkeypatch, arguments(tmp_path / "lost")) == 2
    assert "checkpoints but no config.json" in capsys.readouterr().err


def test_the_last_checkpoint_or_that_of_a_step_is_read(run, tmp_path):
    folder = epath.Path(run)
    steps = read_json(folder / "summary.json")["steps"]
    assert read_checkpoint(folder)["step"] == steps
    with pytest.raises(InputError, match=rf"no checkpoint of step 1, .*{steps}: name"):
        read_checkpoint(folder, 1)
    (tmp_path / "damaged/checkpoints" / str(steps)).mkdir(parents=True)
    with pytest.raises(InputError, match=r"of the run .* missing or damaged"):
        read_checkpoint(epath.Path(tmp_path / "damaged"), steps)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match="has no checkpoint yet"):
        read_checkpoint(epath.Path(tmp_path))
