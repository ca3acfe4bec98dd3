# SPDX-License-Identifier: Apache-2.0
"""Seconds per training step with constant and stochastic depth, and in PyTorch.

    python -m benchmarks.step_time --model=resnet110 --batch_size=32 [--peer=torch]

The sides alternate in one process. The peer's stochastic depth is timm's DropPath. On a
CPU the step is timed over virtual devices, as `experiments.run` makes it, and on one
device, as your own `jax.jit` would run it.
"""

import argparse
import statistics

import jax

import rn_jax
from benchmarks import measure
from benchmarks.training_step import Step
from rn_jax import InputError, StochasticDepth


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--last_survival", type=float, default=0.5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--peer", choices=("torch",))
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    try:
        compare(options)
    except InputError as error:
        parser.error(str(error))


def compare(options: argparse.Namespace) -> None:
    """Time the sides in turn, print their ratios and write them to results/."""
    size = {"batch_size": options.batch_size, "image_size": options.image_size}
    depth = StochasticDepth(options.last_survival)
    sides = {
        "constant": Step(options.model, dtype=options.dtype, **size),
        "stochastic": Step(options.model, dtype=options.dtype, depth=depth, **size),
    }
    alone = ""  # what the names of sides on a single device end with
    if len(sides["constant"].devices) > 1:
        alone = ", one device"
        own = {"dtype": options.dtype, "num_devices": 1, **size}
        sides[f"constant{alone}"] = Step(options.model, **own)
        sides[f"stochastic{alone}"] = Step(options.model, depth=depth, **own)
    if options.peer:
        from benchmarks import torch_peer

        kinds: dict[str, str | None] = {"torch": None}
        if jax.devices()[0].platform != "cpu":
            kinds["torch.compile"] = "default"
        for name, mode in kinds.items():
            more = {"dtype": options.dtype, "compile_mode": mode, **size}
            sides[f"{name} constant"] = torch_peer.Step(options.model, **more)
            if rn_jax.models.MODELS[options.model].image_size == 32:
                sides[f"{name} DropPath"] = torch_peer.Step(
                    options.model, last_survival=options.last_survival, **more
                )

    seconds = measure.alternate(sides, rounds=options.rounds)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    for name, median in medians.items():
        print(f"{name:24} {median:.3f} s")
    ratios = {}
    for over, under in [
        (f"{ours}{way}", theirs)
        for way in dict.fromkeys(("", alone))
        for ours, theirs in [
            ("stochastic", f"constant{way}"),
            *[("constant", name) for name in sides if name.endswith(" constant")],
            *[("stochastic", name) for name in sides if name.endswith(" DropPath")],
        ]
    ]:
        found = ratios[f"{over} / {under}"] = measure.ratio(
            seconds[over], seconds[under]
        )
        print(
            f"{over} / {under}: {found['median']:.2f} "
            f"({found['quartile_1']:.2f} to {found['quartile_3']:.2f})"
        )
    name = f"step_time_{options.model}_{jax.devices()[0].platform}_{options.dtype}"
    result = {**vars(options), "median_seconds": medians, "ratios": ratios}
    print(measure.write(name, result, "torch", "timm"))


if __name__ == "__main__":
    main()
