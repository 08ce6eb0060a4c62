"""Pushed to the Hub and loaded from there: over HTTP, by processes that know nothing but a name."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, connect
from huggingface_hub import constants
from round_trip import IDS, assert_same, wrap
from stored_llama import REFERENCES, stored_llama

from conftest import KINDS, make_base
from pyreft import AdapterError, ReftConfig, ReftModel, get_reft_model

pytestmark = [
    # What huggingface_hub does without Xet.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
]

READER = Path(__file__).with_name("hub_reader.py")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub where alice is logged in."""
    with HubServer() as server:
        server.tokens["alices"] = "alice"
        connect(server, monkeypatch, tmp_path / "cache", token="alices")
        yield server


def digest(model):
    with torch.no_grad():
        return hashlib.sha256(model(IDS).logits.numpy().tobytes()).hexdigest()


def with_lora():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = get_peft_model(make_base("llama"), lora)
    config = ReftConfig(layers=[1], rank=2, positions="l1")
    return get_reft_model(base, config, disable_model_grads=False).eval()


def add_base(hub, repo_id, base, directory):
    base.save_pretrained(directory)
    return hub.add(repo_id, {path.name: path.read_bytes() for path in directory.iterdir()})


def test_every_kind_with_heads_is_bit_equal_in_a_fresh_process(hub, tmp_path):
    made = {kind: wrap(kind=kind, layers=[0, 2], positions="f1+l1") for kind in KINDS}
    made["head"] = wrap(modules_to_save=["lm_head"])
    made["classifier"] = wrap("bert", modules_to_save=["classifier"])
    made["lora"] = with_lora()
    made["several"] = several = wrap(layers=[1])
    several.add_adapter("other", ReftConfig(kind="nodireft", layers=[0, 2], positions="l2"))
    several.set_adapter("other")
    commits = {}
    for architecture in ("llama", "bert"):
        base = make_base(architecture)
        commits[architecture] = add_base(
            hub, f"alice/{architecture}", base, tmp_path / architecture
        )
    for name, model in made.items():
        with torch.no_grad():
            for module in model.trained.tensors().values():
                module.mul_(1.5)
        # As if it had been loaded from there.
        architecture = model.config.model_type
        model.config.name_or_path = f"alice/{architecture}"
        model.config._commit_hash = commits[architecture]
        model.push_to_hub(f"alice/{name}", private=True)
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "alices", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(READER), *made]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {name: digest(model) for name, model in made.items()}


# ---- where it is, and when -----------------------------------------------------------------------


def load(name, **where):
    return ReftModel.from_pretrained(make_base("llama"), name, **where)


def test_revisions_and_subfolders_hold_adapters_of_their_own(hub):
    first, second, third, fourth = (wrap(seed=seed) for seed in range(1, 5))
    commit = first.push_to_hub("alice/adapter", commit_message="the first").oid
    second.push_to_hub("alice/adapter")
    third.push_to_hub("alice/adapter", revision="next")
    fourth.push_to_hub("alice/adapter", subfolder="deep/below")
    assert_same(load("alice/adapter", revision=commit), first)
    assert_same(load("alice/adapter"), second)
    assert_same(load("alice/adapter", revision="main"), second)
    assert_same(load("alice/adapter", revision="next"), third)
    assert_same(load("alice/adapter", subfolder="deep/below"), fourth)


