# SPDX-License-Identifier: Apache-2.0
"""kill -9 at random moments leaves what a run leaves that nothing disturbed."""

import signal
import time

import numpy as np
import pytest
from driver import arguments, assert_same_run

pytestmark = [pytest.mark.slow, pytest.mark.faults]

KIND = "kill -9"
KILLS = 50
OPTIONS = (
    "--config.stochastic_depth={'last_survival': 0.5}",
    "--config.protocol=45k5k",
    "--config.epochs=2",
    "--config.num_devices=1",
    "--config.checkpoint_every_steps=1",
    "--config.log_every_steps=1",
)


def argv(workdir):
    return arguments(workdir, *OPTIONS)


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """The folder of a run that nothing disturbed, and the seconds that one takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert server.run(argv(folder / "first")).code == 0  # which compiles
    started = time.monotonic()
    run = server.run(argv(folder / "whole"))
    assert run.code == 0, run.err
    assert_same_run(folder / "first", folder / "whole")  # the same seed twice
    return folder / "whole", time.monotonic() - started


def test_killed_at_fifty_random_moments_nothing_is_lost(
    server, undisturbed, tmp_path, faults
):
    """Killed again and again, saving at every step, until it has come to its end."""
    whole, seconds = undisturbed
    rng = np.random.default_rng(0)
    killed = number = 0
    while killed < KILLS:
        workdir = tmp_path / f"run{number}"
        number += 1
        kills = 0
        while not (workdir / "summary.json").exists():
            run = server.start(argv(workdir))
            if killed + kills < KILLS:
                time.sleep(rng.uniform(0.1, 1) * seconds)
                run.signal(signal.SIGKILL)
            code = run.wait()
            assert code in (0, -signal.SIGKILL), run.err
            kills += code != 0
        assert_same_run(workdir, whole)
        killed += kills
        faults(KIND, kills)
