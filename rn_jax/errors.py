# SPDX-License-Identifier: Apache-2.0
"""The error for everything that the caller can correct."""

import contextlib
import difflib
import logging
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

# The most names that an error lists.
_MOST = 80

# A hint for names that may be those of timm or torchvision.
PUBLIC_WEIGHTS = "rn_jax.interop.load_public loads public weights by name"


class InputError(ValueError):
    """Bad input: one sentence that says what is wrong and what would be right.

    The commands print the sentence and exit with `exit_code`.
    """

    exit_code = 2


def unknown_name(
    kind: str, name: str, known: Iterable[str], hint: str = ""
) -> InputError:
    """Return the error for an unknown name, which lists similar names or all names.

    Args:
        kind: what has the name, such as "model".
        name: the unknown name.
        known: the existing names.
        hint: further help, as part of the sentence.
    """
    known, name = sorted(known), str(name)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    if near:
        names = f"similar: {', '.join(near)}"
    elif len(known) <= _MOST:
        names = f"available: {', '.join(known) or 'none'}"
    else:
        names = f"no similar name among {len(known)}"
    return InputError(f"Unknown {kind} {name!r}; {names}{hint and f'; {hint}'}.")


def shown(value: Any) -> str:
    """Return a value as a sentence can quote it: one line of at most 100 characters."""
    with contextlib.suppress(Exception):  # not an array, or it is being traced
        value = value.tolist()
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a number with too many digits, or an object whose repr fails
        text = f"a value of {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def must_be(name: str, wanted: str, value: Any) -> InputError:
    """Return the error "NAME must be WANTED, not VALUE."."""
    return InputError(f"{name} must be {wanted}, not {shown(value)}.")


def whole_number(name: str, value: Any) -> int:
    """Return an integer of any type as an int.

    Args:
        name: the value's name, for the error.
        value: an integer such as 3, np.int64(3) or jnp.int32(3).

    Raises:
        InputError: it is not a whole number of at least 1, or it is a bool.
    """
    try:
        is_bool = isinstance(value, bool | np.bool_)
        number = 0 if is_bool else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise must_be(name, "a whole number of at least 1", value)
    return number


@contextlib.contextmanager
def package_needed(what: str, install: str) -> Iterator[None]:
    """Turn an `ImportError` in the body into an `InputError` that says the remedy.

    Args:
        what: the beginning of the sentence, such as "digits comes with scikit-learn".
        install: what pip installs, quoted for a shell.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what}, which cannot be imported ({first_line(error)}): "
            f"pip install {install}"
        ) from error


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """Silence warnings that libraries send through absl; an `InputError` says more."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def missing_folder(file: Any) -> InputError:
    """Return the error for a file (a Path) whose folder does not exist."""
    return InputError(f"There is no folder {file.parent}: make it, or name another.")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
