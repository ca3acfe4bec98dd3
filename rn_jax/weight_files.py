# SPDX-License-Identifier: Apache-2.0
"""Files of weights by name: safetensors, PyTorch's, and those of the Hugging Face Hub.

Reading one never runs code that it may contain.
"""

import argparse
import contextlib
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from rn_jax.errors import InputError, first_line, package_needed

# The dtypes of safetensors that are read. NumPy has no bfloat16 of its own.
DTYPES = {
    "BOOL": np.dtype(bool),
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BF16": jnp.dtype(jnp.bfloat16),
}
# Where checkpoints keep their weights; averaged ones first, as in timm.
_ENTRIES = (
    *("state_dict_ema", "model_ema", "state_dict", "model_state_dict"),
    *("model", "net", "network"),
)
_HUB_NAME = re.compile(r"(hf-hub:)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# The only file that is downloaded: it cannot contain code.
_HUB_FILE = "model.safetensors"
_logger = logging.getLogger(__name__)


def read_weights(path: str | os.PathLike) -> dict[str, Any]:
    """Read weights from a file without running any code that it may contain.

    The tensors together are at most as large as the file, whatever it claims.

    Args:
        path: a file .safetensors (needs the package safetensors), or .pt, .pth, .th or
            .bin (needs torch); of a checkpoint, the weights are read from a usual
            entry, see `find_entry`. Or a name of the Hugging Face Hub,
            "hf-hub:timm/resnet18.a1_in1k" or "timm/resnet18.a1_in1k", see `download`.

    Returns:
        Tensors or arrays by name, with the names and dtypes of the file.

    Raises:
        InputError: there is no such file or name; the file is of another kind, is
            damaged, contains more than weights, or claims to contain more than it can;
            a package is not installed.
    """
    path = os.fspath(path)
    path = download(path) if is_hub_name(path) else Path(os.path.expanduser(path))
    if not os.path.isfile(path):
        if os.path.isdir(path):
            raise InputError(f"{path} is a folder: name a file of weights.")
        raise InputError(f"There is no file {path}.")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".th", ".bin"):
        raise InputError(
            f"{path.name} is neither .safetensors nor one of PyTorch's .pt, .pth, .th "
            "and .bin."
        )
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    try:
        content = read(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"Reading {path.name} needs the package {error.name}."
        ) from error
    try:
        content = find_entry(content)
    except InputError as error:
        raise InputError(f"{path} contains no weights by name: {error}") from None
    more = [(name, value) for name, value in content.items() if not _is_plain(value)]
    if more:
        listed = some(f"{name[:100]!r} ({_kind(value)})" for name, value in more)
        raise InputError(
            f"{path} contains more than weights: {listed}; weights are tensors by "
            f"name, alone or in an entry called {', '.join(_ENTRIES)}."
        )
    claimed, size = sum(v.nbytes for v in content.values()), os.stat(path).st_size
    if claimed > size:
        raise InputError(
            f"{path} claims {claimed:,} bytes of weights, but the file has only "
            f"{size:,} bytes."
        )
    return dict(content)


def find_entry(content: Any) -> Mapping[str, Any]:
    """Return the weights of a checkpoint: the content itself or a usual entry of it.

    Usual entries are "state_dict", "model" and the like; of several, averaged weights
    come first, and the choice is logged as a warning.

    Raises:
        InputError: the weights are not a dict with names as keys.
    """
    for _ in range(3):  # nested entries; a crafted file may contain itself
        if not isinstance(content, Mapping) or not all(
            isinstance(key, str) for key in content
        ):
            raise InputError(
                "Weights are tensors by name, as model.state_dict() returns them, not "
                f"a {type(content).__name__}."
            )
        entries = [e for e in _ENTRIES if isinstance(content.get(e), Mapping)]
        entries = [e for e in entries if content[e]]
        if not entries:
            break
        if len(entries) > 1:
            _logger.warning("Of %s, the first is used.", " and ".join(entries))
        content = content[entries[0]]
    return content


