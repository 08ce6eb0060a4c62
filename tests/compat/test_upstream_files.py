"""Upstream's directories, as it wrote them (make_upstream_adapters.py), and as ours does."""

import json
import logging

import pytest
import torch
from one_edit import at, wrap as wrap_one
from stored_llama import REFERENCES, TENSORS, assert_logits, batch, read_tensors, stored_llama

import pyreft
from conftest import make_base
from pyreft import AdapterError, ReftModel
from pyreft.compat.upstream_files import is_upstream, read_upstream, write_upstream
from pyreft.sharing import read_adapter

FOLDER = REFERENCES / "upstream_adapters"
EXPECTED, _about = read_tensors(FOLDER / "expected.safetensors")
CASES = json.loads(_about["cases"])
# Where upstream's files say all there is to know.
PLAIN = [name for name, case in CASES.items() if not case["unsaid"]]


def content(directory):
    """The JSON and the tensors of upstream's files, by name."""
    config = json.loads((directory / "config.json").read_text())
    config.pop("transformers_version", None)
    files = {path.name: torch.load(path) for path in directory.glob("*.bin")}
    return config, files


def load(base, directory, **given):
    """A model with an adapter of upstream's, and what is said of it."""
    return ReftModel.from_pretrained(base, read_upstream(directory, **given))


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAIN)
def test_what_upstream_saved_gives_upstreams_logits(name):
    model = ReftModel.load(FOLDER / name, stored_llama())
    _, outputs = model(batch(), unit_locations=at(CASES[name]["locations"]))
    assert_logits(outputs.logits, EXPECTED[name])


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["positions"]])
def test_what_upstream_does_not_save_is_said_and_then_travels(name, tmp_path):
    case = CASES[name]
    given = {"positions": case["positions"], "arguments": case["unsaid"]}
    load(stored_llama(), FOLDER / name, **given).save_pretrained(tmp_path)
    model = ReftModel.from_pretrained(stored_llama(), tmp_path)
    assert_logits(model(**batch()).logits, EXPECTED[name])
    for config in model.reft_config.representations:
        assert case["unsaid"].items() <= config.arguments.items()


def test_a_head_that_upstream_trained_is_put_on_the_base_model_and_taken_off_again():
    base = stored_llama()
    model = ReftModel.load(FOLDER / "with_head", base)
    assert model.reft_config.modules_to_save == ["lm_head.weight"]
    trained = torch.load(FOLDER / "with_head" / "pytorch_model.bin")["lm_head.weight"]
    assert torch.equal(base.lm_head.weight, trained)
    assert torch.equal(model.unwrap().lm_head.weight, TENSORS["llama/lm_head.weight"])


def test_the_log_says_what_upstreams_files_do_not(caplog):
    read_upstream(FOLDER / "loreft_relu_dropout")
    read_upstream(FOLDER / "loreft_relu_dropout", "f2+l2", {"act_fn": "relu", "dropout": 0.25})
    activation, positions = caplog.messages
    assert "do not record act_fn and dropout" in activation and "read_upstream" in activation
    assert "do not record positions" in positions


def test_directions_that_upstream_left_skewed_are_read_as_they_are(caplog):
    adapter = read_upstream(FOLDER / "not_orthonormal", arguments={"act_fn": None})
    assert [config.kind for config in adapter.config.representations] == ["noreft"]
    assert "not orthonormal: it is read as noreft" in caplog.text


