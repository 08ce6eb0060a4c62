"""The load test of the examples, against a server that answers at once."""

import json
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

LOAD = Path(__file__).parents[2] / "examples/serving/load.py"


class Answers(BaseHTTPRequestHandler):
    """Four tokens, one event each; another status for the model "none"."""

    asked: ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.send_response(404 if body["model"] == "none" else 200)
        self.end_headers()
        for token in range(4):
            event = {"choices": [{"token_ids": [token]}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


@pytest.fixture
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    Answers.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["load.py", *map(str, arguments)])
    runpy.run_path(str(LOAD), run_name="__main__")


def test_every_request_is_counted_and_drawn(url, monkeypatch, tmp_path):
    out = tmp_path / "a.json"
    given = ["--url", url, "--rate", "200", "--requests", "9", "--prompt-tokens", "5"]
    run(monkeypatch, *given, "--names", "a", "none", "b", "--out", out)
    found = json.loads(out.read_text())
    assert found["errors"] == 3 and len(found["samples"]["first"]) == 6
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(24)
    assert sorted(one["model"] for one in Answers.asked) == sorted(["a", "none", "b"] * 3)
    assert all(len(one["prompt"]) == 5 for one in Answers.asked)
    pytest.importorskip("matplotlib")
    run(monkeypatch, "--draw", out, "--picture", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_same_seed_gives_the_same_requests(url, monkeypatch):
    for _ in range(2):
        run(monkeypatch, "--url", url, "--rate", "500", "--requests", "4", "--names", "a")
    prompts = [one["prompt"] for one in Answers.asked]
    assert sorted(prompts[:4]) == sorted(prompts[4:])
