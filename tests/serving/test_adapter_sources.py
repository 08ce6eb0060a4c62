"""What the source of a served adapter names, and the copies of what it named."""

import json
import os
from types import SimpleNamespace

import pytest

import pyreft
from conftest import make_base, randomize
from pyreft.serving import copies
from pyreft.serving.registry import Registry, join_path, split_path
from pyreft.serving.sources import Part, parse_source
from pyreft.sharing import AdapterError


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("owner/name", [("owner/name", 1)]),
        ("cats*0.5+dogs", [("cats", 0.5), ("dogs", 1)]),
        (" a/b * -2 + ./c*1 ", [("a/b", -2), ("./c", 1)]),
        ("cats*0.5", [("cats", 0.5)]),
    ],
)
def test_a_source_is_one_adapter_or_several_with_weights(source, parts):
    assert parse_source(source) == [Part(name, weight) for name, weight in parts]


@pytest.mark.parametrize("source", ["cats*", "*2", "cats*nan", "cats*inf+dogs", "a++b", "a*b", "+"])
def test_a_combination_that_says_nothing_is_refused(source):
    with pytest.raises(AdapterError, match=r"give adapters with finite weights, as in 'cats\*0.5"):
        parse_source(source)


def test_a_directory_wins_over_a_combination(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a+b").mkdir()
    assert parse_source("a+b") == [Part("a+b")]
    assert parse_source("a+c") == [Part("a"), Part("c")]


def test_the_path_of_a_beam_says_how_long_its_prompt_is():
    assert split_path(join_path("/a b", 7)) == ("/a b", 7)
    assert split_path(join_path("/a b", None)) == ("/a b", None)


class Request:
    def __init__(self, name, number, path, base=None, load_inplace=False):
        self.lora_name, self.lora_int_id, self.lora_path = name, number, path
        self.base_model_name, self.load_inplace = base, load_inplace


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Two adapters in directories, the copies of an engine, and its config."""
    registry = Registry()
    monkeypatch.setattr(copies, "REGISTRY", registry)
    for seed, name in enumerate(["cats", "dogs"]):
        save(tmp_path / name, seed)
    (tmp_path / "folder").mkdir()
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=make_base("llama").config),
        lora_config=SimpleNamespace(max_cpu_loras=4),
        additional_config={"pyreft": {"folder": str(tmp_path / "folder")}},
    )
    return SimpleNamespace(copies=copies.Copies(), config=config, registry=registry, at=tmp_path)


def save(directory, seed):
    config = pyreft.ReftConfig(layers=[0], positions="l1", rank=2)
    model = pyreft.get_reft_model(make_base("llama"), config)
    randomize(model, 1.0, seed=seed).save_pretrained(directory)


def ask(engine, name, source, **options):
    return engine.copies.request(Request(name, 1, str(source), **options), engine.config)


def served(engine, request):
    return Registry().get(request.lora_path, engine.config).fingerprint


def test_what_was_loaded_stays_when_its_directory_changes_or_vanishes(engine):
    first = ask(engine, "cats", engine.at / "cats")
    before = served(engine, first)
    save(engine.at / "cats", seed=7)
    assert served(engine, ask(engine, "cats", engine.at / "cats")) == before
    (engine.at / "cats").rename(engine.at / "gone")
    again = ask(engine, "cats", engine.at / "cats")
    assert (again.lora_path, again.lora_int_id) == (first.lora_path, first.lora_int_id)
    assert served(engine, again) == before


def test_equal_numbers_are_equal_adapters(engine):
    cats, dogs = (ask(engine, name, engine.at / name) for name in ("cats", "dogs"))
    other = ask(engine, "again", engine.at / "cats")
    assert cats.lora_int_id == other.lora_int_id != dogs.lora_int_id
    save(engine.at / "cats", seed=7)
    replaced = ask(engine, "cats", engine.at / "cats", load_inplace=True)
    assert replaced.lora_int_id != cats.lora_int_id and not replaced.load_inplace
    assert ask(engine, "cats", engine.at / "cats").lora_path == replaced.lora_path


def test_a_combination_may_name_what_is_loaded(engine):
    ask(engine, "cats", engine.at / "cats")
    by_name = ask(engine, "mix", f"cats*0.5+{engine.at / 'dogs'}")
    by_path = ask(engine, "mix2", f"{engine.at / 'cats'}*0.5+{engine.at / 'dogs'}")
    other = ask(engine, "mix3", f"cats*0.25+{engine.at / 'dogs'}")
    assert by_name.lora_int_id == by_path.lora_int_id != other.lora_int_id
    nested = ask(engine, "nested", "mix*2")
    adapter = engine.registry.get(nested.lora_path, engine.config)
    assert adapter.weights == [1.0, 2.0] and adapter.summed


def test_the_request_of_a_beam_keeps_its_mark(engine):
    found = ask(engine, "cats", join_path(str(engine.at / "cats"), 5))
    assert split_path(found.lora_path)[1] == 5
    assert split_path(found.lora_path)[0] == ask(engine, "cats", engine.at / "cats").lora_path


def test_copies_that_no_request_needs_are_deleted(engine):
    folder = engine.at / "folder"
    cats = Request("cats", 1, str(engine.at / "cats"))
    first = engine.copies.request(cats, engine.config).lora_path
    save(engine.at / "cats", seed=7)
    engine.copies.keep("cats", cats.lora_path, engine.copies.write(cats.lora_path, engine.config))
    engine.copies.note([cats], {first}, engine.config)
    assert os.path.exists(first) and len(list(folder.glob("*-*"))) == 2
    engine.copies.note([cats], set(), engine.config)
    assert not os.path.exists(first) and len(list(folder.glob("*-*"))) == 1
    engine.copies.note([], set(), engine.config)
    assert list(folder.iterdir()) == [folder / copies.LOADED]


def test_a_server_that_takes_over_has_what_was_loaded(engine):
    cats = Request("cats", 1, str(engine.at / "cats"))
    copy = engine.copies.request(cats, engine.config).lora_path
    assert engine.copies.restore(engine.config) is None
    engine.copies.note([cats], set(), engine.config)
    assert json.loads((engine.at / "folder" / copies.LOADED).read_text())
    after = copies.Copies()
    assert after.restore(engine.config) == [("cats", cats.lora_path)]
    assert after.take_restored("cats", cats.lora_path) == copy
    assert after.take_restored("cats", cats.lora_path) is None


def test_an_engine_without_a_folder_has_one_of_its_own(engine):
    engine.config.additional_config = {"pyreft": {}}
    found = ask(engine, "cats", engine.at / "cats")
    assert engine.copies.owns(found.lora_path, engine.config)
    assert not found.lora_path.startswith(str(engine.at))
