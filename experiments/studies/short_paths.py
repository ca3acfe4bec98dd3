# SPDX-License-Identifier: Apache-2.0
"""Training with exactly k open blocks in every mini-batch (Veit et al. 2016, 4.3)."""

from configs import veit2016
from experiments import figures
from experiments.studies import Lab, Result, Results, Study, Subject, path_lengths


def missing(subject: Subject) -> str | None:
    """Return why there is no log of training, or None."""
    ours = subject.run is not None
    return None if ours else "weights in a file come without the log of a run"


def measure(lab: Lab) -> Result:
    """Collect the run's test errors in percent, and the lengths of trained paths."""
    run, settings = lab.run, lab.model.stochastic_depth
    return {
        "measured_on": f"{len(lab.subject.test):,} test images, in training",
        "epochs": [line["epoch"] for line in run.epochs],
        "test_error_by_epoch": [line["test_error_percent"] for line in run.epochs],
        "open_in_training": settings and settings.num_open,
        "from_epoch": run.config.stochastic_depth_from_epoch,
        "test_error_percent": run.summary["test_error_percent"],
        "stochastic_depth": settings is not None,
        "paths_in_training": path_lengths.measure(lab).get("paths_in_training"),
    }


_START = "short paths only from here on"


def draw(results: Results) -> figures.Figure:
    """Draw the test error by epoch, with lines where training on short paths starts."""
    figure, [axes] = figures.panels()
    for label, result, style in figures.styled(results):
        k = result["open_in_training"]
        how = "stochastic depth" if result["stochastic_depth"] else "all blocks"
        how = how if k is None else f"exactly {k} blocks open"
        epochs, errors = result["epochs"], result["test_error_by_epoch"]
        axes.plot(epochs, errors, **style, label=f"{label} ({how})")
        if k is not None:
            axes.axvline(result["from_epoch"], **figures.MARK, label=_START)
    figures.finish(axes, xlabel="epoch", ylabel="test error (%)", ylim=(0, None))
    return figure


def describe(result: Result) -> str:
    """Describe how the network was trained, and its test error."""
    final = result["test_error_percent"]
    if result["open_in_training"] is None:
        how = "stochastic depth" if result["stochastic_depth"] else "all blocks open"
        return f"Trained with {how}: {final:.2f} % test error."
    lengths = path_lengths.in_words(result["paths_in_training"])
    paper = {name: row.published["cifar10"] for name, row in veit2016.ROWS.items()}
    return (
        f"From epoch {result['from_epoch'] + 1} on, {result['open_in_training']} of "
        f"{result['num_blocks']} blocks were open in every mini-batch: {final:.2f} % "
        f"test error. Paths in training: {lengths}. The paper reports "
        f"{paper['preact_resnet110_short_paths']:.2f} % on CIFAR-10 with 23 of 54 open "
        f"blocks, and {paper['preact_resnet110_whole']:.2f} % with all."
    )


STUDY = Study(
    "Training on short paths",
    "Test error by epoch; a vertical line marks the start of training with exactly k "
    "open blocks (Veit et al. 2016, 4.3).",
    *(measure, draw, describe),
    order=6,
    missing=missing,
    uses=("bounds",),
)
