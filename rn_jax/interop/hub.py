# SPDX-License-Identifier: Apache-2.0
"""Files of weights from the Hugging Face Hub, where there is a network."""

import os
import re
from pathlib import Path

from rn_jax.errors import InputError, first_line

_NAME = re.compile(r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# The one file that is read: it cannot hold code.
_FILE = "model.safetensors"


def is_hub_name(source: str | os.PathLike) -> bool:
    """Whether it begins with "hf-hub:", as timm also writes names of the Hub."""
    return str(source).startswith("hf-hub:")


def download(name: str) -> Path:
    """The model.safetensors of a repository, kept by huggingface_hub in its cache.

    Args:
        name: "hf-hub:OWNER/NAME", the newest, or "hf-hub:OWNER/NAME@REVISION".

    Raises:
        InputError: another form; no such repository, revision or file; no network and
            nothing in the cache; or the package huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"Name weights of the Hugging Face Hub as hf-hub:OWNER/NAME, or "
            f"hf-hub:OWNER/NAME@REVISION, not {name}."
        )
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError as error:
        raise InputError(
            "Weights of the Hugging Face Hub need the package huggingface_hub: "
            "pip install huggingface_hub."
        ) from error
    try:
        return Path(hf_hub_download(match["repo"], _FILE, revision=match["revision"]))
    except Exception as error:  # of the network, the Hub's answer, the disk
        raise InputError(
            f"{_FILE} of {name} cannot be had ({type(error).__name__}: "
            f"{first_line(error)}): mend the name or the network, or download the file "
            "and name it instead."
        ) from error
