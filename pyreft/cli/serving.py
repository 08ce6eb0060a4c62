"""`pyreft serve`: the command of vLLM that serves adapters, and its environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import takewhile
from typing import NoReturn


def run_server(model: str, given: Sequence[str], numbers: tuple[int, int], load: bool) -> NoReturn:
    """Become the server.

    Args:
        model: The base model.
        given: "NAME=ADAPTER", the adapters at the start; after them, options of `vllm serve`.
        numbers: How many adapters may be in one step, and in memory.
        load: Whether clients may load adapters.

    Raises:
        ValueError: If an adapter has no name.
        ImportError: If vLLM is not installed.
    """
    command, environment = server_command(model, given, numbers, load)
    if find_spec("vllm") is None:
        raise ImportError("adapters are served by vLLM: pip install 'pyreft[vllm]'.")
    os.execve(sys.executable, [sys.executable, *command], os.environ | environment)


def server_command(
    model: str, given: Sequence[str], numbers: tuple[int, int], load: bool
) -> tuple[list[str], dict[str, str]]:
    """The arguments of Python that run the server, and its environment; see `run_server`."""
    named = list(takewhile(lambda one: not one.startswith("-"), given))
    options = given[len(named) :]
    wrong = [one for one in named if not all(one.partition("="))]
    if wrong:
        raise ValueError(f"an adapter is given as NAME=ADAPTER, got {wrong[0]!r}.")
    in_step, in_memory = numbers
    # Not the command `vllm`, which asks for its own release by a name that builds for CPUs lack.
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", model, *options]
    command += ["--enable-lora", "--additional-config", json.dumps({"pyreft": {}})]
    command += ["--max-loras", str(in_step), "--max-cpu-loras", str(max(in_step, in_memory))]
    if named:
        command += ["--lora-modules", *named]
    environment = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
    if load:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return command, environment
