# SPDX-License-Identifier: Apache-2.0
"""The time of a training step that skipping closed blocks saves.

    python -m benchmarks.skip [--model=resnet110] [--batch_size=32]

Steps with none to all blocks open (0, 14, 27, 40 and 54 of ResNet-110) alternate with
the step of constant depth. A line through their medians gives the share of the step
that skipping removes, and the expected time at a survival probability. Steps with
random gates, and with subsets of the examples, are timed as well.
"""

import argparse
import math
import statistics

import jax
import numpy as np
from matplotlib.figure import Figure

import rn_jax
from benchmarks import measure
from benchmarks.training_step import Step
from rn_jax import StochasticDepth


def exactly_open(count: int, num_blocks: int) -> StochasticDepth:
    """Keep `count` evenly spread blocks open, without the compiler knowing which."""
    places = set(np.linspace(0, num_blocks - 1, count).round().astype(int))
    return StochasticDepth(
        schedule=tuple(1.0 if i in places else 1e-9 for i in range(num_blocks))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--draws", type=int, default=5, help="random steps per round")
    options = parser.parse_args()
    size = {"batch_size": options.batch_size, "image_size": options.image_size}

    constant = Step(options.model, **size)
    num_blocks = constant.model.num_blocks
    opens = [math.ceil(num_blocks * share) for share in (0, 0.25, 0.5, 0.73, 1)]
    fixed = {
        k: Step(options.model, depth=exactly_open(k, num_blocks), **size) for k in opens
    }
    drawn = {
        p: Step(options.model, depth=StochasticDepth(p), **size) for p in (0.5, 0.2)
    }
    subsets = {
        share: Step(
            options.model,
            depth=StochasticDepth(
                share, schedule="uniform", granularity="subset", scaling="training"
            ),
            **size,
        )
        for share in (0.25, 0.5, 0.75)
    }

    def several(step):
        def call():
            for _ in range(options.draws):
                step()

        return call

    sides = {"constant": constant}
    sides |= {f"{k} open": step for k, step in fixed.items()}
    sides |= {f"subset {share}": step for share, step in subsets.items()}
    sides |= {f"drawn p_L={p}": several(step) for p, step in drawn.items()}
    seconds = measure.alternate(sides, rounds=options.rounds)
    for p in drawn:
        name = f"drawn p_L={p}"
        seconds[name] = [s / options.draws for s in seconds[name]]
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    ratios = {
        name: measure.ratio(s, seconds["constant"]) for name, s in seconds.items()
    }

    at = [ratios[f"{k} open"]["median"] for k in opens]
    slope, floor = np.polyfit(opens, at, 1)
    line = {
        "share_of_the_constant_step_removed_by_closing_all": slope * num_blocks,
        "floor": floor,
    }
    expected = {}
    for p in drawn:
        blocks = float(rn_jax.expected_open_blocks(StochasticDepth(p), num_blocks))
        share = float(np.mean(drawn[p].open_shares[2 * options.draws :]))
        expected[f"p_L={p}"] = {
            "expected_open_blocks": blocks,
            "ratio_on_the_line": floor + slope * blocks,
            "ratio_drawn": ratios[f"drawn p_L={p}"],
            "open_blocks_drawn": share * num_blocks,
        }
    for name, median in medians.items():
        print(f"{name:14} {median:.3f} s, {ratios[name]['median']:.2f} of constant")
    print(f"line: {floor:.3f} + {slope * num_blocks:.3f} k / {num_blocks}")
    for name, found in expected.items():
        print(
            f"{name}: {found['ratio_on_the_line']:.2f} expected from the line, "
            f"{found['ratio_drawn']['median']:.2f} with random gates"
        )
    name = f"skip_{options.model}_{jax.devices()[0].platform}"
    result = {
        **vars(options),
        "median_seconds": medians,
        "ratio_to_constant": ratios,
        "line": line,
        "expected": expected,
    }
    path = measure.write(name, result)
    _plot(opens, ratios, (floor, slope), path.with_suffix(".png"), options.model)
    print(path)


def _plot(opens, ratios, line, path, model):
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    found = [ratios[f"{k} open"] for k in opens]
    middle = [f["median"] for f in found]
    spread = [
        [f["median"] - f["quartile_1"] for f in found],
        [f["quartile_3"] - f["median"] for f in found],
    ]
    axes.errorbar(opens, middle, spread, fmt="ko", capsize=3, label="measured")
    floor, slope = line
    ends = np.array([0, opens[-1]])
    axes.plot(ends, floor + slope * ends, "k--", label="fitted line")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(
        title=f"Time of a training step of {model} by open blocks",
        xlabel="open blocks",
        ylabel="time / time at constant depth",
        ylim=(0, None),
    )
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
