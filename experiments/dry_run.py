# SPDX-License-Identifier: Apache-2.0
"""The output of `experiments.run` with `--list` and `--dry_run`."""

import collections
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import configs
from configs.default import Config
from experiments.training import feed, pretrained, setup
from experiments.training.network import make_network
from experiments.training.schedule import count_steps, make_schedule
from rn_jax import data, parallel, survival_probs, train
from rn_jax.analysis.cost import multiply_adds_by_module
from rn_jax.data import imagenet
from rn_jax.models import MODELS
from rn_jax.stochastic_depth import computes_closed

# The backward pass has two products for each product of the forward pass, and a
# multiply-add is two operations.
_OPERATIONS = 6


def listing() -> str:
    """Return a line for each model, data set and config; the configs by paper."""
    lines = ["Models (--model=NAME):"]
    for name, entry in MODELS.items():
        size = "" if entry.params is None else f"{entry.params:>13,}"
        lines.append(f"  {name:<30} {size:>13}  {entry.paper}")
    lines += ["", "Data sets (CONFIG:NAME):"]
    for spec in (*data.DATASETS.values(), imagenet.SPEC):
        shape = "x".join(map(str, spec.image_shape))
        lines.append(f"  {spec.name:<30} {spec.num_classes:>5} classes, {shape}")
    papers = collections.defaultdict(list)
    for name in configs.names():
        config = configs.get_config(name)
        errors = config.published_error_percent.items()
        parts = ["fails"] if config.expected_to_fail else []
        parts += [f"{error:.2f} % on {on}" for on, error in errors]
        text = ": ".join([configs.where(name), *filter(None, [", ".join(parts)])])
        papers[config.paper].append(f"  {name:<32} {text}")
    lines += ["", "Configs, by name, and published test errors:"]
    for paper in sorted(papers):
        lines += [f" {paper}", *papers[paper]]
    return "\n".join(lines)


def plan(config: Config) -> str:
    """Return the network's table and the cost of a run, without its data or any step.

    Memory is the size of the arrays that a device keeps for the backward pass. Time is
    that of convolutions and matrix products in the blocks that are expected to be open,
    at the rate of one convolution, measured now on all devices together.

    Raises:
        InputError: a value that cannot be used, in one sentence.
    """
    setup.check(config)
    if config.init_from is not None:
        pretrained.check(config.init_from)
    devices = setup.choose_devices(config)
    model, image_shape = make_network(config)
    examples = feed.count_train(config)
    steps_per_epoch = data.steps_per_epoch(examples, config.batch_size)
    steps = count_steps(config, steps_per_epoch)
    make_schedule(config, steps_per_epoch, steps)  # checks it
    rows = table(model, image_shape)
    total = {key: sum(row[key] for row in rows) for key in ("params", "multiply_adds")}
    lines = [f"{'module':<22}{'output':>18}{'parameters':>14}{'multiply-adds':>17}"]
    for row in [*rows, {"name": "all", "output": "", **total}]:
        lines.append(
            f"{row['name']:<22}{row['output']:>18}{row['params']:>14,}"
            f"{row['multiply_adds']:>17,}"
        )
    share = config.batch_size // len(devices) // config.micro_batches
    copies = 3 + (config.optimizer == "adamw") + (config.ema_decay is not None)
    state = copies * 4 * total["params"]  # parameters, gradients, momentum, averages
    kept = residual_bytes(model, (share, *image_shape))
    seen = steps * config.batch_size
    operations = _OPERATIONS * total["multiply_adds"] * seen * _computed(model)
    dtype = jnp.dtype(config.dtype)
    with jax.default_matmul_precision(config.matmul_precision):
        seconds = operations / convolution_rate(devices, dtype)
    lines += [
        "",
        f"{config.model} on {config.dataset}: {steps:,} steps of "
        f"{config.batch_size} examples, {steps / steps_per_epoch:.1f} epochs.",
        f"Memory on each of {len(devices)} {devices[0].platform} devices: about "
        f"{(state + kept) / 2**20:,.0f} MiB, including {kept / 2**20:,.0f} MiB for "
        f"a batch of {share}.",
        f"Time: about {duration(seconds)} for convolutions and matrix products, at the "
        "measured rate of a 64-channel convolution; other operations add to this.",
    ]
    return "\n".join(lines)


