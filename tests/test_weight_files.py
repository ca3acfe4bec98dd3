# SPDX-License-Identifier: Apache-2.0
"""Files of weights, and those of the Hugging Face Hub from a server like it."""

import hashlib
import http.server
import importlib
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors.numpy as safetensors

from rn_jax import InputError
from rn_jax.weight_files import is_hub_name, read_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"fc.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="PyTorch is an optional peer")


def assert_weights(found):
    assert found.keys() == WEIGHTS.keys()
    np.testing.assert_array_equal(found["fc.weight"], WEIGHTS["fc.weight"])


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_checkpoints_that_are_not_understood(torch, tmp_path):
    weights = {"fc.weight": torch.ones(3)}
    quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    itself: dict = {}
    itself["model"] = itself
    float8 = torch.ones(3).to(torch.float8_e5m2)
    for content, sentence in (
        (
            {"epoch": 3, "best": weights},
            r"more than weights: 'epoch' \(int\), 'best' \(dict\); weights are",
        ),
        ({"fc.weight": quantized}, r"'fc.weight' \(torch.qint8\)"),
        ({"fc.weight": float8}, r"'fc.weight' \(torch.float8_e5m2\)"),
        ({"model": {1: torch.ones(3)}}, "no weights by name"),
        (itself, r"more than weights: 'model' \(dict\)"),
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(InputError, match=sentence):
            read_weights(tmp_path / "a.pth")
    with pytest.raises(InputError, match="is a folder: name a file"):
        read_weights(tmp_path)


def test_files(torch, tmp_path):
    tensors = {key: torch.from_numpy(value) for key, value in WEIGHTS.items()}
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    safetensors.save_file(WEIGHTS, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert_weights(read_weights(tmp_path / name))


def test_files_that_are_no_weights(torch, tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_weights(tmp_path / "none.pth")
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(InputError, match=r"neither \.safetensors nor"):
        read_weights(tmp_path / "a.zip")
    (tmp_path / "b.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as weights alone"):
        read_weights(tmp_path / "b.pth")
    torch.save(torch.ones(2), tmp_path / "d.pth")
    with pytest.raises(InputError, match="contains no weights by name"):
        read_weights(tmp_path / "d.pth")
    (tmp_path / "e.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is not a file of safetensors"):
        read_weights(tmp_path / "e.safetensors")
    torch.save({"code": Path}, tmp_path / "c.pth")  # more than weights
    with pytest.raises(InputError, match="cannot be read as weights alone"):
        read_weights(tmp_path / "c.pth")


class Hub(http.server.BaseHTTPRequestHandler):
    """OWNER/network has model.safetensors in main and in the tag v1, and no more."""

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
    pytest.importorskip("huggingface_hub", reason="an optional package")
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


@pytest.mark.parametrize(
    "name", ["hf-hub:owner/network", "hf-hub:owner/network@v1", "timm/network"]
)
def test_weights_by_name(server, name):
    assert_weights(read_weights(name))
    repo, _, revision = name.removeprefix("hf-hub:").partition("@")
    path = f"/{repo}/resolve/{revision or 'main'}/model.safetensors"
    assert path in server.asked


def test_a_file_in_a_folder_that_has_the_name_of_an_owner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("timm/network.safetensors")
    Path("timm").mkdir()
    Path("timm/network.safetensors").write_bytes(b"")
    assert not is_hub_name("timm/network.safetensors")


@pytest.mark.parametrize(
    "name, match",
    [
        ("owner/nothing", "cannot be downloaded"),
        ("owner/network@v2", "cannot be downloaded"),
        ("network", "as hf-hub:OWNER/NAME"),
        ("owner/network/file.bin", "as hf-hub:OWNER/NAME"),
    ],
)
def test_names_without_weights(server, name, match):
    with pytest.raises(InputError, match=match) as told:
        read_weights(f"hf-hub:{name}")
    assert f"hf-hub:{name}" in str(told.value) and "\n" not in str(told.value)
