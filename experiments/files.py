# SPDX-License-Identifier: Apache-2.0
"""Reading of the small files that runs and studies leave."""

import json
from typing import Any

from etils import epath

from rn_jax.errors import InputError

MOST_BYTES = 64 * 2**20


def read_json(file: epath.Path) -> dict[str, Any]:
    """The dict in a file of JSON.

    Raises:
        InputError: the file is damaged, holds something else, or has more than 64 MiB.
    """
    if (size := file.stat().length) > MOST_BYTES:
        raise InputError(f"{file} has {size:,} bytes; at most {MOST_BYTES:,} are read.")
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):  # no UTF-8, no JSON, or nested too deeply
        content = None
    if not isinstance(content, dict):
        raise InputError(
            f"{file} is damaged, it holds no dict of JSON: restore it, or take another "
            "folder."
        )
    return content
