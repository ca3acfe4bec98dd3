# SPDX-License-Identifier: Apache-2.0
"""A network and its weights in one file, and the trained ones in this package.

The format is safetensors: arrays by the names of the unstacked layout, which do not
depend on what runs in a scan, and JSON metadata with the arguments of `create_model`
that make the network. A file contains no code.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rn_jax import filesystem
from rn_jax.errors import (
    PUBLIC_WEIGHTS,
    InputError,
    missing_folder,
    package_needed,
    unknown_name,
)
from rn_jax.models import MODELS, create_model
from rn_jax.models.network import Network
from rn_jax.models.normalization import Identity
from rn_jax.models.trunk import stack, unstack
from rn_jax.stochastic_depth import StochasticDepth
from rn_jax.weight_files import as_array, read_weights

# The version of the format; files of others are refused.
FORMAT = 1
_KEY = "rn_jax"
# Fields that do not change what the network computes at test, and are not saved.
_OF_A_RUN = ("parent", "name", "axis_name", "frozen")


def save(
    path: str | os.PathLike,
    model: Network,
    variables: Mapping[str, Any],
    *,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write a network and its variables to one file, which `load` reads.

    Args:
        path: a path that ends in .safetensors. An existing file is replaced, and stays
            intact if that fails.
        model: a network that a name of the table and fields can make; these fields are
            numbers, names, or tuples or dicts of them. Name a network of your own with
            `register_model`, here and before it is loaded.
        variables: exactly the collections that `model.init` returns, such as "params"
            and "batch_stats"; stacked or not.
        info: further JSON-compatible entries for `read_info`.

    Raises:
        InputError: the path has another ending; the table cannot make the network; the
            variables are not this network's, so that `load` would refuse them; the file
            cannot be written; or the package safetensors is not installed.
    """
    path = _expanded(path)
    if path.suffix != ".safetensors":
        raise InputError(f"Name the file {path.stem}.safetensors, not {path.name}.")
    if not path.parent.is_dir():
        raise missing_folder(path)
    name, fields = describe(model)
    info = {} if info is None else info
    if not isinstance(info, Mapping):
        raise InputError(f"info must be a dict, not a {type(info).__name__}.")
    metadata = {"format": FORMAT, "model": name, "fields": fields, "info": info}
    try:
        text = json.dumps(metadata)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"info must be JSON-compatible: {error}.") from error
    if not isinstance(variables, Mapping):
        raise InputError(
            f"The variables must be a dict, not a {type(variables).__name__}: pass "
            "{'params': ..., 'batch_stats': ...}, as model.init returns it."
        )
    leaves = dict(_leaves(variables))
    arrays = _checked("The dict of variables", name, _made(name, fields), leaves)
    tree = unstack(flax.traverse_util.unflatten_dict(arrays, sep="/"))
    arrays = flax.traverse_util.flatten_dict(tree, sep="/")
    arrays = {k: np.asarray(value, order="C") for k, value in arrays.items()}
    content = _safetensors().save(arrays, {_KEY: text})
    filesystem.replace_file(path, content)


def load(source: str | os.PathLike) -> tuple[Network, dict[str, Any]]:
    """Load a network and variables for `model.apply(variables, images, train=False)`.

    Args:
        source: a file that `save` wrote, or a name of `list_weights()`.

    Returns:
        The network, without parameters, and its collections of arrays. They are JAX
        arrays, except those whose dtype JAX would narrow: float64 stays in NumPy unless
        jax_enable_x64 is set.

    Raises:
        InputError: there is no such file or name; the file is of another kind or
            format, its network is not in the table, or its arrays have other names,
            shapes or dtypes.
    """
    path = _file(source)
    found, arrays = _metadata(path), read_weights(path)
    try:
        # Every block has arrays, so there cannot be more blocks than arrays.
        fields = found["fields"]
        sizes = (*fields.get("stage_sizes", ()), fields.get("depth", 0))
        claimed = sum(max(size, 0) for size in sizes)
        if claimed > len(arrays):
            raise InputError(
                f"{path} claims {claimed:,} blocks, but has {len(arrays):,} arrays."
            )
        model = _made(found["model"], fields)
        arrays = _checked(str(path), found["model"], model, arrays)
        tree = stack(flax.traverse_util.unflatten_dict(arrays, sep="/"), model)
        return model, jax.tree.map(_of_jax, tree)
    except InputError:
        raise
    except Exception as error:  # a crafted file may cause errors of any kind
        raise InputError(
            f"{path} was not written by rn_jax.save ({type(error).__name__})."
        ) from error


def _of_jax(array):
    narrow = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    return array if narrow else jnp.asarray(array)


