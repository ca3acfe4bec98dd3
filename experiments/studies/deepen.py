# SPDX-License-Identifier: Apache-2.0
"""Deeper networks built from the trained one (He et al. 2015, section 1)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rn_jax
from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject
from rn_jax import data, parallel, train
from rn_jax.models.deepen import cannot_deepen

# Training on: one epoch of at most so many training images by SGD.
_MOST_IMAGES, _BATCH_SIZE, _RATE = 2000, 64, 1e-3

# The marker of the network as it was trained.
_TRAINED: dict[str, Any] = {
    "marker": "o",
    "linestyle": "",
    "markerfacecolor": "none",
    "markeredgecolor": "black",
    "markersize": 8,
}


def missing(subject: Subject) -> str | None:
    """Return why no deeper network has the same function, or None."""
    why = cannot_deepen(subject.model)
    return why and why.removesuffix(".")


def measure(lab: Lab) -> Result:
    """Measure the test error with one more block per stage, and with twice as many.

    `rn_jax.deepen` builds them: added blocks are the identity, and with stochastic
    depth the old blocks keep their survival probabilities. The network with one more
    block per stage is then trained on.
    """
    before = lab.probabilities(lab.gates)
    sizes = lab.model.stage_sizes
    labs = [
        _deepened(lab, new) for new in ([n + 1 for n in sizes], [2 * n for n in sizes])
    ]
    return {
        "measured_on": lab.test_images,
        "stage_sizes": list(sizes),
        "parameters": _parameters(lab.subject.variables),
        "deeper": [_compared(other, before) for other in labs],
        "trained_on": _train_on(labs[0]),
    }


def _deepened(lab, stage_sizes):
    model, variables = rn_jax.deepen(
        lab.model, lab.subject.variables, stage_sizes, key=jax.random.key(lab.seed)
    )
    variables = jax.device_get(variables)
    subject = dataclasses.replace(lab.subject, model=model, variables=variables)
    return Lab(subject, images=lab.images, seed=lab.seed, factors=lab.factors)


def _compared(lab, before):
    after = lab.probabilities(lab.gates)
    wrong = after.argmax(axis=-1) != lab.labels
    return {
        "stage_sizes": list(lab.model.stage_sizes),
        "num_blocks": lab.num_blocks,
        "parameters": _parameters(lab.subject.variables),
        "error_percent": 100 * int(wrong.sum()) / len(wrong),
        "largest_change_of_probability": float(np.abs(after - before).max()),
    }


def _train_on(lab):
    """Train a network for an epoch, and return its losses before and after.

    An epoch at a rate of 0 shows what BatchNorm's new statistics alone do to the loss.
    """
    subject, one = lab.subject, lab.subject.devices[:1]
    examples = subject.train.take(np.arange(min(len(subject.train), _MOST_IMAGES)))
    size = min(_BATCH_SIZE, len(examples))
    steps = data.steps_per_epoch(len(examples), size)
    sgd = optax.inject_hyperparams(optax.sgd)(_RATE, momentum=0.9)
    given: Any = {"model": lab.model, "tx": sgd}

    def preprocess(key, images, first_index):
        del key, first_index  # no augmentation
        return subject.preprocess(images)

    step = parallel.compile_train_step(
        train.make_train_step(**given, preprocess=preprocess), one
    )
    evaluate = parallel.compile_eval_step(
        train.make_eval_step(model=lab.model, preprocess=subject.preprocess), one
    )

    def loss(variables):
        batches = data.eval_batches(examples, batch_size=size)
        total = sum(evaluate(variables, batch)["loss"] for batch in batches)
        return float(total) / len(examples)

    def trained(rate):
        key = jax.random.key(lab.seed)
        state = train.create_state(key, **given, image_shape=examples.images.shape[1:])
        state = state.replace(**jax.tree.map(jnp.array, subject.variables))
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(rate)
        for n in range(steps):
            batch = data.train_batch(examples, step=n, batch_size=size, seed=lab.seed)
            state, _ = step(state, batch, key)
        return jax.device_get(state.variables)

    variables = trained(_RATE)
    return {
        "images": len(examples),
        "steps": steps,
        "learning_rate": _RATE,
        "train_loss": [loss(subject.variables), loss(variables)],
        "train_loss_at_rate_0": loss(trained(0.0)),
        "error_percent": lab.error(
            lab.gates, parallel.replicate(variables, subject.devices)
        ),
    }


def _parameters(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def draw(results: Results) -> figures.Figure:
    """Draw the test error by the number of blocks."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        blocks = [result["num_blocks"], *(d["num_blocks"] for d in result["deeper"])]
        errors = [d["error_percent"] for d in result["deeper"]]
        axes.plot(
            blocks, [result["baseline_error_percent"], *errors], **style, label=label
        )
        axes.plot(blocks[0], result["baseline_error_percent"], **_TRAINED)
    axes.plot([], [], **_TRAINED, label="as trained")
    figures.finish(axes, xlabel="blocks $L$", ylabel="test error (%)", ylim=(0, None))
    return figure


def describe(result: Result) -> str:
    """Describe the errors before and after, and how to train on from there."""
    base = result["baseline_error_percent"]
    shown = " and ".join(
        f"{d['error_percent']:.2f} % with {d['num_blocks']} blocks "
        f"({d['parameters']:,} parameters)"
        for d in result["deeper"]
    )
    change = max(d["largest_change_of_probability"] for d in result["deeper"])
    more = result["trained_on"]
    first, last = more["train_loss"]
    same = all(d["error_percent"] == base for d in result["deeper"])
    return (
        f"With its {result['num_blocks']} blocks ({result['parameters']:,} parameters) "
        f"the network has {base:.2f} % test error, and {shown}: "
        f"{'the same' if same else 'not the same'}. No predicted probability changes "
        f"by more than {change:.1g}, by rounding. So there are deeper networks that "
        "are no worse: if training a deeper network from its usual initialisation ends "
        "worse, optimisation did not find them (He et al. 2015). When the first of "
        f"them is trained for {more['steps']} steps at a rate of "
        f"{more['learning_rate']:g}, its loss on {more['images']:,} training images "
        f"changes from {first:.3g} to {last:.3g} (at a rate of 0, which changes only "
        f"BatchNorm's statistics, to {more['train_loss_at_rate_0']:.3g}), and its test "
        f"error is {more['error_percent']:.2f} %. "
        "A run with init_from and init_deepen=True trains such a network."
    )


STUDY = Study(
    "Identity by construction",
    "Test error of deeper networks whose added blocks are the identity (He et al. "
    "2015, section 1).",
    *(measure, draw, describe),
    order=13,
    missing=missing,
    uses=("seed",),
)