def table(model: nn.Module, image_shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Return "name", "output", "params" and "multiply_adds" of each part of a network.

    The blocks of a stage that run in a scan are one row. Multiply-adds are for one
    image, of shape (H, W, C), over all blocks of a row.
    """
    outputs = {}

    def note(next_call, args, kwargs, context):
        y = next_call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(y, jax.Array):
            outputs[context.module.path] = "x".join(map(str, y.shape[1:]))
        return y

    init = partial(model.init, train=False)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(note):
        params = jax.eval_shape(init, jax.random.key(0), image)["params"]
    work = multiply_adds_by_module(model, image_shape)
    parts = dict.fromkeys(map(_part, outputs))
    rows = {}
    for part in parts:
        if part and not any(len(p) > len(part) and p[:1] == part for p in parts):
            tree = params
            for name in part:
                tree = tree.get(name, {})
            leaves = jax.tree.leaves(tree)
            times = f" x {leaves[0].shape[0]}" if part[-1] == "blocks" else ""
            rows[part] = {
                "name": "/".join(part) + times,
                "output": outputs.get(part, ""),
                "params": sum(leaf.size for leaf in leaves),
                "multiply_adds": sum(n for p, n in work.items() if _part(p) == part),
            }
    return list(rows.values())


def _part(path):
    """Return the row of a module; the blocks of a scan have one of their own."""
    return path[: 2 if path[1:2] in (("first",), ("blocks",)) else 1]


def residual_bytes(model: nn.Module, images_shape: tuple[int, ...]) -> int:
    """Return the bytes that the forward pass of a step keeps for the backward pass.

    Parameters are not counted. Stochastic depth makes no difference: memory is reserved
    for every block.

    Args:
        model: without `axis_name`.
        images_shape: (B, H, W, C) of a device's share of the batch.
    """
    model = model.clone(stochastic_depth=None)
    images = jax.ShapeDtypeStruct(images_shape, jnp.float32)
    key = jax.random.key(0)

    def backward(variables, images):
        def logits(params):
            y, updates = model.apply(
                {**variables, "params": params},
                images,
                train=True,
                rngs=train.step_rngs(key),
                mutable=train.COLLECTIONS,
            )
            return y, {k: updates.get(k, {}) for k in ("aux_logits", "losses")}

        return jax.vjp(logits, variables["params"])[1]

    variables = jax.eval_shape(partial(model.init, train=False), key, images)
    kept = _shapes(jax.eval_shape(backward, variables, images))
    kept -= _shapes(variables["params"])  # but their copies in another dtype stay
    return sum(
        times * math.prod(shape) * dtype.itemsize
        for (shape, dtype), times in kept.items()
    )


def _shapes(tree):
    """Return the number of arrays of each shape and dtype."""
    return collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves(tree))


def _computed(model):
    """Return the expected share of the blocks' work that a step computes."""
    settings = model.stochastic_depth
    if settings is None or computes_closed(settings):
        return 1.0
    return float(survival_probs(settings, model.num_blocks).mean())


def convolution_rate(devices: Sequence[jax.Device], dtype: jnp.dtype) -> float:
    """Measure the operations per second of a 3x3 convolution with 64 channels.

    The devices compute their shares at the same time; images and kernel have the dtype.
    The rate is the best of five measurements.
    """
    images = np.ones((16 * len(devices), 32, 32, 64), dtype)
    images = parallel.split_examples(images, devices)
    kernel = parallel.replicate(np.ones((3, 3, 64, 64), dtype), devices)
    convolve = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    seconds = []
    for _ in range(6):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(convolve(images, kernel))
        seconds.append(time.perf_counter() - start)
    return 2 * images.size * kernel.shape[-1] * 9 / min(seconds[1:])


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that gives a value of at least 2."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} seconds"
