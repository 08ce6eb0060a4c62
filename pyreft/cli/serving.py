"""`pyreft serve`: the command of vLLM that serves adapters, its environment, and its restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from pyreft.serving.copies import LOADED

# Seconds. A server that lasted is started again at once, others after pauses that double.
LASTING, FIRST_PAUSE, LONGEST_PAUSE = 600, 1, 60


def run_server(model: str, given: Sequence[str], numbers: tuple[int, int], load: bool) -> int:
    """Run the server, and again with the adapters that it had loaded if it dies.

    Args:
        model: The base model.
        given: "NAME=ADAPTER", the adapters at the start; after them, options of `vllm serve`.
        numbers: How many adapters may be in one step, and in memory.
        load: Whether clients may load adapters.

    Returns:
        The exit status of the server, if it was stopped or did not start.

    Raises:
        ValueError: If an adapter has no name.
        ImportError: If vLLM is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="pyreft-") as folder:
        command, environment = server_command(model, given, numbers, load, folder)
        if find_spec("vllm") is None:
            raise ImportError("adapters are served by vLLM: pip install 'pyreft[vllm]'.")
        return supervise([sys.executable, *command], environment, Path(folder) / LOADED)


def supervise(command: Sequence[str], environment: Mapping[str, str], started: Path) -> int:
    """Run a command until it is stopped by a signal, or ends before it started.

    Args:
        command: The command.
        environment: What is added to the environment.
        started: A file that it writes when it has started.

    Returns:
        The exit status of its last run.
    """
    running: subprocess.Popen[bytes] | None = None
    stopped, pause = threading.Event(), 0

    def stop(number: int, frame: object) -> None:
        stopped.set()
        if running is not None:
            running.send_signal(number)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            written, begun = _time(started), time.monotonic()
            # In a group of its own, so that no process of it stays when the server is gone.
            running = subprocess.Popen(
                command, env=os.environ | environment, start_new_session=True
            )
            if stopped.is_set():  # while it was being started
                running.terminate()
            status = running.wait()
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            # vLLM's server ends with status 0 as well when its engine has died.
            if stopped.is_set() or _time(started) == written:
                return status
            lasted = time.monotonic() - begun > LASTING
            pause = 0 if lasted else min(max(FIRST_PAUSE, 2 * pause), LONGEST_PAUSE)
            print(
                f"pyreft: the server ended with status {status}; it starts again in {pause} s with "
                "the adapters that it had loaded.",
                file=sys.stderr,
                flush=True,
            )
            if stopped.wait(pause):
                return status
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _time(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


def server_command(
    model: str, given: Sequence[str], numbers: tuple[int, int], load: bool, folder: str
) -> tuple[list[str], dict[str, str]]:
    """The arguments of Python that run the server, and its environment; see `run_server`.

    Args:
        folder: For copies of the adapters.
    """
    named = list(takewhile(lambda one: not one.startswith("-"), given))
    options = given[len(named) :]
    wrong = [one for one in named if not all(one.partition("="))]
    if wrong:
        raise ValueError(f"an adapter is given as NAME=ADAPTER, got {wrong[0]!r}.")
    in_step, in_memory = numbers
    # Not the command `vllm`, which asks for its own release by a name that builds for CPUs lack.
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
    command += ["--enable-lora", "--additional-config", json.dumps({"pyreft": {"folder": folder}})]
    command += ["--max-loras", str(in_step), "--max-cpu-loras", str(max(in_step, in_memory))]
    if named:
        command += ["--lora-modules", *named]
    environment = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    if load:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return command, environment
