# SPDX-License-Identifier: Apache-2.0
"""Study a trained network, ours or imported, with figures and a report.

python -m experiments.analyze --workdir=RUN [--step=N] [--study=NAMES|all] [--out=DIR]
    [--images=N] [--draws=N] [--factors=keep|drop] [--compare=RUN2,...] [--compare=RUN3]
    [--format=png,pdf,svg] [--width=INCHES] [--relative_depth]
python -m experiments.analyze --weights=NAME|FILE ...
python -m experiments.analyze --model=resnet32 --weights=FILE --dataset=cifar10 ...
python -m experiments.analyze --model=plain110 --dataset=digits ...
"""

import ast
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from etils import epath

from experiments import cli, figures
from experiments.studies import STUDIES, Lab, Results, do, report, subject
from experiments.training import many_runs
from rn_jax.errors import InputError, unknown_name
from rn_jax.filesystem import expanded, make_folder, read_json, replace_file

FACTORS = ("keep", "drop")

# A finished study is kept if these are equal.
_IDENTITY = (
    *("model", "model_kwargs", "dataset", "normalization"),
    *("weights_sha256", "images", "gates"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, analyze).call(
        argv, interrupted="Interrupted; the same command continues with the next study."
    )


def _dict(text):
    try:
        found = ast.literal_eval(text or "{}")
    except cli.NOT_A_LITERAL:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            "--model_kwargs must be a dict such as \"{'shortcut': 'B'}\", not "
            f"{text!r}."
        )
    return found


def _bounds(text):
    if not re.fullmatch(r"(\d+-\d+,?)*", text):
        raise InputError(f"--bounds must be ranges such as 5-17,19-35, not {text!r}.")
    return [tuple(map(int, part)) for part in re.findall(r"(\d+)-(\d+)", text)]


def _folders(text):
    """Return the folders of one --compare: one whose name has commas, or a list."""
    whole = expanded(text)
    if epath.Path(whole).exists():
        return [whole]
    return [expanded(part) for part in text.split(",") if part]


_STUDY = {
    "flag": "--study",
    "type": lambda text: None if text == "all" else text.split(","),
    "help": f"{', '.join(STUDIES)}, or all",
}
_COMPARE = {"action": "extend", "type": _folders}


