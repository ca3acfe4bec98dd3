# SPDX-License-Identifier: Apache-2.0
"""Writes a finished run's network into one file, for use outside the experiments.

python -m experiments.export --workdir=RUN [--format=stablehlo|safetensors]
    [--out=FILE] [--data_dir=DIR]

safetensors is what rn_jax.load reads: the network and its weights. stablehlo is one
program, uint8[B, H, W, C] -> logits f32[B, K] for any B, normalisation and weights
included, for CPU, CUDA and TPU: jax.export.deserialize(content).call(images).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

import rn_jax
from experiments import cli, subject
from experiments.config import as_json, dataset_spec
from experiments.feed import InMemory
from experiments.workdir import replace_file
from rn_jax.interop import to_stablehlo

FORMATS = ("stablehlo", "safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return cli.exit_code(
        lambda: export(_parse(argv)), interrupted="Interrupted; nothing was written."
    )


def _parse(argv):
    parser = cli.Parser(__doc__)
    add, path = parser.add_argument, parser.add_path
    path("--workdir", required=True, help="folder of a finished run")
    add("--format", default="stablehlo", choices=FORMATS)
    path("--out", help="the file; default: in the run, named by the network")
    path("--data_dir", help="of the data set; default: the run's")
    return parser.parse_args(argv)


def export(options: argparse.Namespace) -> None:
    """Writes the file and prints where it is and how to read it.

    Args:
        options: as `_parse` gives them.

    Raises:
        InputError: no finished run, or a file that cannot be written.
    """
    run = subject.finished(options.workdir, data_dir=options.data_dir)
    default = epath.Path(options.workdir) / f"{run.config.model}.{options.format}"
    out = epath.Path(options.out or default)
    shown = json.dumps(str(out), ensure_ascii=False)  # also Python's literal
    if options.format == "safetensors":
        with tempfile.TemporaryDirectory() as folder:  # the run may be in a bucket
            file = Path(folder) / out.name[-60:]  # `save` writes to a longer name
            rn_jax.save(file, run.model, run.variables, info=facts(run))
            replace_file(out, file.read_bytes())
        how = f"model, variables = rn_jax.load({shown})"
    else:
        program = to_stablehlo(
            run.model,
            run.variables,
            _image_shape(run),
            preprocess=run.experiment.preprocess,
        )
        replace_file(out, program)
        shape = ", ".join(map(str, _image_shape(run)))
        how = (
            f"network = jax.export.deserialize(Path({shown}).read_bytes()).call"
            f"  # uint8[B, {shape}]"
        )
    print(f"Wrote {out}, {out.stat().length / 2**20:.1f} MiB.\n{how}")


def facts(run: subject.Finished) -> dict[str, Any]:
    """What someone with the weights alone needs to know, as JSON can say it."""
    config, summary = run.config, run.summary
    normalization: dict[str, Any] = {"kind": config.normalization}
    if (found := run.experiment.normalization) is not None:
        normalization |= {"mean": found.mean.tolist(), "std": found.std.tolist()}
    return {
        "dataset": config.dataset,
        "class_names": dataset_spec(config.dataset).class_names,
        "image_shape": _image_shape(run),
        "normalization": normalization,  # of pixels 0..255: (image - mean) / std
        "test_error_percent": summary["test_error_percent"],
        "command": summary.get("command"),
        "seed": config.seed,
        "epochs": summary["epochs"],
        "config": as_json(config),
        "git_revision": summary["git_revision"],
    }


def _image_shape(run):
    """Of the images that it was tested on."""
    if isinstance(run.experiment.feed, InMemory):
        return run.experiment.image_shape
    return (run.config.eval_size, run.config.eval_size, 3)


if __name__ == "__main__":
    sys.exit(main())
