# SPDX-License-Identifier: Apache-2.0
"""Training with a checkpoint after every epoch, compared to training without any.

    python -m benchmarks.checkpointing [--config=configs/resnet110.py:digits]
        [--epochs=3] [--rounds=7] [--config.FIELD=VALUE ...]

Both sides take a run's own training steps. One of them saves as the loop does,
asynchronously, while the next epoch is trained; it ends when all is written. Nothing is
evaluated.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax

from benchmarks import measure
from experiments import cli
from experiments.config import load_config
from experiments.training.setup import build
from rn_jax.checkpoint import Checkpoints


class Training:
    """A run's training step, its batches and its state."""

    def __init__(self, config):
        self.experiment = build(config)
        self.state = self.experiment.initial_state
        self.step = 0  # the state's, on the host

    def take(self, steps: int) -> None:
        """Take a number of steps, and wait for them."""
        exp = self.experiment
        for batch in exp.feed.train_batches(self.step, self.step + steps):
            self.state, _ = exp.train_step(self.state, batch, exp.key)
        self.step += steps
        jax.block_until_ready(self.state)


class Saving:
    """Checkpoints in a folder, and the seconds that each took.

    Attributes:
        blocked: seconds until training could continue.
        written: seconds until a checkpoint was on disk, without training meanwhile.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        self.checkpoints = Checkpoints(folder)
        self.blocked, self.written = [], []

    def save(self, state) -> None:
        """Save a state as the loop does after an epoch."""
        start = time.perf_counter()
        self.checkpoints.save(state, {"wall_seconds": 0.0})
        self.blocked.append(time.perf_counter() - start)

    def save_and_wait(self, state) -> None:
        """Save a state, and return when it is on disk."""
        start = time.perf_counter()
        self.checkpoints.save(state, {"wall_seconds": 0.0})
        self.checkpoints.wait()
        self.written.append(time.perf_counter() - start)

    def bytes_on_disk(self) -> int:
        """Return the size of the newest checkpoint."""
        newest = self.folder / str(self.checkpoints.latest_step())
        return sum(f.stat().st_size for f in newest.rglob("*") if f.is_file())


def compare(config, epochs, rounds, folder) -> dict[str, object]:
    """Time both sides in turn, and return the result without the options.

    Args:
        config: the run's.
        epochs: number of epochs in each reading.
        rounds: number of readings of each side.
        folder: folder of the checkpoints.
    """
    training, saving = Training(config), Saving(folder)
    steps = training.experiment.steps_per_epoch

    def without():
        for _ in range(epochs):
            training.take(steps)

    def with_saving():
        for _ in range(epochs):
            training.take(steps)
            saving.save(training.state)
        saving.checkpoints.wait()

    training.take(1)  # compiles
    saving.save_and_wait(training.state)  # the first save also makes folders
    sides = {"saved": with_saving, "none": without}
    seconds = measure.alternate(sides, rounds=rounds, warmup=0)
    for _ in range(rounds):
        training.take(1)  # a step has one checkpoint
        saving.save_and_wait(training.state)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(training.state))
    epoch_seconds = {
        side: statistics.median(found) / epochs for side, found in seconds.items()
    }
    to_disk = statistics.median(saving.written[1:])
    result = {
        "steps_per_epoch": steps,
        "epoch_seconds": epoch_seconds,
        "saved / none": measure.ratio(seconds["saved"], seconds["none"]),
        "blocked_seconds_per_save": statistics.median(saving.blocked),
        "seconds_to_disk": to_disk,
        # The greatest cost of a save: none of its writing is hidden behind steps.
        "to_disk / epoch": to_disk / epoch_seconds["none"],
        "state_bytes": state_bytes,
        "checkpoint_bytes": saving.bytes_on_disk(),
    }
    saving.checkpoints.close()
    return result


def main() -> int:
    parser = cli.Parser(__doc__, checkpointing)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--rounds", type=int)
    return parser.call(None, interrupted="Interrupted; nothing was written.")


def checkpointing(arguments, *, epochs: int = 3, rounds: int = 7) -> None:
    """Compare the sides by a config, print the result and write it to results/."""
    name, config = load_config(arguments or ["--config=configs/resnet110.py:digits"])
    with tempfile.TemporaryDirectory() as folder:
        found = compare(config, epochs, rounds, folder)
    for side, seconds in found["epoch_seconds"].items():
        print(f"{side:5} {seconds:.3f} s an epoch of {found['steps_per_epoch']} steps")
    ratio = found["saved / none"]
    print(
        f"saved / none: {ratio['median']:.3f} "
        f"({ratio['quartile_1']:.3f} to {ratio['quartile_3']:.3f})"
    )
    print(
        f"a checkpoint of {found['checkpoint_bytes']:,} bytes (the state has "
        f"{found['state_bytes']:,}) blocks {found['blocked_seconds_per_save']:.3f} s; "
        f"{found['seconds_to_disk']:.3f} s to disk, "
        f"{100 * found['to_disk / epoch']:.2f} % of an epoch"
    )
    result = {"config": name, "dataset": config.dataset}
    result |= {"epochs": epochs, "rounds": rounds, **found}
    print(measure.write(f"checkpointing_{jax.devices()[0].platform}", result))


if __name__ == "__main__":
    sys.exit(main())