def is_saved(source: str | os.PathLike) -> bool:
    """Return whether `load` reads it: a name of `list_weights()`, or a saved file."""
    path = _expanded(source)
    if not os.path.isfile(path):  # also false for a name that is too long
        return str(source) in _trained()
    try:
        with _safetensors().safe_open(path, "numpy") as file:
            return _KEY in (file.metadata() or {})
    except Exception:  # another kind of file raises errors of any kind
        return False


def read_info(source: str | os.PathLike) -> dict[str, Any]:
    """Return the `info` saved with weights, and the network they belong to.

    For `list_weights()` and files of `experiments.export`, `info` has the data set, the
    normalisation of pixels, the test error and the config.

    Args:
        source: see `load`.

    Returns:
        The entries of `info`; "model", the network's name in the table; and "fields",
        those that differ from the table, as JSON.

    Raises:
        InputError: see `load`; the weights are not read.
    """
    found = _metadata(_file(source))
    return {**found["info"], "model": found["model"], "fields": found["fields"]}


def list_weights() -> list[str]:
    """Return the names of the package's trained weights, for `load`."""
    return sorted(_trained())


def describe(model: Network) -> tuple[str, dict[str, Any]]:
    """Return a name of the table and JSON-compatible fields that make this network.

    `axis_name` and `frozen` are omitted, since they belong to a training step.

    Raises:
        InputError: no name and fields make it.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"The network must be a Flax module, as create_model returns it, not a "
            f"{type(model).__name__}."
        )
    own, candidates = _fields(model), []
    for name, entry in MODELS.items():
        theirs = _fields_of_entry(name, entry, type(model))
        if theirs is not None:
            same = {k for k in theirs if _same(own[k], theirs[k])}
            changed = {k: v for k, v in own.items() if k not in same}
            candidates.append((name, changed))
    blame = ""
    for name, changed in sorted(candidates, key=lambda candidate: len(candidate[1])):
        try:
            fields = {key: _encoded(key, value) for key, value in changed.items()}
            if _same(own, _fields(_made(name, fields))):
                return name, fields
        except (InputError, TypeError) as error:  # unknown, or not JSON-compatible
            blame = blame or f" ({error})"
    raise InputError(
        f"No name of the table makes this {type(model).__name__} with fields that a "
        f"file can contain{blame}: give it a name with register_model."
    )


def _fields(model):
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in _OF_A_RUN
    }
    dtype = fields.get("dtype")
    return {**fields, "dtype": None if dtype is None else jnp.dtype(dtype)}


def _fields_of_entry(name, entry, kind):
    """Return the fields of a name's network if it has that class, else None.

    Some may be missing: a user's entry may need further arguments.
    """
    try:
        base = create_model(name)
    except Exception:  # a user's builder may raise errors of any kind
        if entry.build is not kind:
            return None
        missing = dataclasses.MISSING
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
        known = {**defaults, "num_classes": entry.num_classes, **entry.arguments}
        return {
            k: v for k, v in known.items() if v is not missing and k not in _OF_A_RUN
        }
    return _fields(base) if type(base) is kind else None


def _made(name, fields):
    """Make the network of a name and fields as JSON has them."""
    return create_model(name, **{k: _decoded(k, value) for k, value in fields.items()})


def _leaves(tree, path=()):
    """Yield the path ("params/stem_conv/kernel") and value of each leaf of dicts."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield "/".join((*path, str(key))), value


def _checked(what, name, model, leaves):
    """Return the variables of a network as NumPy arrays by path.

    Axes whose lengths depend on the images' size or channels may have any length.

    Args:
        what: what has the leaves, as the beginning of an error's sentence.
        name: the network's name in the table.
        model: the network.
        leaves: path -> array, stacked or not.

    Raises:
        InputError: leaves are missing or left over, have another shape or kind, or an
            axis of devices.
    """
    side, channels = MODELS[name].image_size, MODELS[name].channels
    layouts = _shapes(model, side, channels)
    own = max(layouts, key=lambda layout: len(layout.keys() & leaves.keys()))
    needs = dict.fromkeys(path.split("/")[0] for path in sorted(own, reverse=True))
    hint = ""
    if needs.keys() != {path.split("/")[0] for path in leaves}:
        whole = ", ".join(f"{collection!r}: ..." for collection in needs)
        hint = f": {name} needs {{{whole}}} and nothing else"
    for verb, paths, which in (
        ("lacks", own.keys() - leaves.keys(), ""),
        ("has", leaves.keys() - own.keys(), ", which the network does not have"),
    ):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise InputError(f"{what} {verb} {min(paths)}{more}{which}{hint}.")
    arrays = {
        path: as_array(f"{what} has {path}, which", leaf)
        for path, leaf in leaves.items()
    }
    first = {array.shape[:1] for array in arrays.values()}
    if len(first) == 1 and all(arrays[p].ndim == own[p].ndim + 1 for p in own):
        raise InputError(
            f"{what} has a first axis of {first.pop()[0]} devices in every array: pass "
            "one copy, as flax.jax_utils.unreplicate returns it."
        )
    other = own
    if any(arrays[path].shape != own[path].shape for path in own):
        other = _shapes(model, 2 * side, channels + 1)[layouts.index(own)]
    for path, leaf in own.items():
        found = arrays[path]
        floats = [jnp.issubdtype(a.dtype, jnp.floating) for a in (found, leaf)]
        fits = _fits(found.shape, leaf.shape, other[path].shape)
        if not fits or len(set(floats)) > 1:
            raise InputError(
                f"{what} has {path} as {found.dtype}{list(found.shape)}, but {name} "
                f"with these fields has {leaf.dtype}{list(leaf.shape)}."
            )
    return arrays


