# SPDX-License-Identifier: Apache-2.0
"""Files and folders, local or in a bucket (gs://...), whose paths users choose."""

import contextlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from typing import Any

from rn_jax.errors import InputError, missing_folder

# Limits of a name and a path, in bytes. A path leaves room for files below a folder.
_LONGEST_NAME = 255
_LONGEST_PATH = 4096 - 256
_MOST_JSON_BYTES = 64 * 2**20
_SCHEMES = ("gs", "s3", "az", "hf")
# Characters that have no meaning in a glob pattern or a URL.
_LITERAL = re.compile(r"[\w./+=,@-]*", re.ASCII)


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether the path is in a bucket."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike) -> str:
    """Return the absolute path; a bucket's path is unchanged.

    Symbolic links are followed before "..", as the system does.

    Raises:
        InputError: no file can have this path: see `check`.
    """
    check(path)
    return os.fspath(path) if is_remote(path) else os.path.realpath(path)


def expanded(path: str) -> str:
    """Return a path with "~" and "~user" expanded.

    Raises:
        InputError: no file can have this path: see `check`.
    """
    path = os.path.expanduser(path)
    check(path)
    return path


def check(path: str | os.PathLike) -> None:
    """Raise an error for a path that no file or folder can have.

    Raises:
        InputError: the scheme is unknown; a name is not in UTF-8 or too long.
    """
    text = os.fspath(path)
    if is_remote(text):
        scheme = text.partition("://")[0]
        if scheme not in _SCHEMES:
            raise InputError(
                f"The path {text!r} begins with the unknown scheme {scheme}://: name a "
                "local path, or one in a bucket, such as gs://BUCKET/FOLDER."
            )
        return
    if "\0" in text:
        raise InputError(f"The path {text!r} contains a null byte: remove it.")
    whole = os.path.join(os.getcwd(), text)
    try:
        size = len(whole.encode())  # TensorStore, which writes checkpoints, needs UTF-8
    except UnicodeEncodeError:
        raise InputError(
            f"The path {whole!r} is not in UTF-8: rename the file or folder, or use a "
            "UTF-8 locale, such as LC_ALL=C.UTF-8."
        ) from None
    for name in text.split("/"):
        if len(name.encode()) > _LONGEST_NAME:
            raise InputError(
                f"The name {name[:40]!r}... in a path has {len(name.encode())} bytes; "
                f"at most {_LONGEST_NAME} are allowed: choose a shorter one."
            )
    if size > _LONGEST_PATH:
        raise InputError(
            f"The path {whole[:40]!r}... has {size:,} bytes; at most {_LONGEST_PATH:,} "
            "are allowed: choose a shorter one."
        )


def plain(text: str) -> str:
    """Return a text with "_" for what is not a letter, a digit or one of ".=+-_"."""
    return re.sub(r"[^\w.=+-]+", "_", text)


def quoted(word: str) -> str:
    """Return the word quoted for a shell, on one line."""
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
    """Yield a path of a folder for libraries that interpret characters of paths.

    Orbax and TFDS glob below a folder without escaping its own path ("[2026]", "*"),
    and TensorStore reads it as part of a URL ("\\\\", "gs:"). The path is the
    folder's own if all of its characters are plain, else that of a symbolic link to it,
    which is removed afterwards.

    Args:
        folder: a path that `absolute` returned.
        create: make the folder if it is missing.

    Raises:
        InputError: a link is needed, but the path of the folder for temporary files has
            such characters too.
    """
    if is_remote(folder) or _LITERAL.fullmatch(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="rn_jax-") as place:
        if not _LITERAL.fullmatch(place):
            raise InputError(
                f"Both {folder!r} and the folder for temporary files, "
                f"{os.path.dirname(place)!r}, contain characters other than letters, "
                "digits and ./+=,@-_: rename one of them, or set TMPDIR."
            )
        if create:
            os.makedirs(folder, exist_ok=True)
        link = os.path.join(place, "folder")
        os.symlink(folder, link)
        yield link


def make_folder(path: Any) -> None:
    """Make a folder (a `Path` or `epath.Path`) and its parents if it is missing.

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
    """Write a file atomically: beside the old one, which it then replaces.

    Args:
        path: a `pathlib.Path` or `epath.Path`.
        content: the whole content; text is encoded in UTF-8.

    Raises:
        InputError: the file cannot be written, for example on a full disk.
    """
    if isinstance(content, str):  # a folder's name may contain bytes of any encoding
        content = content.encode("utf-8", "surrogateescape")
    new = path.with_name(f"{path.name[-60:]}.new")  # a name has at most 255 bytes
    try:
        new.write_bytes(content)
        new.replace(path)
    except FileNotFoundError as error:
        raise missing_folder(path) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(
            f"{path} cannot be written to ({error}). Its old content is kept: make "
            "room, and try again."
        ) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            new.unlink(missing_ok=True)


def read_json(file: Any) -> dict[str, Any]:
    """Return the dict in a JSON file (an `epath.Path`).

    Raises:
        InputError: the file is damaged, contains no dict, or exceeds 64 MiB.
    """
    if (size := file.stat().length) > _MOST_JSON_BYTES:
        raise InputError(
            f"{file} has {size:,} bytes; at most {_MOST_JSON_BYTES:,} are allowed."
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested too deeply
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{file} is damaged: it contains no JSON dict. Restore it, or choose "
            "another folder."
        )
    return content
