"""Encoders that cannot be had are refused at once, in words that help."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import huggingface_hub.constants
import pytest

from sb_prune.recipe.sources import check_source

NAME = "facebook/wav2vec2-base"


class Hub(BaseHTTPRequestHandler):
    """Knows one model."""

    def do_GET(self):
        known = self.path == f"/api/models/{NAME}"
        self.send_response(200 if known else 404)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(json.dumps({"id": NAME, "siblings": []}).encode())

    def log_message(self, *_):
        """Nothing on stderr."""


@pytest.fixture
def point_to(monkeypatch):
    """Function: what huggingface_hub takes for the hub."""

    def use(address):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    return use


@pytest.fixture
def hub(point_to):
    """A hub on this machine."""
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    point_to(f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def no_hub(point_to):
    """An address where nobody listens."""
    point_to("http://127.0.0.1:9")


def test_unreachable_hub(no_hub, tmp_path):
    with pytest.raises(
        ValueError, match=f"wav2vec2_hub: {NAME} is no folder.*local folder"
    ):
        check_source(tmp_path, wav2vec2_hub=NAME)


def test_model_on_the_hub(hub, tmp_path):
    check_source(tmp_path, wav2vec2_hub=NAME)


@pytest.mark.parametrize("name", ["facebook/wav2vec9", "/no/such/folder"])
def test_no_such_model(hub, tmp_path, name):
    with pytest.raises(ValueError, match=f"hubert: {name} is neither"):
        check_source(tmp_path, hubert=name)


def test_folder_needs_no_network(no_hub, tmp_path):
    (tmp_path / "config.json").touch()
    check_source(tmp_path / "saved", wav2vec2_hub=str(tmp_path))


def test_folder_of_something_else(no_hub, tmp_path):
    with pytest.raises(ValueError, match="has no config.json; write a folder"):
        check_source(tmp_path / "saved", wav2vec2_hub=str(tmp_path))


def test_fetched_before_needs_no_network(no_hub, tmp_path):
    snapshot = tmp_path / "models--facebook--wav2vec2-base/snapshots/0a1b"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    check_source(tmp_path, wav2vec2_hub=NAME)
    with pytest.raises(ValueError, match="wav2vec2-large is no folder"):
        check_source(tmp_path, wav2vec2_hub="facebook/wav2vec2-large")
