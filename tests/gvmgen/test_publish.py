"""A model goes to the hub and comes back, through the real client and a hub made of a local server."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub.constants
import pytest
import torch
from huggingface_hub import ModelCard

from gvmgen.checkpoint import ModelInfo, load_model, save_model
from gvmgen.publish import from_pretrained, model_card, push_to_hub
from tests.gvmgen.networks import make_network

NAME, COMMIT = "somebody/music", "1" * 40
INFO = ModelInfo(
    preset="pocket",
    encoder_fingerprint={"audio": {"model": "EnCodec"}},
    step=40,
    trained=True,
    licence="CC-BY-NC-4.0, as MusicGen's weights that it was trained from",
    provenance={"data": "0123abcd", "segments": 12, "train": {"lr": 1e-5}},
)


class Hub(BaseHTTPRequestHandler):
    """The few addresses of the hub that a push and a download of small files ask for."""

    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = urlparse(self.path).path
        if path == "/api/repos/create":
            self.answer({"url": f"http://{self.headers['Host']}/{NAME}", "name": NAME})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == f"/api/models/{NAME}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        elif path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{NAME}/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        name = path.rpartition("/")[2]
        if path.startswith(f"/api/models/{NAME}/revision/"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": NAME, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self.answer([self.entry(name) for name in self.files])
        elif path.startswith(f"/{NAME}/resolve/") and name in self.files:
            self.send_file(self.files[name])
        else:
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": etag(content)}

    def answer(self, value: object) -> None:
        self.send_body(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send_file(self, content: bytes) -> None:
        self.send_body(content, {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT})

    def send_body(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub without a file, which the client takes for the hub."""
    handler = type("OneHub", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for module in (huggingface_hub.constants, huggingface_hub.hf_api):
        if hasattr(module, "ENDPOINT"):
            monkeypatch.setattr(module, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_pushed_model_comes_back_as_it_was(hub: type[Hub], tmp_path: Path) -> None:
    network = make_network()
    save_model(tmp_path / "model", network, INFO)
    (tmp_path / "model" / "optimizer.safetensors").write_bytes(b"of nobody's business")
    assert COMMIT in push_to_hub(tmp_path / "model", NAME, token="hf_none")
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    shutil.rmtree(tmp_path / "model")
    found, info = load_model(from_pretrained(NAME))
    assert info == INFO
    wanted = network.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.state_dict().items())


def test_a_local_model_is_its_own_folder(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), INFO)
    assert from_pretrained(str(tmp_path)) == tmp_path


def test_the_card_states_data_licence_metrics_and_recipe(tmp_path: Path) -> None:
    model = tmp_path / "checkpoints" / "step_00000040"
    network = make_network()
    save_model(model, network, INFO)
    log = [
        {"step": 20, "split": "test", "loss": 9.0},
        {"step": 40, "split": "test", "loss": 3.25, "loss_0": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    text = model_card(model, NAME, network.config, INFO)
    card = ModelCard(text)
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.library_name == "gvmgen"
    for wanted in (
        "12 segments",
        "0123abcd",
        "EnCodec",
        "as MusicGen's weights",
        "| loss | 3.2500 |",
        '"lr": 1e-05',
    ):
        assert wanted in card.text
    assert "9.0" not in card.text


def test_a_model_with_a_codec_elsewhere_is_not_published(tmp_path: Path) -> None:
    save_model(tmp_path, make_network(), ModelInfo(preset="pocket", codec="/somewhere/codec"))
    with pytest.raises(ValueError, match="its codec /somewhere/codec"):
        push_to_hub(tmp_path, NAME)
