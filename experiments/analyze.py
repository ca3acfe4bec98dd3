# SPDX-License-Identifier: Apache-2.0
"""Studies of a trained network, ours or imported, with figures and a report.

python -m experiments.analyze --workdir=RUN [--study=NAMES|all] [--out=DIR]
    [--images=N] [--draws=N] [--factors=keep|drop] [--compare=RUN2,...] [--compare=RUN3]
python -m experiments.analyze --weights=NAME|FILE ...
python -m experiments.analyze --model=resnet32 --weights=FILE --dataset=cifar10 ...
"""

import argparse
import ast
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from experiments import cli, environment, files, study_report, subject
from experiments.studies import STUDIES, Lab, Options
from experiments.subject import Subject
from experiments.workdir import make_folder, replace_file
from rn_jax.checkpoint import digest
from rn_jax.errors import InputError, unknown_name
from rn_jax.models.resnet import ResNet
from rn_jax.weights import is_saved

# Test images of a study on a CPU, unless --images says otherwise.
CPU_IMAGES = 2000
# The options that say what is studied.
_WHAT = ("workdir", "model", "weights", "dataset", "model_kwargs", "normalization")
# What must be equal for a finished study to be taken as it is.
_IDENTITY = (
    "model",
    "model_kwargs",
    "dataset",
    "normalization",
    "weights_sha256",
    "images",
    "gates",
)

# What the whole network's gates are, as the figures' titles say it.
_GATES = {
    "keep": "survival probabilities kept as factors",
    "drop": "survival probabilities dropped",
}


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add, path = parser.add_argument, parser.add_path
    path("--workdir", help="folder of a finished run")
    add("--model", help="name of rn_jax.list_models(), for imported weights")
    path("--weights", help="name that rn_jax.load takes, or a file: .safetensors, ...")
    add("--dataset", help="that the imported weights are for")
    add("--model_kwargs", help="more fields of that model, as a dict")
    add("--normalization", help="of that model's images; default: imagenet")
    path("--data_dir", help="of the data set; default: the run's, or as TFDS finds it")
    add("--study", default="all", help=f"of {', '.join(STUDIES)}; or all")
    path("--out", help="folder; default: RUN/analysis or runs/analysis-FILE")
    add("--images", type=int, help="test images; default: all, on a CPU 2,000")
    add("--draws", type=int, default=10, help="random draws for each point")
    add("--seed", type=int, default=0, help="of the draws")
    add("--factors", default="keep", choices=("keep", "drop"), help="p_l at test")
    add("--bounds", default="5-17,19-35", help="path lengths whose share is told")
    add("--batch_size", type=int, default=250, help="test images at a time")
    add("--compare", action="append", default=[], help="runs, or folders of analyses")
    add("--force", action="store_true", help="do finished studies again")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv

    def run():
        options = _parse(argv)
        options.command = cli.as_typed("analyze", argv)
        analyze(options)

    return cli.exit_code(
        run, interrupted="Interrupted; the same command goes on with the next study."
    )


def analyze(options: argparse.Namespace) -> None:
    """Does the studies that are not done yet, then draws and tells all of them.

    Args:
        options: as `_parse` gives them, and the `command` that they came from.

    Raises:
        InputError: what the user can mend, in one sentence.
    """
    names = _study_names(options.study)
    for name, least in (("images", 1), ("draws", 1), ("seed", 0), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, not {value}.")
    bounds = _bounds(options.bounds)
    compared = [*itertools.chain.from_iterable(map(_folders, options.compare))]
    network = _subject(options)
    out = epath.Path(options.out or _default_out(options))
    labs = {network.label: _lab(network, names, bounds, out, options)}
    finished: dict[str, Mapping[str, Any]] = {}
    for path in compared:
        label, other = _other(path, options)
        if label in labs or label in finished:
            raise InputError(f"Two networks are named {label}; rename a folder.")
        if isinstance(other, Subject):
            labs[label] = _lab(other, names, bounds, out / label, options)
        else:
            finished[label] = other
    reasons = {
        label: {n: study.missing(lab.subject) for n, study in STUDIES.items()}
        for label, (lab, _, _) in labs.items()
    }
    for _, _, folder in labs.values():
        make_folder(folder)
    try:
        for label, (lab, common, folder) in labs.items():
            for name in names:
                if name not in lab.earlier and not reasons[label][name]:
                    _study(name, lab, common, folder)
    finally:  # also of what there is when it is interrupted
        found = {label: lab.earlier for label, (lab, _, _) in labs.items()} | finished
        done = {name for studies in found.values() for name in studies}
        shown = [name for name in STUDIES if name in done.union(names)]
        study_report.write(out, shown, found, reasons, command=options.command)
    print(f"Report: {out / 'report.md'}")


def _study_names(text):
    names = list(STUDIES) if text == "all" else text.split(",")
    for name in names:
        if name not in STUDIES:
            raise unknown_name("study", name, STUDIES)
    return names


def _bounds(text):
    bounds = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)-(\d+)", part)
        if not found or int(found[1]) > int(found[2]):
            raise InputError(
                f"--bounds must be ranges such as 5-17,19-35, not {text!r}."
            )
        bounds.append((int(found[1]), int(found[2])))
    return tuple(bounds)


