"""`pyreft demo` as a process of its own, with a tiny model, and Chromium on its page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playground_of import make_playground, save_adapter

from conftest import make_base

# Chromium's own services are of no use here, and root has no sandbox.
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
)
# Runs the command, and writes each address that its process connects to.
WATCHED = """
import json, sys
log = open(sys.argv[1], "a", buffering=1)
sys.addaudithook(
    lambda event, args: event == "socket.connect"
    and isinstance(args[1], tuple)
    and print(json.dumps(args[1][0]), file=log)
)
from pyreft.cli import main
main(sys.argv[2:])
"""


class Demo:
    """A running `pyreft demo`.

    Args:
        folder: For all that it reads and writes.
        *adapters: Directories.
    """

    def __init__(self, folder, base, *adapters):
        self.runs, self.connections = folder / "runs", folder / "connections"
        command = [sys.executable, "-c", WATCHED, str(self.connections), "demo", base, *adapters]
        command += ["--runs", str(self.runs), "--no-browser"]
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=settings, stdout=subprocess.PIPE, stderr=log
            )
        line = self.process.stdout.readline().decode()
        assert "http" in line, self.log.read_text()
        self.address = re.search(r"http://\S+", line)[0]

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    playground = make_playground(folder)
    for name, seed in (("first", 1), ("second", 2)):
        save_adapter(playground.base, folder / name, seed)
    other = make_base("llama", num_hidden_layers=4, hidden_size=64)
    save_adapter(other, folder / "other")
    running = Demo(folder, str(folder / "base"), str(folder / "first"), str(folder / "second"))
    running.folder, running.playground = folder, playground
    yield running
    running.close()


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import sync_playwright

    path = os.environ.get("PYREFT_CHROMIUM") or shutil.which("chromium")
    assert path and Path(path).exists(), "these tests need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def user(chromium, demo):
    """Opens the page as a user of its own; every address that it asks for is in `asked`."""
    contexts = []

    def open_page():
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 900}))
        page = contexts[-1].new_page()
        page.set_default_timeout(120_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(demo.address)
        page.get_by_role("button", name="Answer").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
