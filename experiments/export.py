# SPDX-License-Identifier: Apache-2.0
"""Write a finished run's network into one file, for use outside the experiments.

python -m experiments.export --workdir=RUN [--format=stablehlo|safetensors|onnx]
    [--out=FILE] [--data_dir=DIR]

safetensors is the network and its weights, for rn_jax.load. stablehlo is one program,
uint8[B, H, W, C] -> logits f32[B, K] for any B, with normalisation and weights, for
CPU, CUDA and TPU: jax.export.deserialize(content).call(images). onnx is the same
program for ONNX Runtime and others; it needs jax2onnx.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

import rn_jax
from experiments import cli
from experiments.config import as_json
from experiments.training import trained
from rn_jax.data import get_spec
from rn_jax.errors import unknown_name
from rn_jax.filesystem import replace_file
from rn_jax.interop import to_onnx, to_stablehlo

FORMATS = ("stablehlo", "safetensors", "onnx")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.Parser(__doc__, export).call(
        argv, interrupted="Interrupted; nothing was written."
    )


def export(
    workdir: cli.Path,
    *,
    format: str = "stablehlo",
    out: cli.AnyPath | None = None,
    data_dir: cli.Path | None = None,
) -> epath.Path:
    """Write the file, and print where it is and how to read it.

    Args:
        workdir: folder of a finished run.
        format: stablehlo, safetensors or onnx.
        out: the file; None: in the run, named after the network.
        data_dir: folder of the data set; None: the run's.

    Returns:
        The file.

    Raises:
        InputError: there is no finished run, the file cannot be written, or the package
            that the format needs is not installed.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    run = trained.finished(workdir, data_dir=data_dir)
    out = epath.Path(out or epath.Path(workdir) / f"{run.config.model}.{format}")
    shown = json.dumps(str(out), ensure_ascii=False)  # also Python's literal
    if format == "safetensors":
        with tempfile.TemporaryDirectory() as folder:  # the run may be in a bucket
            file = Path(folder) / out.name[-60:]  # `save` writes to a longer name
            rn_jax.save(file, run.model, run.variables, info=facts(run))
            replace_file(out, file.read_bytes())
        how = f"model, variables = rn_jax.load({shown})"
    elif format == "onnx":
        shape, preprocess = _image_shape(run), run.experiment.preprocess
        program = to_onnx(run.model, run.variables, shape, preprocess=preprocess)
        replace_file(out, program)
        how = f"[logits] = onnxruntime.InferenceSession({shown}).run"
        how += '(["logits"], {"images": images})'
        how += f"  # uint8[B, {', '.join(map(str, shape))}]"
    else:
        shape, preprocess = _image_shape(run), run.experiment.preprocess
        program = to_stablehlo(run.model, run.variables, shape, preprocess=preprocess)
        replace_file(out, program)
        how = f"network = jax.export.deserialize(Path({shown}).read_bytes()).call"
        how += f"  # uint8[B, {', '.join(map(str, shape))}]"
    print(f"Wrote {out}, {out.stat().length / 2**20:.1f} MiB.\n{how}")
    return out


def facts(run: trained.Finished) -> dict[str, Any]:
    """Return what someone who has only the weights needs to know, as JSON."""
    config, summary = run.config, run.summary
    normalization: dict[str, Any] = {"kind": config.normalization}
    if (found := run.experiment.normalization) is not None:
        normalization |= {"mean": found.mean.tolist(), "std": found.std.tolist()}
    return {
        "dataset": config.dataset,
        "class_names": get_spec(config.dataset).class_names,
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
    """Return the shape of a run's test images."""
    size = run.config.eval_size
    crops = run.experiment.spec.crops_on_host
    return (size, size, 3) if crops else run.experiment.image_shape


if __name__ == "__main__":
    sys.exit(main())