def _subject(options) -> Subject:
    given = {name for name in _WHAT if getattr(options, name)}
    weights = os.path.expanduser(options.weights or "")
    if given == {"workdir"}:
        return subject.from_run(options.workdir, data_dir=options.data_dir)
    if given == {"weights"} and (is_saved(weights) or not os.path.isfile(weights)):
        return subject.from_saved(weights, data_dir=options.data_dir)
    if "workdir" in given or not {"model", "weights", "dataset"} <= given:
        raise InputError(
            "Name a finished run by --workdir alone, weights of ours by --weights "
            "alone, or imported weights by --model, --weights and --dataset."
        )
    try:
        model_kwargs = ast.literal_eval(options.model_kwargs or "{}")
    except cli.NOT_A_LITERAL:
        model_kwargs = None
    if not isinstance(model_kwargs, dict):
        raise InputError(
            f"--model_kwargs must be a dict such as \"{{'shortcut': 'B'}}\", not "
            f"{options.model_kwargs!r}."
        )
    return subject.from_weights(
        weights,
        model=options.model,
        dataset=options.dataset,
        normalization=options.normalization or "imagenet",
        model_kwargs=model_kwargs,
        data_dir=options.data_dir,
    )


def _default_out(options):
    if options.workdir:
        return epath.Path(options.workdir) / "analysis"
    return epath.Path("runs") / f"analysis-{epath.Path(options.weights).stem}"


def _folders(text):
    """The folders of one --compare: a folder whose name has commas, or a list."""
    whole = cli.expanded(text)
    if epath.Path(whole).exists():
        return [whole]
    return [cli.expanded(part) for part in text.split(",") if part]


def _other(path, options):
    """Label of a network to lay over, and it, or its studies by name if done."""
    folder = epath.Path(path)
    if (folder / "summary.json").exists():
        found = subject.from_run(path, data_dir=options.data_dir)
        return found.label, found
    studies = {n: f for n in STUDIES if (f := _read(folder, n)) is not None}
    if not studies:
        raise InputError(
            f"{path} is neither a finished run nor the folder of an analysis."
        )
    return next(iter(studies.values()))["label"], studies


def _options(options, network, bounds) -> Options:
    available = len(network.test)
    images = options.images
    if images is None:
        on_cpu = network.devices[0].platform == "cpu"
        images = min(available, CPU_IMAGES) if on_cpu else available
    if images > available:
        raise InputError(
            f"--images is {images}, but {network.dataset} has {available} test images."
        )
    return Options(images, options.draws, options.seed, options.factors, bounds)


def _lab(network, names, bounds, folder, options):
    """The lab, what all of its studies' JSON begins with, and the folder they go to.

    Raises:
        InputError: a study that is wanted is there, of other settings.
    """
    settings = _options(options, network, bounds)
    common = {**_common(network, settings), "command": options.command}
    earlier = {}
    for name in STUDIES:
        found = _read(folder, name)
        if found is None or (options.force and name in names):
            continue
        compared = (*_IDENTITY, *sorted(STUDIES[name].uses))
        differ = [f for f in compared if found.get(f) != common[f]]
        if not differ:
            earlier[name] = found
        elif name in names:
            shown = ", ".join(
                f"{f} {found.get(f)} there and {common[f]} here" for f in differ
            )
            raise InputError(
                f"{folder / name}.json is a finished study of other settings "
                f"({shown}); choose another --out, or --force to do it again."
            )
    lab = Lab(network, settings, batch_size=options.batch_size, earlier=earlier)
    return lab, common, folder


def _study(name, lab, common, folder):
    """Does a study and writes its JSON."""
    start = time.perf_counter()
    result = STUDIES[name].run(lab)
    result = {
        "study": name,
        **common,
        "baseline_error_percent": lab.baseline,
        "seconds": time.perf_counter() - start,
        **result,
    }
    text = json.dumps(result, indent=1)
    replace_file(folder / f"{name}.json", text + "\n")
    lab.earlier[name] = json.loads(text)
    print(f"{lab.subject.label} {name}: {result['seconds']:.0f} s", flush=True)


def _read(folder, name):
    file = folder / f"{name}.json"
    return files.read_json(file) if file.exists() else None


def _common(network: Subject, settings: Options) -> dict[str, Any]:
    depth = network.stochastic_depth
    scaled = depth is not None and depth.scaling == "test"
    gates = _GATES[settings.factors] if scaled else "all 1"
    device = network.devices[0]
    return {
        "label": network.label,
        "source": network.source,
        "model": network.model_name,
        "model_kwargs": json.loads(json.dumps(dict(network.model_kwargs))),
        "dataset": network.dataset,
        "normalization": network.normalization,
        "num_blocks": network.model.num_blocks,
        "num_classes": network.model.num_classes,
        "residual": isinstance(network.model, ResNet) and network.model.has_shortcuts,
        "has_shortcuts": network.model.has_shortcuts,
        "weights_sha256": digest(network.variables),
        "images": settings.images,
        "test_images": len(network.test),
        "draws": settings.draws,
        "seed": settings.seed,
        "gates": gates,
        "bounds": [list(pair) for pair in settings.bounds],
        "device": f"{len(network.devices)} x {device.device_kind}",
        "machine": environment.machine(),
        "versions": environment.versions(["jax", "flax", "numpy"]),
    }


if __name__ == "__main__":
    sys.exit(main())
