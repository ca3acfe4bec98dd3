# SPDX-License-Identifier: Apache-2.0
"""The error of everything that the caller can mend."""

import contextlib
import difflib
import operator
from collections.abc import Iterable
from typing import Any

# Names that an error lists.
_MOST = 80


class InputError(ValueError):
    """Bad input: one sentence that names what was wrong and what would be right.

    The commands print the sentence and exit with `exit_code`.
    """

    exit_code = 2


def unknown_name(
    kind: str, name: str, known: Iterable[str], hint: str = ""
) -> InputError:
    """The error for a name that is not there, with the near names or all of them.

    Args:
        kind: what it is a name of, as "model".
        name: as given.
        known: the names there are.
        hint: what else would help, as part of the sentence.
    """
    known, name = sorted(known), str(name)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    if near:
        told = f"near it: {', '.join(near)}"
    elif len(known) <= _MOST:
        told = f"there are: {', '.join(known) or 'none'}"
    else:
        told = f"none of the {len(known)} is near it"
    return InputError(f"Unknown {kind} {name!r}; {told}{hint and f'; {hint}'}.")


def shown(value: Any) -> str:
    """Return a value as a sentence can quote it: on one line, and not too long."""
    with contextlib.suppress(Exception):  # it is no array, or it is being traced
        value = value.tolist()
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a number with more digits than Python prints, or an object's
        text = f"a value of {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def whole_number(name: str, value: Any) -> int:
    """Return an integer of any type as an int.

    Args:
        name: what the value is of, for the error.
        value: such as 3, np.int64(3) or jnp.int32(3).

    Raises:
        InputError: it is not a whole number of at least 1, or it is a bool.
    """
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise InputError(
            f"{name} must be a whole number of at least 1, not {shown(value)}."
        )
    return number


def missing_folder(file: Any) -> InputError:
    """The error for a file (a Path) that is to be written where no folder is."""
    return InputError(f"There is no folder {file.parent}: make it, or name another.")


def first_line(error: Exception) -> str:
    """What an error says, cut to a part of a sentence."""
    return (str(error).strip().splitlines() or ["no message"])[0][:200]
