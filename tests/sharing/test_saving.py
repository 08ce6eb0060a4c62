"""Saving: what cannot come back is refused, and what was there is not lost."""

import os
import stat

import pytest
import torch
from round_trip import FILES, SAVED, assert_same, content, round_trip, wrap

import pyreft
from conftest import make_base
from pyreft import ReftModel

# ---- what cannot be saved is refused, and nothing is written -------------------------------------


def cannot_be_saved():
    return {
        "register it with pyreft.register_position": {
            "layer": 0,
            "low_rank_dimension": 2,
            "positions": lambda tokens: tokens.prompt,
        },
    }


@pytest.mark.parametrize("message", cannot_be_saved())
@pytest.mark.parametrize("there", [False, True])
def test_what_cannot_come_back_is_not_saved(message, there, tmp_path):
    directory = tmp_path / "adapter"
    if there:
        wrap().save_pretrained(directory)
    before = content(directory) if there else None
    with pytest.raises(ValueError, match=message):
        wrap(representations=cannot_be_saved()[message]).save_pretrained(directory)
    assert (content(directory) if there else None) == before
    assert directory.exists() == there


def test_a_base_model_that_learns_is_saved_as_well(tmp_path):
    model = wrap()
    model.enable_model_gradients()
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.5)
    model.save_intervention(tmp_path / "adapter")
    loaded = pyreft.ReftModel.load(tmp_path / "adapter", make_base("llama"))
    ours, theirs = model.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- where an adapter is saved -------------------------------------------------------------------


def test_a_directory_is_made_with_its_parents_and_holds_two_files_and_a_card(tmp_path):
    wrap().save_pretrained(str(tmp_path / "a" / "b"))
    assert sorted(os.listdir(tmp_path / "a" / "b")) == SAVED


def test_an_adapter_is_saved_beside_a_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    before = content(tmp_path)
    round_trip(wrap(), tmp_path)
    after = content(tmp_path)
    assert {name: after[name] for name in before} == before
    assert type(tokenizer).from_pretrained(tmp_path)("hello") == tokenizer("hello")


def test_an_adapter_replaces_an_adapter(tmp_path):
    wrap(kind="noreft", layers="all").save_pretrained(tmp_path)
    round_trip(wrap(), tmp_path)
    assert sorted(os.listdir(tmp_path)) == SAVED


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "adapter_model.safetensors", "notes.txt", "src/"]
)
def test_a_directory_that_holds_something_else_is_left_alone(name, tmp_path):
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else path.write_text("mine")
    with pytest.raises(pyreft.AdapterError, match=rf"holds {path.name}.*new directory, or pass"):
        wrap().save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == [path.name]
    wrap().save_pretrained(tmp_path, allow_other_files=True)
    assert sorted(os.listdir(tmp_path)) == sorted([*SAVED, path.name])


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_path_that_can_hold_no_directory_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(pyreft.AdapterError, match=name):
        wrap().save_pretrained(tmp_path / name)
    assert content(tmp_path) == {"file": b"mine"}


def test_nothing_is_saved_by_other_processes(tmp_path):
    wrap().save_pretrained(tmp_path / "adapter", is_main_process=False)
    assert not (tmp_path / "adapter").exists()


def test_files_get_the_permissions_that_the_user_gives_to_files(tmp_path):
    before = os.umask(0o077)
    try:
        wrap().save_pretrained(tmp_path / "adapter")
    finally:
        os.umask(before)
    for name in FILES:
        assert stat.S_IMODE((tmp_path / "adapter" / name).stat().st_mode) == 0o600


# ---- a save that is cut short --------------------------------------------------------------------


@pytest.mark.parametrize("moment", [1, 2])
def test_a_save_that_is_cut_short_leaves_no_mixture(moment, tmp_path, monkeypatch):
    """The new weights must never be read with the old config, which has the same shapes."""
    old, new = wrap(positions="l1"), wrap(positions="f1", seed=2)
    old.save_pretrained(tmp_path)
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) == moment:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        new.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == SAVED  # and no temporary file
    found = ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert_same(found, old if moment == 1 else new)
