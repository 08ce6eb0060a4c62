"""`pyreft demo`: what is refused before a page is there."""

import sys

import pytest
from command_line import run
from encoder_decoder_models import make
from playground_of import save_adapter, save_base

from conftest import make_base


def test_without_gradio_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("demo", tmp_path) == 1
    assert "pip install 'pyreft[demo]'" in capsys.readouterr().err


@pytest.fixture
def gradio(monkeypatch):
    """It is taken to be installed: these commands end before it is imported."""
    monkeypatch.setattr("pyreft.demo.address.find_spec", lambda name: True)


def test_an_adapter_for_another_model_ends_the_command(gradio, tmp_path, capsys):
    other = make_base("llama", num_hidden_layers=4, hidden_size=64)
    adapter = save_adapter(other, tmp_path / "adapter")
    assert run("demo", save_base(tmp_path / "base"), adapter) == 1
    error = capsys.readouterr().err
    assert "hidden_size 64" in error
    assert "Traceback" not in error


def test_an_encoder_decoder_ends_the_command(gradio, tmp_path, capsys):
    make("t5", vocab_size=300).save_pretrained(tmp_path)
    assert run("demo", tmp_path) == 1
    assert "causal language models" in capsys.readouterr().err
