"""Adapters that adapter-hub's library wrote (tests/references/make_adapter_hub.py)."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from stored_llama import REFERENCES, TENSORS, read_tensors, stored_llama

from conftest import make_base
from pyreft import AdapterError, ReftModel
from pyreft.compat.adapter_hub import read_adapter_hub

FOLDER = REFERENCES / "adapter_hub"
EXPECTED, _about = read_tensors(FOLDER / "expected.safetensors")
CASES = json.loads(_about["cases"])
ROW = TENSORS["input_ids"][:1]
DIREFT = {"subtract_projection": False}


def assert_logits(model, expected):
    """Equal, and far from the bare model."""
    assert (expected - TENSORS["bare/logits"][:1]).abs().max() > 1e-2
    assert (model(ROW).logits - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_what_the_library_saved_gives_its_logits(name):
    model = ReftModel.from_pretrained(stored_llama(), FOLDER / name)
    assert_logits(model, EXPECTED[f"{name}/loaded"])


@pytest.mark.parametrize("name", CASES)
def test_what_it_does_not_save_is_said_and_gives_what_was_trained(name, tmp_path):
    said = DIREFT if CASES[name]["kind"] == "nodireft" else {}
    adapter = read_adapter_hub(FOLDER / name, **said)
    ReftModel.from_pretrained(stored_llama(), adapter).save_pretrained(tmp_path)
    model = ReftModel.from_pretrained(stored_llama(), tmp_path)
    assert_logits(model, EXPECTED[f"{name}/trained"])
    assert {c.kind for c in model.reft_config.representations} == {CASES[name]["kind"]}


def test_a_direft_is_not_told_from_a_noreft_and_the_log_says_so(caplog):
    for name in ("noreft", "direft"):
        read_adapter_hub(FOLDER / name)
    read_adapter_hub(FOLDER / "direft", **DIREFT)
    read_adapter_hub(FOLDER / "loreft")
    assert len(caplog.messages) == 2
    assert all("a NoReFT or a DiReFT" in message for message in caplog.messages)


def test_units_become_interventions_with_positions_and_arguments():
    def places(name):
        configs = read_adapter_hub(FOLDER / name).config.representations
        return [(config.layer, str(config.positions)) for config in configs], configs[0].arguments

    assert places("loreft")[0] == [(n, part) for n in range(3) for part in ("f2", "l2")]
    assert places("tied")[0] == [(0, "f2+l2"), (2, "f2+l2")]
    assert places("prefix")[0] == [(1, "f3")]
    assert places("suffix")[0] == [(1, "l1")]
    arguments = places("relu")[1]
    assert arguments["act_fn"] == "relu" and arguments["dropout"] == 0.1


def test_another_base_model_is_refused():
    with pytest.raises(AdapterError, match="hidden_size 16; this model has hidden_size 32"):
        ReftModel.from_pretrained(make_base("llama"), FOLDER / "loreft")


# ---- broken or hostile ---------------------------------------------------------------------------


def change_config(directory, **changes):
    path = directory / "adapter_config.json"
    entry = json.loads(path.read_text())
    entry["config"] |= changes
    path.write_text(json.dumps(entry))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "lora"}, "its method is 'lora'"),
        ({"r": "3"}, "field 'r'"),
        ({"r": 10**9}, "its rank is 3, adapter_config.json says 1000000000"),
        ({"prefix_positions": -1}, "prefix_positions"),
        ({"prefix_positions": True}, "prefix_positions"),
        ({"prefix_positions": 0, "suffix_positions": 0}, "no unit of ReFT edits a token"),
        ({"orthogonality": False}, "lacks tensor proj_layer.weight"),
        ({"orthogonality": "os.system"}, "orthogonality"),
        ({"non_linearity": 3}, "non_linearity"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message, tmp_path):
    directory = shutil.copytree(FOLDER / "relu", tmp_path / "adapter")
    change_config(directory, **changes)
    with pytest.raises(AdapterError, match=message):
        read_adapter_hub(directory)


@pytest.mark.parametrize("text", ["", "[]", '{"config": []}', '{"a":' * 100_000])
def test_a_config_that_is_none_is_refused(text, tmp_path):
    directory = shutil.copytree(FOLDER / "relu", tmp_path / "adapter")
    (directory / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match=r"cannot read .*adapter_config\.json"):
        read_adapter_hub(directory)


def test_an_activation_that_is_unknown_is_refused_and_the_model_is_as_it_was(tmp_path):
    directory = shutil.copytree(FOLDER / "relu", tmp_path / "adapter")
    change_config(directory, non_linearity="os.system")
    base = stored_llama()
    with pytest.raises(AdapterError, match=r"unknown act_fn 'os\.system'"):
        ReftModel.from_pretrained(base, directory)
    assert not any(module._forward_hooks for module in base.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, name: t.update({name: torch.full((3, 16), torch.inf)}), "not finite"),
        (lambda t, name: t.update({name: torch.zeros(3, 15)}), "not floats of shape"),
        (lambda t, name: t.update({name: torch.zeros(())}), "not floats of shape"),
        (lambda t, name: t.pop(name), "lacks tensor learned_source.weight"),
        (lambda t, name: t.update({"lm_head.weight": torch.zeros(1)}), "to no unit of ReFT"),
        (lambda t, name: t.update({f"decoder.{name}": t[name].clone()}), "several lists of layers"),
        (
            lambda t, name: t.update(
                {n: torch.zeros_like(v) for n, v in t.items() if n.endswith("original")}
            ),
            "not orthonormal",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, tmp_path):
    directory = shutil.copytree(FOLDER / "safetensors", tmp_path / "adapter")
    tensors = safetensors.torch.load_file(directory / "adapter.safetensors")
    change(tensors, next(n for n in tensors if n.endswith("units.0.learned_source.weight")))
    safetensors.torch.save_file(tensors, directory / "adapter.safetensors")
    with pytest.raises(AdapterError, match=message):
        read_adapter_hub(directory)


@pytest.mark.parametrize("name", ["adapter.safetensors", "pytorch_adapter.bin"])
def test_weights_that_are_cut_short_are_refused(name, tmp_path):
    source = FOLDER / ("safetensors" if name.startswith("adapter") else "relu")
    directory = shutil.copytree(source, tmp_path / "adapter")
    (directory / name).write_bytes((source / name).read_bytes()[:1000])
    with pytest.raises(AdapterError, match="cannot read"):
        read_adapter_hub(directory)
