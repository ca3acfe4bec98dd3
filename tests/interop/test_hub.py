# SPDX-License-Identifier: Apache-2.0
"""Weights by a name of the Hugging Face Hub, from a server here that answers alike."""

import hashlib
import http.server
import importlib
import threading
from typing import ClassVar

import numpy as np
import pytest

from rn_jax import InputError
from rn_jax.interop import read_weights

pytest.importorskip("huggingface_hub", reason="an optional package")
safetensors = pytest.importorskip("safetensors.numpy")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


class Hub(http.server.BaseHTTPRequestHandler):
    """owner/network has model.safetensors in main and in the tag v1, and no more."""

    content = safetensors.save(WEIGHTS)
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(with_content=False)

    def do_GET(self):
        self.answer(with_content=True)

    def answer(self, *, with_content):
        self.asked.append(self.path)
        *_, repo, _, revision, file = ("", "", *self.path.split("/"))
        there = repo == "network" and revision in ("main", "v1", COMMIT)
        if not there or file != "model.safetensors":
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if with_content:
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{found.server_port}"
        constants = importlib.import_module("huggingface_hub.constants")
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE
        template = template.replace(constants.ENDPOINT, address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(Hub, "asked", [])
        yield Hub
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["owner/network", "owner/network@v1"])
def test_weights_by_name(server, name):
    found = read_weights(f"hf-hub:{name}")
    assert found.keys() == WEIGHTS.keys()
    np.testing.assert_array_equal(found["fc.weight"], WEIGHTS["fc.weight"])
    revision = "v1" if "@" in name else "main"
    path = f"/owner/network/resolve/{revision}/model.safetensors"
    assert path in server.asked


@pytest.mark.parametrize(
    "name, match",
    [
        ("owner/nothing", "cannot be had"),
        ("owner/network@v2", "cannot be had"),
        ("network", "as hf-hub:OWNER/NAME"),
        ("owner/network/file.bin", "as hf-hub:OWNER/NAME"),
    ],
)
def test_names_without_weights(server, name, match):
    with pytest.raises(InputError, match=match) as told:
        read_weights(f"hf-hub:{name}")
    assert f"hf-hub:{name}" in str(told.value) and "\n" not in str(told.value)
