# SPDX-License-Identifier: Apache-2.0
"""A network and its weights in one file, and the trained ones that come along.

A file is safetensors: arrays by the names of the unstacked layout, which do not depend
on what runs in a scan, and in its metadata, as JSON, what `create_model` needs to make
the network. Nothing in it is code.
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
from rn_jax.errors import InputError, first_line, missing_folder, unknown_name
from rn_jax.interop.torch import DTYPES, read_weights
from rn_jax.models import MODELS, create_model
from rn_jax.models.network import Network
from rn_jax.models.trunk import stack, unstack
from rn_jax.stochastic_depth import StochasticDepth

# Of the files; another number is refused.
FORMAT = 1
_KEY = "rn_jax"
# Fields that say nothing of what the network computes, and are not saved.
_OF_A_RUN = ("parent", "name", "axis_name")


def save(
    path: str | os.PathLike,
    model: Network,
    variables: Mapping[str, Any],
    *,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network and its variables into one file, which `load` reads.

    Args:
        path: ends in .safetensors; a file that is there already is replaced, and stays
            whole if that fails.
        model: of a name in the table, with other fields that are numbers, names, tuples
            or dicts of these. A network of your own is given a name by
            `register_model`, here and before it is loaded.
        variables: the collections that `model.init` gives, as "params" and
            "batch_stats", and no others; stacked or not.
        info: what else should be known, as JSON can say it: see `read_info`.

    Raises:
        InputError: another ending; a network that the table cannot make again;
            variables that are not this network's, so that `load` would refuse them; a
            file that cannot be written; or the package safetensors is not installed.
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
        raise InputError(f"info must be what JSON can say: {error}.") from error
    if not isinstance(variables, Mapping):
        raise InputError(
            f"The variables must be a dict, not a {type(variables).__name__}: pass "
            "{'params': ..., 'batch_stats': ...}, as model.init gives it."
        )
    leaves = dict(_leaves(variables))
    arrays = _checked("The dict of variables", name, _made(name, fields), leaves)
    tree = unstack(flax.traverse_util.unflatten_dict(arrays, sep="/"))
    arrays = flax.traverse_util.flatten_dict(tree, sep="/")
    arrays = {k: np.asarray(value, order="C") for k, value in arrays.items()}
    content = _safetensors().save(arrays, {_KEY: text})
    filesystem.replace_file(path, content)


def load(source: str | os.PathLike) -> tuple[Network, dict[str, Any]]:
    """A network and its variables: `model.apply(variables, images, train=False)`.

    Args:
        source: a file of `save`, or a name of `list_weights()`.

    Returns:
        The network, without parameters, and collections of arrays as it takes them.
        They are JAX's, but for dtypes that JAX would narrow: float64 stays NumPy's
        where jax_enable_x64 is not set.

    Raises:
        InputError: no such file or name; another kind of file; one of another format,
            of a network that is not in the table, or with arrays of other names, shapes
            or dtypes.
    """
    path = _file(source)
    found, arrays = _metadata(path), read_weights(path)
    try:
        # Every block has arrays: a file cannot ask for more blocks than these.
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
    except Exception as error:  # whatever a crafted file may lead to
        raise InputError(
            f"{path} does not hold a network as rn_jax.save writes it "
            f"({type(error).__name__})."
        ) from error


def _of_jax(array):
    narrow = jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype
    return array if narrow else jnp.asarray(array)


def is_saved(source: str | os.PathLike) -> bool:
    """Whether `load` is for that: a name of `list_weights()`, or a file of `save`."""
    path = _expanded(source)
    if not os.path.isfile(path):  # which says no to a name that is too long
        return str(source) in _trained()
    try:
        with _safetensors().safe_open(path, "numpy") as file:
            return _KEY in (file.metadata() or {})
    except Exception:  # whatever another kind of file makes the reader raise
        return False


def read_info(source: str | os.PathLike) -> dict[str, Any]:
    """What `save` was told about the weights, and what they are of.

    Of those of `list_weights()` and of `experiments.export`: the data set, how pixels
    are normalised, the test error and the config.

    Args:
        source: as for `load`.

    Returns:
        The entries of `info`, and "model" and "fields": the name, and what differs from
        the table, as JSON.

    Raises:
        InputError: as `load`, without reading the weights.
    """
    found = _metadata(_file(source))
    return {**found["info"], "model": found["model"], "fields": found["fields"]}


def list_weights() -> list[str]:
    """The names of trained weights that come with the package, for `load`."""
    return sorted(_trained())


def describe(model: Network) -> tuple[str, dict[str, Any]]:
    """A name of the table and fields, as JSON can say them, that make this network.

    `axis_name` is left out: it belongs to a training step.

    Raises:
        InputError: there is none.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"The network must be a Flax module, as create_model makes it, not a "
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
        except (InputError, TypeError) as error:  # no such field, or not to be said
            blame = blame or f" ({error})"
    raise InputError(
        f"No name of the table makes this {type(model).__name__} by fields that a file "
        f"can hold{blame}: give it a name by register_model."
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
    """Fields of a name's network if it is of that class, else None.

    Some may be missing: a user's entry need not be whole without arguments.
    """
    try:
        base = create_model(name)
    except Exception:  # whatever a builder raises
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
    """The network of a name and fields as JSON has them."""
    return create_model(name, **{k: _decoded(k, value) for k, value in fields.items()})


def _leaves(tree, path=()):
    """Path and value of the leaves of nested dicts: "params/stem_conv/kernel", ..."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, str(key)))
        else:
            yield "/".join((*path, str(key))), value


def _checked(what, name, model, leaves):
    """The variables of a network as NumPy's arrays, by their paths.

    The axes whose lengths depend on the images' size or channels may have any.

    Args:
        what: has the leaves; the sentence of an error begins with it.
        name: of the network, in the table.
        model: the network.
        leaves: path -> array, stacked or not.

    Raises:
        InputError: leaves that the network has not, or that it lacks, of another shape
            or kind, or with an axis of devices.
    """
    side, channels = MODELS[name].image_size, MODELS[name].channels
    layouts = _shapes(model, side, channels)
    own = max(layouts, key=lambda layout: len(layout.keys() & leaves.keys()))
    takes = dict.fromkeys(path.split("/")[0] for path in sorted(own, reverse=True))
    hint = ""
    if takes.keys() != {path.split("/")[0] for path in leaves}:
        whole = ", ".join(f"{collection!r}: ..." for collection in takes)
        hint = f": {name} takes {{{whole}}} and nothing else"
    for verb, paths, which in (
        ("lacks", own.keys() - leaves.keys(), ""),
        ("has", leaves.keys() - own.keys(), ", which the network has not"),
    ):
        if paths:
            more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
            raise InputError(f"{what} {verb} {min(paths)}{more}{which}{hint}.")
    arrays = {path: _array(what, path, leaf) for path, leaf in leaves.items()}
    first = {array.shape[:1] for array in arrays.values()}
    if len(first) == 1 and all(arrays[p].ndim == own[p].ndim + 1 for p in own):
        raise InputError(
            f"{what} has a first axis of {first.pop()[0]} devices in every array: take "
            "one copy, as flax.jax_utils.unreplicate does."
        )
    other = own
    if any(arrays[path].shape != own[path].shape for path in own):
        other = _shapes(model, 2 * side, channels + 1)[layouts.index(own)]
    for path, leaf in own.items():
        found = arrays[path]
        floats = [jnp.issubdtype(a.dtype, jnp.floating) for a in (found, leaf)]
        if (
            not _fits(found.shape, leaf.shape, other[path].shape)
            or len(set(floats)) > 1
        ):
            raise InputError(
                f"{what} has {path} as {found.dtype}{list(found.shape)}, but {name} "
                f"with these fields has {leaf.dtype}{list(leaf.shape)}."
            )
    return arrays


def _array(what, path, leaf):
    kind = type(leaf).__name__
    try:
        array = np.asarray(leaf)
    except Exception as error:  # of a tracer, a key, a buffer that was donated
        raise InputError(
            f"{what} has {path}, a {kind} that cannot be read: "
            f"{first_line(error).rstrip('.')}."
        ) from error
    dtype = array.dtype.newbyteorder("=")
    if not hasattr(leaf, "dtype") or dtype not in DTYPES.values():
        known = ", ".join(sorted(map(str, DTYPES.values())))
        raise InputError(
            f"{what} has {path}, a {kind} (as an array {array.dtype}): leaves are "
            f"arrays of {known}."
        )
    return array.astype(dtype, copy=False)


def _shapes(model, side, channels):
    """Path -> shape and dtype of a network's variables, first unstacked, then stacked.

    What the network has sown is left out: that is a tuple, and no variable.
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
    """Whether a shape is the network's, but for axes that differ in the other one."""
    return len(found) == len(own) and all(
        n == a or a != b for n, a, b in zip(found, own, other, strict=True)
    )


def _same(a, b):
    """Equality that looks into partials, which compare by identity."""
    a, b = (v.item() if isinstance(v, np.generic) else v for v in (a, b))
    if isinstance(a, partial) and isinstance(b, partial):
        return (
            _same(a.func, b.func)
            and _same(a.args, b.args)
            and _same(a.keywords, b.keywords)
        )
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


def _encoded(name, value):
    """A field as JSON can say it; a TypeError where it cannot."""
    if isinstance(value, StochasticDepth):
        return _encoded("", dataclasses.asdict(value))
    if name == "dtype" and value is not None:
        return value.name
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _encoded("", entry) for key, entry in value.items()}
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
    """Name -> file of the weights in the package."""
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
            f"--workdir={filesystem.quoted(str(source))} --format=safetensors makes a "
            "file of a run's network."
        )
    if path.suffix:
        return path
    raise unknown_name("trained network", str(source), trained)


def _metadata(path):
    safetensors = _safetensors()
    if not path.is_file():
        raise InputError(f"There is no file {path}.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            found = json.loads((file.metadata() or {}).get(_KEY, "null"))
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise InputError(
            f"{path} is not a file of safetensors, as rn_jax.save writes; weights of "
            "PyTorch projects are for interop.from_torch."
        ) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{path} was not written by rn_jax.save; weights of PyTorch projects are "
            "for interop.from_torch."
        )
    if found.get("format") != FORMAT:
        raise InputError(
            f"{path} is of format {found.get('format')!r}; this version reads {FORMAT}."
        )
    kinds = {"model": str, "fields": dict, "info": dict}
    whole = all(isinstance(found.get(key), kind) for key, kind in kinds.items())
    if not whole or set(found["fields"]) & set(_OF_A_RUN):
        raise InputError(f"{path} is damaged: its metadata are not those of a network.")
    return found


def _safetensors():
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise InputError(
            "Files of weights need the package safetensors: pip install safetensors."
        ) from error
    return safetensors.numpy
