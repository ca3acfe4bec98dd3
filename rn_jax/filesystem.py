# SPDX-License-Identifier: Apache-2.0
"""Files and folders, local or in a bucket (gs://...), by the paths people give them."""

import contextlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from typing import Any

from rn_jax.errors import InputError, missing_folder

# Of a name and of a path, in bytes. A path leaves room for the files below a folder.
_LONGEST_NAME = 255
_LONGEST_PATH = 4096 - 256
_MOST_JSON_BYTES = 64 * 2**20
_SCHEMES = ("gs", "s3", "az", "hf")
# Characters that have no meaning in a glob pattern or a URL.
_LITERAL = re.compile(r"[\w./+=,@-]*", re.ASCII)


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether the path is one of a bucket."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike) -> str:
    """Return the absolute path; that of a bucket as it is.

    Symbolic links are followed before "..", as the system follows them.

    Raises:
        InputError: no file can have this path: see `check`.
    """
    check(path)
    return os.fspath(path) if is_remote(path) else os.path.realpath(path)


def check(path: str | os.PathLike) -> None:
    """Raise an error for a path that no file or folder can have.

    Raises:
        InputError: an unknown scheme, a name that is not in UTF-8 or too long.
    """
    text = os.fspath(path)
    if is_remote(text):
        scheme = text.partition("://")[0]
        if scheme not in _SCHEMES:
            raise InputError(
                f"The path {text!r} begins with {scheme}://, which is not known: name "
                "a local path, or one of a bucket, as gs://BUCKET/FOLDER."
            )
        return
    if "\0" in text:
        raise InputError(f"The path {text!r} has a zero byte: leave it out.")
    whole = os.path.join(os.getcwd(), text)
    try:
        size = len(whole.encode())  # TensorStore, which writes checkpoints, takes UTF-8
    except UnicodeEncodeError:
        raise InputError(
            f"The path {whole!r} is not in UTF-8: rename the file or folder, or use a "
            "UTF-8 locale, such as LC_ALL=C.UTF-8."
        ) from None
    for name in text.split("/"):
        if len(name.encode()) > _LONGEST_NAME:
            raise InputError(
                f"The name {name[:40]!r}... in a path has {len(name.encode())} bytes; "
                f"a file or folder can have {_LONGEST_NAME}: choose a shorter one."
            )
    if size > _LONGEST_PATH:
        raise InputError(
            f"The path {whole[:40]!r}... has {size:,} bytes; at most {_LONGEST_PATH:,} "
            "are taken: choose a shorter one."
        )


def quoted(word: str) -> str:
    """Return the word as a line of a shell has it, without a newline."""
    if word.isprintable():
        return shlex.quote(word)
    return "$'{}'".format(
        "".join(
            f"\\{c}" if c in "\\'" else c if c.isprintable() else f"\\U{ord(c):08x}"
            for c in word
        ).replace("\\U0000000a", "\\n")
    )


@contextlib.contextmanager
def literal(folder: str, *, create: bool = False) -> Iterator[str]:
    """Give a path of a folder for libraries that interpret the characters of paths.

    Orbax and TFDS glob below a folder without escaping its own path ("[2026]", "*"),
    and TensorStore takes it for part of a URL ("\\\\", "gs:"). The path given is the
    folder's own if all of its characters are plain, else a symbolic link to it, which
    is removed afterwards.

    Args:
        folder: as of `absolute`.
        create: make the folder if it is missing.

    Raises:
        InputError: a link is needed, and the path of the folder for temporary files has
            such characters too.
    """
    if is_remote(folder) or _LITERAL.fullmatch(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="rn_jax-") as place:
        if not _LITERAL.fullmatch(place):
            raise InputError(
                f"Both {folder!r} and the folder for temporary files, "
                f"{os.path.dirname(place)!r}, have characters other than letters, "
                "digits and ./+=,@-_: rename one of them, or set TMPDIR."
            )
        if create:
            os.makedirs(folder, exist_ok=True)
        link = os.path.join(place, "folder")
        os.symlink(folder, link)
        yield link


def make_folder(path: Any) -> None:
    """Make a folder (a `Path` or `epath.Path`), and those above it, if it is missing.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {path} cannot be made ({error}): name another."
        ) from error


def replace_file(path: Any, content: str | bytes) -> None:
    """Write a file beside the old one, then put it in its place: all or nothing.

    Args:
        path: a `pathlib.Path` or `epath.Path`.
        content: of the file; text is encoded in UTF-8.

    Raises:
        InputError: it cannot be written, as when the disk is full.
    """
    if isinstance(content, str):  # a folder's name may hold bytes of any encoding
        content = content.encode("utf-8", "surrogateescape")
    new = path.with_name(f"{path.name[-60:]}.new")  # a name has at most 255 bytes
    try:
        new.write_bytes(content)
        new.replace(path)
    except FileNotFoundError as error:
        raise missing_folder(path) from error
    except (OSError, ValueError) as error:  # ValueError: a name with a zero in it
        raise InputError(
            f"{path} cannot be written to ({error}). What was there is kept: make "
            "room, and try again."
        ) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            new.unlink(missing_ok=True)


def read_json(file: Any) -> dict[str, Any]:
    """Return the dict in a JSON file (an `epath.Path`).

    Raises:
        InputError: the file is damaged, holds no dict, or is larger than 64 MiB.
    """
    if (size := file.stat().length) > _MOST_JSON_BYTES:
        raise InputError(
            f"{file} has {size:,} bytes; at most {_MOST_JSON_BYTES:,} are read."
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested too deeply
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{file} is damaged: it holds no JSON dict. Restore it, or choose another "
            "folder."
        )
    return content