def _shapes(model, side, channels):
    """Return shapes and dtypes of a network's variables by path, unstacked and stacked.

    Sown values are omitted: they are tuples, and not variables.
    """

    def init(image):
        tree = model.init({"params": jax.random.key(0)}, image, train=False)
        return unstack(tree), tree

    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    layouts = [
        flax.traverse_util.flatten_dict(tree, sep="/")
        for tree in jax.eval_shape(init, image)
    ]
    return [
        {path: leaf for path, leaf in layout.items() if not isinstance(leaf, tuple)}
        for layout in layouts
    ]


def _fits(found, own, other):
    """Return whether a shape equals `own`, except for axes in which `other` differs."""
    return len(found) == len(own) and all(
        n == a or a != b for n, a, b in zip(found, own, other, strict=True)
    )


def _same(a, b):
    """Return whether two fields are equal, also as partials of equal arguments."""
    a, b = (v.item() if isinstance(v, np.generic) else v for v in (a, b))
    if isinstance(a, partial) and isinstance(b, partial):
        return _same((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


def _encoded(name, value):
    """Return a field as JSON has it, or raise a TypeError."""
    if isinstance(value, StochasticDepth):
        return _encoded("", dataclasses.asdict(value))
    if name == "dtype" and value is not None:
        return value.name
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _encoded("", entry) for key, entry in value.items()}
    if value is Identity:
        return "none"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple | list):
        return [_encoded("", entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name or 'an entry'} is {value!r}")


def _decoded(name, value):
    if name == "stochastic_depth" and value is not None:
        return StochasticDepth(**value)
    if name == "dtype" and value is not None:
        return jnp.dtype(value)
    if isinstance(value, Mapping):
        return {key: _decoded("", entry) for key, entry in value.items()}
    if isinstance(value, list):
        return tuple(_decoded("", entry) for entry in value)
    return value


# --- Files --------------------------------------------------------------------------


def _trained():
    """Return the files of the package's weights by name."""
    folder = resources.files("rn_jax") / "trained"
    return {
        file.name.removesuffix(".safetensors"): file
        for file in (folder.iterdir() if folder.is_dir() else ())
        if file.name.endswith(".safetensors")
    }


def _expanded(path: str | os.PathLike) -> Path:
    return Path(os.path.expanduser(path))


def _file(source):
    path, trained = _expanded(source), _trained()
    if os.path.isfile(path):
        return path
    if str(source) in trained:
        return Path(str(trained[str(source)]))
    if os.path.isdir(path):
        raise InputError(
            f"{source} is a folder: python -m experiments.export "
            f"--workdir={filesystem.quoted(str(source))} --format=safetensors writes a "
            "run's network to a file."
        )
    if path.suffix:
        return path
    raise unknown_name("trained network", str(source), trained, PUBLIC_WEIGHTS)


def _metadata(path):
    safetensors = _safetensors()
    if not path.is_file():
        hint = "" if path.suffix == ".safetensors" else f"; {PUBLIC_WEIGHTS}"
        raise InputError(f"There is no file {path}{hint}.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            found = json.loads((file.metadata() or {}).get(_KEY, "null"))
    except Exception as error:  # a damaged file raises errors of any kind
        raise InputError(
            f"{path} is not a file of safetensors, as rn_jax.save writes; use "
            "interop.from_torch for weights of PyTorch projects."
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path} was not written by rn_jax.save; use interop.from_torch for "
            "weights of PyTorch projects."
        )
    if found.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {found.get('format')!r}; this version reads {FORMAT}."
        )
    kinds = {"model": str, "fields": dict, "info": dict}
    whole = all(isinstance(found.get(key), kind) for key, kind in kinds.items())
    if not whole or set(found["fields"]) & set(_OF_A_RUN):
        raise InputError(f"{path} is damaged: its metadata describes no network.")
    return found


def _safetensors():
    with package_needed("Files of weights need safetensors", "safetensors"):
        import safetensors.numpy
    return safetensors.numpy
