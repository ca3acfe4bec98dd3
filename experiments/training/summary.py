# SPDX-License-Identifier: Apache-2.0
"""What a run reports: its sentences, and summary.json or diverged.json at its end."""

from collections.abc import Mapping
from typing import Any

import jax

from configs.default import Config
from experiments.training import environment
from experiments.training.setup import Trainer

# The packages whose versions are reported.
_PACKAGES = "rn_jax jax jaxlib flax optax orbax-checkpoint numpy".split()


def facts(
    trainer: Trainer, step: int, wall_seconds: float, command: str | None
) -> dict[str, Any]:
    """Return the settings and environment of a run, however it ended."""
    config, devices = trainer.config, trainer.devices
    return {
        "model": config.model,
        "dataset": config.dataset,
        "params": trainer.params,
        "num_blocks": trainer.model.num_blocks,
        "epochs": whole(step / trainer.steps_per_epoch),
        "steps": step,
        "seed": config.seed,
        "protocol": config.protocol,
        "wall_seconds": wall_seconds,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "machine": environment.machine(),
        "versions": environment.versions(_PACKAGES),
        "git_revision": environment.git_revision(),
        "command": command,
    }


def summarize(
    ended: Mapping[str, Any],
    last: Mapping[str, Any],
    best: Mapping[str, Any] | None,
    images_per_second: float | None,
) -> dict[str, Any]:
    """Return the summary of a run that reached its last step.

    `ended` is what `facts` returned, `last` the last line "epoch" of metrics.jsonl, and
    `best` what `evaluation.better` kept; it is None if no examples are held out.
    """
    best = best or {}
    return {
        **ended,
        "train_loss": last["train_loss"],
        "test_error_percent": last["test_error_percent"],
        "val_error_percent": last.get("val_error_percent"),
        "best_epoch": best.get("epoch"),
        "best_val_error_percent": best.get("val_error_percent"),
        "test_error_at_best_val_percent": best.get("test_error_percent"),
        "images_per_second": images_per_second,
    }


def sentence(config: Config, summary: Mapping[str, Any]) -> str:
    """Return the result of a run beside the paper's.

    A missing one is mentioned only where readers expect it: where the config has one
    for another data set, and not on digits.
    """
    published = config.published_error_percent.get(summary["dataset"])
    beside = ""
    if published is not None:
        beside = f" ({config.paper}: {published:.2f} %)"
    elif config.published_error_percent and summary["dataset"] != "digits":
        on = f"{config.model} on {summary['dataset']}"
        beside = f" (the config has no published error for {on})"
    best = summary["test_error_at_best_val_percent"]
    at_best = "" if best is None else f", {best:.2f} % at the best validation epoch"
    return f"Test error {summary['test_error_percent']:.2f} %{at_best}{beside}."


def evaluation_sentence(line: Mapping[str, Any]) -> str:
    """Return loss and errors of an evaluation, from its line in metrics.jsonl."""
    errors = [
        f"{part} error {line[name]:.2f} %"
        for part in ("train", "val", "test")
        if (name := f"{part}_error_percent") in line
    ]
    shown = ", ".join([f"train loss {line['train_loss']:.4f}", *errors])
    return f"epoch {line['epoch']}: {shown}"


def divergence_sentence(step: int, rate: float, last: int | None) -> str:
    """Return why a run ends at a step, with its learning rate and last checkpoint."""
    kept = f"the last good checkpoint, of step {last}, is kept"
    if last is None:
        kept = "there is no checkpoint yet"
    return (
        f"The loss or its gradient is not finite at step {step} (learning rate "
        f"{rate:g}); {kept}. Try a lower learning_rate or a longer warmup, in a new "
        "--workdir."
    )


def whole(epochs: float) -> int | float:
    """Return a number of epochs, as an integer if it is one."""
    return int(epochs) if epochs == int(epochs) else round(epochs, 2)