@pytest.mark.parametrize("subfolder", [None, "deep"])
def test_upstreams_repositories_load_by_name(subfolder, hub, tmp_path):
    folder = REFERENCES / "upstream_adapters" / "prefix_and_suffix"
    place = "" if subfolder is None else f"{subfolder}/"
    files = {place + path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add("alice/upstream", files | {place + "evil.bin": b"not to be downloaded"})
    there = {"subfolder": subfolder, "cache_dir": tmp_path / "mine"}
    found = ReftModel.from_pretrained(stored_llama(), "alice/upstream", **there)
    assert_same_weights(found, ReftModel.from_pretrained(stored_llama(), folder))
    assert not list((tmp_path / "mine").rglob("evil.bin"))
    again = ReftModel.from_pretrained(
        stored_llama(), "alice/upstream", local_files_only=True, **there
    )
    assert_same_weights(again, found)


def assert_same_weights(found, expected):
    for one, other in zip(
        found.interventions.parameters(), expected.interventions.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_a_pull_request_changes_nothing_until_it_is_merged(hub):
    hub.add("bob/adapter", {})
    old, new = wrap(), wrap(seed=2)
    with pytest.raises(AdapterError, match=r"the token may not do that \(403\)"):
        new.push_to_hub("bob/adapter")
    hub.tokens["bobs"] = "bob"
    old.push_to_hub("bob/adapter", token="bobs")
    info = new.push_to_hub("bob/adapter", create_pr=True)
    assert info.pr_url == f"{hub.url}/bob/adapter/discussions/1"
    assert_same(load("bob/adapter"), old)
    assert_same(load("bob/adapter", revision="refs/pr/1"), new)


def test_a_name_without_an_owner_is_ones_own(hub):
    wrap().push_to_hub("adapter")
    assert_same(load("alice/adapter"), wrap())


def test_several_adapters_are_loaded_from_the_hub_onto_one_base_model(hub):
    first, second = wrap(), wrap(kind="noreft", layers=[0, 2], seed=2)
    first.push_to_hub("alice/adapter")
    second.push_to_hub("alice/adapter", subfolder="second", revision="next")
    model = load("alice/adapter")
    model.load_adapter("alice/adapter", "second", subfolder="second", revision="next")
    assert digest(model) == digest(first)
    model.set_adapter("second")
    assert digest(model) == digest(second)
    with pytest.raises(AdapterError, match="there is no such file"):
        model.load_adapter("alice/adapter", "third", subfolder="third")
    assert list(model.adapters) == ["default", "second"]
    model.push_to_hub("alice/both")
    assert_same(load("alice/both"), first)
    assert_same(load("alice/both", subfolder="second"), second)


def test_upstreams_save_and_load_reach_the_hub(hub, tmp_path):
    model, base = wrap(), make_base("llama")
    model.save(str(tmp_path / "saved"), save_to_hf_hub=True, hf_repo_name="alice/adapter")
    assert_same(load(tmp_path / "saved"), model)
    assert_same(ReftModel.load("alice/adapter", base, from_huggingface_hub=True), model)
    copied = tmp_path / "copied"
    base = make_base("llama")
    ReftModel.load("alice/adapter", base, str(copied), from_huggingface_hub=True)
    assert_same(load(copied), model)
    with pytest.raises(ValueError, match="local_directory is for downloads"):
        ReftModel.load(copied, base, local_directory="elsewhere")


def test_offline_the_cache_is_used(hub, monkeypatch, tmp_path):
    model = wrap()
    model.push_to_hub("alice/adapter", subfolder="below")
    load("alice/adapter", subfolder="below", cache_dir=tmp_path / "other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    assert_same(load("alice/adapter", subfolder="below", cache_dir=tmp_path / "other"), model)
    with pytest.raises(AdapterError, match=r"not in the cache.*HF_HUB_OFFLINE=1"):
        load("alice/adapter", subfolder="below")
    with pytest.raises(AdapterError, match=r"cannot be pushed.*HF_HUB_OFFLINE=1"):
        model.push_to_hub("alice/adapter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert_same(
        load(
            "alice/adapter",
            subfolder="below",
            cache_dir=tmp_path / "other",
            local_files_only=True,
        ),
        model,
    )
    with pytest.raises(AdapterError, match=r"not in the cache.*local_files_only"):
        load("alice/adapter", subfolder="below", local_files_only=True)
    assert len(hub.requests) == asked


# ---- what is downloaded --------------------------------------------------------------------------


def test_only_the_files_that_are_read_are_downloaded(hub):
    wrap().push_to_hub("alice/adapter")
    evil = pickle.dumps(print)
    names = ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "evil.pkl", "modeling.py"]
    names += ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"]
    hub.add("alice/adapter", dict.fromkeys(names, evil))
    # Pushing has looked for a card that people wrote.
    hub.requests.clear()
    load("alice/adapter")
    assert hub.downloads("alice/adapter") == {"reft_config.json", "reft_model.safetensors"}


def test_the_files_are_of_one_commit_though_another_is_pushed_between(hub):
    old, new = wrap(), wrap(seed=2)
    new.push_to_hub("alice/other")
    old.push_to_hub("alice/adapter")

    def push_between(request):
        if request.startswith("HEAD") and request.endswith("reft_model.safetensors"):
            hub.add("alice/adapter", hub.files("alice/other"))

    hub.before = push_between
    assert_same(load("alice/adapter"), old)
    hub.before = lambda request: None
    assert_same(load("alice/adapter"), new)


def test_files_that_the_cache_shares_between_repositories_are_read(hub, tmp_path):
    """As huggingface_hub leaves them where Xet is installed; links to anywhere else are not."""
    wrap().push_to_hub("alice/adapter")
    load("alice/adapter")
    blobs = tmp_path / "cache" / "models--alice--adapter" / "blobs"
    (weights,) = [path for path in blobs.iterdir() if len(path.name) == 64]
    for folder in (tmp_path / "cache" / "blobs" / "ab", tmp_path / "elsewhere"):
        folder.mkdir(parents=True)
        shutil.move(weights.resolve(), folder / "shared")
        weights.unlink(missing_ok=True)
        weights.symlink_to(os.path.relpath(folder / "shared", blobs))
        if "cache" in folder.parts:
            assert_same(load("alice/adapter", local_files_only=True), wrap())
    with pytest.raises(AdapterError, match=r"is a link to .*elsewhere.*outside"):
        load("alice/adapter", local_files_only=True)


# ---- the base model by itself --------------------------------------------------------------------


def describe(hub, repo_id, **base):
    """Have the adapter say more of its base model."""
    entry = json.loads(hub.files(repo_id)["reft_config.json"])
    entry["base_model"] |= base
    hub.add(repo_id, {"reft_config.json": json.dumps(entry).encode()})


def test_the_base_model_that_an_adapter_names_is_loaded_at_its_revision(hub, tmp_path):
    commit = add_base(hub, "alice/base", make_base("llama"), tmp_path / "base")
    add_base(hub, "alice/base", make_base("llama", seed=5), tmp_path / "changed")
    model = wrap()
    model.push_to_hub("alice/adapter")
    named = {"name_or_path": "alice/base", "revision": commit, "task": "causal_lm"}
    describe(hub, "alice/adapter", **named)
    assert_same(ReftModel.from_pretrained("alice/adapter"), model)
    half = ReftModel.from_pretrained("alice/adapter", model_kwargs={"dtype": torch.bfloat16})
    assert half.dtype == torch.bfloat16


def test_a_classifier_is_loaded_with_the_labels_of_the_adapter(hub, tmp_path):
    make_base("bert").bert.save_pretrained(tmp_path / "base")
    model = wrap("bert", modules_to_save=["classifier"])
    model.save_pretrained(tmp_path / "adapter")
    named = {"name_or_path": str(tmp_path / "base"), "task": "sequence_classification"}
    named |= {"labels": ["a", "b", "c"], "problem_type": "single_label_classification"}
    path = tmp_path / "adapter" / "reft_config.json"
    entry = json.loads(path.read_text())
    entry["base_model"] |= named
    path.write_text(json.dumps(entry))
    loaded = ReftModel.from_pretrained(tmp_path / "adapter")
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert digest(loaded) == digest(model)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"task": None}, r"does not say which base model to load.*task None.*load the base model"),
        ({"task": "os.system"}, "task 'os.system'; tasks are causal_lm, "),
        ({"name_or_path": None}, "name_or_path None"),
        ({"name_or_path": "/home/bob/llama"}, "in '/home/bob/llama', a directory that is not here"),
        ({"name_or_path": "alice/none"}, "base model 'alice/none' of .* cannot be loaded"),
        ({"revision": "never"}, "base model 'alice/base' of .* cannot be loaded"),
        ({"num_hidden_layers": 7}, "num_hidden_layers 7; this model has"),
    ],
)
def test_a_base_model_that_cannot_be_loaded_is_to_be_passed(base, message, hub, tmp_path):
    add_base(hub, "alice/base", make_base("llama"), tmp_path / "base")
    wrap().push_to_hub("alice/adapter")
    named = {"name_or_path": "alice/base", "task": "causal_lm"}
    describe(hub, "alice/adapter", **named | base)
    with pytest.raises(AdapterError, match=message):
        ReftModel.from_pretrained("alice/adapter")


def test_no_code_is_run_for_a_base_model_that_a_file_names(hub, tmp_path):
    add_base(hub, "alice/base", make_base("llama"), tmp_path / "base")
    config = json.loads(hub.files("alice/base")["config.json"])
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    code = f"open({str(tmp_path / 'ran')!r}, 'w')"
    added = {"config.json": json.dumps(config).encode(), "code.py": code.encode()}
    hub.add("alice/base", added)
    wrap().push_to_hub("alice/adapter")
    describe(hub, "alice/adapter", name_or_path="alice/base", task="causal_lm")
    for given in (None, {"trust_remote_code": True}):
        with pytest.raises(AdapterError, match="load the base model yourself"):
            ReftModel.from_pretrained("alice/adapter", model_kwargs=given)
    assert not (tmp_path / "ran").exists()
    assert "code.py" not in hub.downloads("alice/base")