def as_array(
    name: str, value: Any, dtypes: Iterable[np.dtype] = tuple(DTYPES.values())
) -> np.ndarray:
    """Convert a tensor or array to a NumPy array in native byte order.

    Args:
        name: the subject of the error's sentence.
        value: an array, or a PyTorch tensor on any device, whose bfloat16 becomes
            float32. The result may share its memory.
        dtypes: the allowed dtypes.

    Raises:
        InputError: the value is not a dense array of an allowed dtype.
    """
    allowed, reason = set(dtypes), ""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            # NumPy has no bfloat16, and PyTorch does not know JAX's.
            value = value.float() if _kind(value) == "torch.bfloat16" else value
        array = np.asarray(value)
    except Exception as error:  # a tracer, a key, a donated buffer, a sparse tensor
        array = np.asarray(None)
        reason = f" and cannot be read ({first_line(error).rstrip('.')})"
    dtype = array.dtype.newbyteorder("=")
    if not hasattr(value, "dtype") or dtype not in allowed:
        described = f" and dtype {value.dtype}" if hasattr(value, "dtype") else ""
        raise InputError(
            f"{name} has type {type(value).__name__}{described}{reason}: weights are "
            f"dense arrays of {', '.join(sorted(map(str, allowed)))}."
        )
    return array.astype(dtype, copy=False)


def some(names: Iterable[str]) -> str:
    """Return the first three names, and the number of the others, for a sentence."""
    first, rest = (names := list(names))[:3], len(names) - 3
    return f"{', '.join(first)}{f' and {rest} more' if rest > 0 else ''}"


def _kind(value):
    return str(getattr(value, "dtype", type(value).__name__))


def _is_plain(value):
    """Return whether a value is an array, or a tensor of a dtype of NumPy or JAX."""
    if isinstance(value, np.ndarray):
        return True
    import torch

    if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
        return False
    try:
        torch.empty(0, dtype=value.dtype).numpy()
    except TypeError:  # float8, or quantized
        return value.dtype == torch.bfloat16 and value.layout == torch.strided
    return value.layout == torch.strided


# --- Kinds of files -------------------------------------------------------------------


def _read_safetensors(path):
    import safetensors

    try:
        with safetensors.safe_open(path, "numpy"):
            pass  # refuses a header that claims too much before the file is read
        entries = dict(safetensors.deserialize(path.read_bytes()))
    except Exception as error:  # a damaged file raises errors of any kind
        raise InputError(f"{path} is not a file of safetensors.") from error
    if unknown := sorted({entry["dtype"] for entry in entries.values()} - set(DTYPES)):
        raise InputError(
            f"{path} is not a file of safetensors that can be read: it has tensors of "
            f"{unknown[0]}, and only {', '.join(DTYPES)} can be read."
        )
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in entries.items()
    }


def _read_torch(path):
    import torch

    try:
        _refuse_compressed(path)
        # Many checkpoints contain the options of a command, which cannot run anything.
        allow = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
        with (
            warnings.catch_warnings(action="ignore"),  # about old pickles
            allow([argparse.Namespace]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # a damaged file raises errors of any kind
        raise InputError(
            f"{path} cannot be read as weights alone; it is damaged or contains other "
            "Python objects."
        ) from error


def _refuse_compressed(path):
    """Raise an InputError for a ZIP file whose content is larger than the file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    size = os.stat(path).st_size
    if unpacked > size:
        raise InputError(
            f"{path} unpacks to {unpacked:,} bytes from {size:,}; PyTorch's own files "
            "are not compressed."
        )


# --- The Hugging Face Hub -------------------------------------------------------------


def is_hub_name(source: str | os.PathLike) -> bool:
    """Return whether a source is a name of the Hub and not a file.

    It begins with "hf-hub:", as in timm, or with "timm/", the owner of timm's weights.
    """
    name = str(source)
    return name.startswith("hf-hub:") or (
        name.startswith("timm/") and not os.path.exists(name)
    )


def download(name: str) -> Path:
    """Return a repository's model.safetensors, in huggingface_hub's cache.

    Args:
        name: "hf-hub:OWNER/NAME" for the newest, or "hf-hub:OWNER/NAME@REVISION";
            "hf-hub:" may be missing.

    Raises:
        InputError: the name has another form; there is no such repository, revision or
            file; there is neither Internet access nor a cached file; or the package
            huggingface_hub is not installed.
    """
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"Name weights of the Hugging Face Hub as hf-hub:OWNER/NAME, or "
            f"hf-hub:OWNER/NAME@REVISION, not {name}."
        )
    with package_needed(f"{name} is read with huggingface_hub", "huggingface_hub"):
        from huggingface_hub import hf_hub_download
    try:
        path = hf_hub_download(match["repo"], _HUB_FILE, revision=match["revision"])
    except Exception as error:  # of the connection, the Hub, or the disk
        raise InputError(
            f"{_HUB_FILE} of {name} cannot be downloaded ({type(error).__name__}: "
            f"{first_line(error)}): check the name and the Internet access, or "
            "download the file and name it instead."
        ) from error
    return Path(path)