def analyze(
    *,
    workdir: cli.Path | None = None,
    step: int | None = None,
    weights: cli.Path | None = None,
    model: str | None = None,
    dataset: str | None = None,
    model_kwargs: Annotated[Mapping[str, Any] | None, _dict] = None,
    normalization: str | None = None,
    data_dir: cli.Path | None = None,
    studies: Annotated[Iterable[str] | None, _STUDY] = None,
    out: cli.AnyPath | None = None,
    images: int | None = None,
    draws: int = 10,
    seed: int = 0,
    factors: str = "keep",
    bounds: Annotated[Sequence[tuple[int, int]], _bounds] = ((5, 17), (19, 35)),
    batch_size: int = 250,
    compare: Annotated[Sequence[str], _COMPARE] = (),
    force: bool = False,
    style: figures.Style = figures.DEFAULT,
    command: str = "experiments.analyze.analyze(...)",
) -> dict[str, Results]:
    """Do the studies that are not done yet, then report all of them.

    Args:
        workdir: folder of a finished run, or that of a sweep, a table or several seeds,
            whose finished runs are compared with the first of them; or else:
        step: step of the run's checkpoint to study; None: the last.
        weights: name for `rn_jax.load`, or a file of weights.
        model: name in `list_models()`, for imported weights or an untrained network.
        dataset: data set of that network.
        model_kwargs: other fields of that model.
        normalization: normalisation of that model's images; None: that of ImageNet.
        data_dir: folder of the data set; None: the run's, or as TFDS finds it.
        studies: names in `STUDIES`; None: all.
        out: folder of the report; None: RUN/analysis, RUN/analysis-stepN for another
            checkpoint, or runs/analysis-FILE.
        images: number of test images; None: all, on a CPU 2,000.
        draws: number of random draws for each point.
        seed: seed of the draws, and of the parameters of an untrained network.
        factors: "keep" or "drop" the survival probabilities at test.
        bounds: ranges of path lengths, both ends included, to report the share of.
        batch_size: test images at a time.
        compare: folders of finished runs, of sweeps or tables, or of analyses to draw
            in the same figures. Studies that RUN/analysis has are not repeated.
        force: repeat finished studies.
        style: style and formats of the figures.
        command: the command line, which the report names.

    Returns:
        Label of each network -> study -> the content of its JSON.

    Raises:
        InputError: bad input that the user can correct.
    """
    names = list(STUDIES) if studies is None else list(studies)
    for name in names:
        if name not in STUDIES:
            raise unknown_name("study", name, STUDIES)
    if factors not in FACTORS:
        raise unknown_name("factors", factors, FACTORS)
    cli.at_least(1, step=step, images=images, draws=draws, batch_size=batch_size)
    cli.at_least(0, seed=seed)
    for low, high in bounds:
        if not 0 <= low <= high:
            raise InputError(
                f"--bounds must be ranges such as 5-17,19-35, not {low}-{high}."
            )

    def laboratory(network, folder, run=None):
        lab = Lab(
            network,
            images=images,
            draws=draws,
            seed=seed,
            factors=factors,
            bounds=bounds,
            batch_size=batch_size,
        )
        lab.earlier = _finished(lab, folder, names, force)
        if run:
            own = epath.Path(run) / "analysis"
            lab.earlier = _finished(lab, own, names, force, strict=False) | lab.earlier
        return lab, folder

    own = _runs(workdir) if workdir else []
    if step is not None and own != [workdir]:
        raise InputError("--step needs --workdir, the folder of one run.")
    first, others = own[0] if own else None, own[1:]
    for folder in compare:
        runs = _runs(folder)
        same = first and epath.Path(first).resolve()
        others += [
            run for run in runs if run == folder or epath.Path(run).resolve() != same
        ]
    network = subject.find(
        workdir=first,
        weights=weights,
        model=model,
        dataset=dataset,
        model_kwargs=model_kwargs,
        normalization=normalization,
        data_dir=data_dir,
        seed=seed,
        step=step,
    )
    if not out:
        named = epath.Path(weights).stem if weights else network.label
        own_folder = "analysis" if step is None else f"analysis-step{step}"
        out = os.path.join(workdir, own_folder) if workdir else f"runs/analysis-{named}"
    out = epath.Path(out)
    if first == workdir:
        labs = {network.label: laboratory(network, out)}
    else:  # of a sweep, in which another run may be the first one later
        labs = {network.label: laboratory(network, out / network.label, first)}
    finished: dict[str, Results] = {}
    for path in others:
        if (epath.Path(path) / "summary.json").exists():
            other = subject.from_run(path, data_dir=data_dir)
            label, results = other.label, None
        else:
            label, results = _analysis(epath.Path(path))
        if label in labs or label in finished:
            raise InputError(f"Two networks are named {label}; rename a folder.")
        if results is None:
            labs[label] = laboratory(other, out / label, path)
        else:
            finished[label] = results
    reasons = {
        label: {n: study.missing(lab.subject) for n, study in STUDIES.items()}
        for label, (lab, _) in labs.items()
    }
    for _, folder in labs.values():
        make_folder(folder)
    try:
        for label, (lab, folder) in labs.items():
            for name in names:
                if name not in lab.earlier and not reasons[label][name]:
                    print(f"{label} {name} ...", flush=True)
                    result = do(name, lab, command=command)
                    text = json.dumps(result, indent=1)
                    replace_file(folder / f"{name}.json", text + "\n")
                    print(f"{label} {name}: {result['seconds']:.0f} s", flush=True)
    finally:  # also when it is interrupted
        found = {label: lab.earlier for label, (lab, _) in labs.items()} | finished
        done = {name for results in found.values() for name in results}
        shown = [name for name in STUDIES if name in done.union(names)]
        with figures.using(style):
            report.write(out, shown, found, reasons, command=command)
    print(f"Report: {out / 'report.md'}")
    return found


def _runs(folder):
    """Return the finished runs of a sweep, a table or several seeds, or the folder."""
    runs = many_runs.runs_in(folder)
    return [r for r in runs if (epath.Path(r) / "summary.json").exists()] or [folder]


def _analysis(folder):
    """Return the label of a network studied before, and its studies by name.

    Raises:
        InputError: the folder has no studies.
    """
    results = {n: found for n in STUDIES if (found := _read(folder, n)) is not None}
    if not results:
        raise InputError(
            f"{folder} is neither a finished run nor the folder of an analysis."
        )
    return next(iter(results.values()))["label"], results


def _finished(lab, folder, names, force, *, strict=True):
    """Return the studies in a folder that have the lab's network and options.

    Raises:
        InputError: a study that is requested exists with other settings, if `strict`.
    """
    earlier = {}
    for name, study in STUDIES.items():
        found = _read(folder, name)
        if found is None or (force and name in names):
            continue
        compared = (*_IDENTITY, *sorted(study.uses))
        differ = [f for f in compared if found.get(f) != lab.facts[f]]
        if not differ:
            earlier[name] = found
        elif strict and name in names:
            shown = ", ".join(
                f"{f} {found.get(f)} there and {lab.facts[f]} here" for f in differ
            )
            raise InputError(
                f"{folder / name}.json is a finished study with other settings "
                f"({shown}); choose another --out, or --force to repeat it."
            )
    return earlier


def _read(folder, name):
    file = folder / f"{name}.json"
    return read_json(file) if file.exists() else None


if __name__ == "__main__":
    sys.exit(main())
