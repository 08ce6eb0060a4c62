"""`pyreft serve`, without a server; and engines that cannot serve."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

import pyreft
from pyreft.cli.serving import server_command
from pyreft.installed.vllm import FACTS_OF_SERVING
from pyreft.serving import switch


def test_the_command_is_that_of_vllm():
    given = ["cats=a/b", "dogs=./c", "--port", "80", "--dtype=float32"]
    command, environment = server_command("model", given, (4, 2), load=True)
    assert command[command.index("--model") + 1] == "model"
    assert command[command.index("--lora-modules") + 1 :] == ["cats=a/b", "dogs=./c"]
    assert command[command.index("--port") + 1] == "80" and "--dtype=float32" in command
    assert json.loads(command[command.index("--additional-config") + 1]) == {"pyreft": {}}
    assert command[command.index("--max-cpu-loras") + 1] == "4"
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    command, environment = server_command("model", ["--port", "80"], (4, 8), load=False)
    assert "--lora-modules" not in command
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment


def test_an_adapter_without_a_name_is_refused():
    with pytest.raises(ValueError, match="NAME=ADAPTER, got 'directory'"):
        server_command("model", ["directory"], (1, 1), load=False)


def config(**changes):
    given = {"additional_config": {"pyreft": {}}, "lora_config": object()}
    given["parallel_config"] = SimpleNamespace(pipeline_parallel_size=1)
    return SimpleNamespace(**(given | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"additional_config": {"pyreft": {"a": 1}}}, "has no settings"),
        ({"lora_config": None}, "--enable-lora"),
        ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "pipeline"),
    ],
)
def test_an_engine_that_cannot_serve_does_not_start(monkeypatch, changes, reason):
    monkeypatch.setattr(switch, "FACTS_OF_SERVING", ())
    switch.require_possible(config())
    with pytest.raises(ValueError, match=reason):
        switch.require_possible(config(**changes))


def test_an_engine_is_left_alone_unless_it_is_asked():
    assert switch.serves_reft(config())
    assert not switch.serves_reft(config(additional_config={}))


def test_a_release_of_vllm_that_works_in_another_way_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for one in FACTS_OF_SERVING:
        one.forget()
        with pytest.raises(pyreft.UnsupportedReleaseError, match="serving adapters on vLLM relies"):
            one.require("serving adapters on vLLM")
        one.forget()


@pytest.mark.serving
def test_every_fact_holds_for_the_installed_vllm():
    python = os.environ.get("PYREFT_VLLM_PYTHON")
    if not python:
        pytest.skip("PYREFT_VLLM_PYTHON is not set")
    code = (
        "from pyreft.installed.vllm import FACTS_OF_SERVING as facts;"
        "print([one.explain() for one in facts if not one.holds])"
    )
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
