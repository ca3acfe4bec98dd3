# SPDX-License-Identifier: Apache-2.0
"""The rate of CIFAR's feed, compared to that of ResNet-20's training step.

    python -m benchmarks.cifar_feed [--batch_size=128] [--rounds=20]

On one core, the feed cuts batches of 32x32 images out of 50,000 in memory and moves
them to the device; the step must not wait for it. The aim is ten times the step's rate.
"""

import argparse
import statistics

import jax
import numpy as np

from benchmarks import measure
from benchmarks.training_step import Step
from rn_jax import data

BATCHES = 100  # in one reading of the feed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    step = Step("resnet20", batch_size=options.batch_size, image_size=32)
    rng = np.random.default_rng(0)
    examples = data.Examples(
        rng.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8),
        rng.integers(0, 10, 50_000).astype(np.int32),
    )
    feed = data.InMemory({"train": examples}, batch_size=options.batch_size, seed=0)
    position = 0

    def take():
        nonlocal position
        batches = feed.train_batches(position, position + BATCHES)
        position += BATCHES  # so that epochs begin as often as in a run
        for batch in batches:
            jax.block_until_ready(jax.device_put(batch))

    seconds = measure.alternate({"feed": take, "step": step}, rounds=options.rounds)
    per_batch = [second / BATCHES for second in seconds["feed"]]
    result = {
        **vars(options),
        "images_per_second": {
            "feed": options.batch_size / statistics.median(per_batch),
            "step": options.batch_size / statistics.median(seconds["step"]),
        },
        "feed_over_step": measure.ratio(seconds["step"], per_batch),
    }
    for name, rate in result["images_per_second"].items():
        print(f"{name}: {rate:,.0f} images per second")
    platform = step.devices[0].platform
    print(measure.write(f"cifar_feed_{platform}", result))


if __name__ == "__main__":
    main()