def test_upstreams_files_go_into_a_model_of_the_same_config():
    config = pyreft.ReftConfig(
        representations=[{"layer": layer, "low_rank_dimension": 3} for layer in range(3)]
    )
    model = pyreft.get_reft_model(stored_llama(), config).eval()
    model.load_intervention(FOLDER / "every_layer")
    _, outputs = model(batch(), unit_locations=at(CASES["every_layer"]["locations"]))
    assert_logits(outputs.logits, EXPECTED["every_layer"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arguments": {"rank": 3}}, "arguments are act_fn and dropout"),
        ({"positions": ["f2", "l2", "l3"]}, "positions for 3 interventions; there are 2"),
        ({"positions": "x3"}, "cannot read 'x3'"),
    ],
)
def test_what_is_said_of_upstreams_files_is_checked(given, message):
    with pytest.raises(ValueError, match=message):
        read_upstream(FOLDER / "prefix_and_suffix", **given)


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CASES if name != "not_orthonormal"])
def test_what_is_written_for_upstream_is_what_upstream_wrote(name, tmp_path):
    """Names, shapes, types and config are the same; R up to rounding, its completion freely."""
    write_upstream(read_upstream(FOLDER / name), tmp_path / "again")
    (config, files), (their_config, their_files) = map(content, (tmp_path / "again", FOLDER / name))
    assert config == their_config
    assert files.keys() == their_files.keys()
    for file, theirs in their_files.items():
        ours = files[file]
        assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {
            k: (v.shape, v.dtype) for k, v in theirs.items()
        }
        for key in theirs.keys() - {"proj_layer.bias"}:
            if "parametrizations" not in key:
                torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-6)


def test_an_adapter_comes_back_from_upstreams_format_with_the_same_numbers(kind, tmp_path):
    model = wrap_one(kind=kind, dropout=0.1)
    model.save_pretrained(tmp_path / "ours")
    write_upstream(read_adapter(tmp_path / "ours"), tmp_path / "theirs")
    assert is_upstream(tmp_path / "theirs")
    given = {"positions": "l1", "arguments": {"dropout": 0.1}}
    again = load(make_base("llama"), tmp_path / "theirs", **given)
    assert again.reft_config.to_dict() == model.reft_config.to_dict()
    ids = torch.arange(3, 15).view(2, 6)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_writing_leaves_the_random_numbers_of_the_run_alone(tmp_path):
    adapter = read_upstream(FOLDER / "direft")
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    write_upstream(adapter, tmp_path / "theirs")
    assert torch.equal(torch.randn(4), expected)


def test_what_is_lost_is_said(tmp_path, caplog):
    model = wrap_one(act_fn="relu", dropout=0.25, positions="f2+l1")
    model.save_pretrained(tmp_path / "ours")
    write_upstream(read_adapter(tmp_path / "ours"), tmp_path / "theirs")
    assert "f2+l1" in caplog.text and "relu" in caplog.text and "0.25" in caplog.text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"component": "head_attention_value_output", "heads": [0]}, "no component"),
        ({"representations": True}, "is tied"),
    ],
)
def test_what_upstream_does_not_have_is_not_written(config, message, tmp_path):
    if "representations" in config:
        shared = pyreft.LoreftIntervention(embed_dim=32, low_rank_dimension=2)
        config = {"representations": [{"layer": n, "intervention": shared} for n in (0, 1)]}
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(**config))
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(AdapterError, match=message):
        write_upstream(read_adapter(tmp_path / "ours"), tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()


def test_nothing_that_is_there_is_written_over(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    with pytest.raises(AdapterError, match="is there: name a new directory"):
        write_upstream(read_upstream(FOLDER / "loreft"), tmp_path / "theirs")
    assert [path.name for path in tmp_path.rglob("*")] == ["theirs", "thesis.tex"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("pyreft.compat.upstream_files.write_torch_file", fail)
    with pytest.raises(OSError, match="no space"):
        write_upstream(read_upstream(FOLDER / "loreft"), tmp_path / "theirs")
    assert not list(tmp_path.iterdir())


def test_our_own_directory_is_ours_whatever_lies_beside(tmp_path, caplog):
    model = wrap_one()
    model.save_pretrained(tmp_path)
    for path in (FOLDER / "loreft").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    caplog.set_level(logging.WARNING)
    again = ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert again.reft_config.to_dict() == model.reft_config.to_dict()
    assert not caplog.messages
