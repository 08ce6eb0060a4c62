"""TrainingArguments(push_to_hub=True): what a run leaves on the Hub, over HTTP."""

import logging
import pickle
import threading

import pytest
from hub_answers import HubError
from hub_server import HubServer, connect
from runs import assert_equal, make_trainer, reft_model, weights

import pyreft
from conftest import make_base

# What huggingface_hub does without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

ADAPTER = {"reft_config.json", "reft_model.safetensors"}
SETTINGS = {"push_to_hub": True, "hub_model_id": "alice/run", "hub_token": "alices"}
SETTINGS |= {"save_strategy": "steps", "save_steps": 2, "hub_always_push": True}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.tokens["alices"] = "alice"
        connect(server, monkeypatch, tmp_path / "cache")
        yield server


def load(**where):
    return pyreft.ReftModel.from_pretrained(make_base("llama"), "alice/run", **where)


def messages(hub):
    return hub.repos["alice/run"].messages


def test_every_save_is_pushed_and_the_result_at_the_end(hub, tokenizer, tmp_path):
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, hub_private_repo=True, **SETTINGS)
    trainer.train()
    assert messages(hub) == ["Training in progress, step 2", "Training in progress, step 4"]
    assert set(hub.files("alice/run")) >= ADAPTER | {"tokenizer.json"}
    assert not [path for path in hub.files("alice/run") if "/" in path or path.endswith(".pt")]
    assert hub.repos["alice/run"].private
    assert_equal(weights(load(token="alices")), weights(trainer.model))
    (tmp_path / "_unfinished").mkdir()
    (tmp_path / "_unfinished" / "half").write_text("written")
    trainer.push_to_hub()
    assert messages(hub)[2:] == ["End of training"]
    assert not [path for path in hub.files("alice/run") if "half" in path or "checkpoint" in path]


def test_the_strategy_end_pushes_when_the_model_is_saved(hub, tokenizer, tmp_path):
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, hub_strategy="end", **SETTINGS)
    trainer.train()
    assert messages(hub) == []
    trainer.save_model()
    assert messages(hub) == ["Model save"]
    assert_equal(weights(load(token="alices")), weights(trainer.model))


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-2", "checkpoint-4"}),
    ],
)
def test_a_run_goes_on_from_a_checkpoint_on_the_hub(strategy, folders, hub, tokenizer, tmp_path):
    settings = {**SETTINGS, "hub_strategy": strategy, "save_total_limit": 1}
    trainer = make_trainer(reft_model(), tokenizer, tmp_path / "one", **settings)
    trainer.train()
    files = hub.files("alice/run")
    assert {path.split("/")[0] for path in files if "/" in path} == folders
    newest = max(folders)
    assert_equal(weights(load(token="alices", subfolder=newest)), weights(trainer.model))
    (tmp_path / "two" / newest).mkdir(parents=True)
    for path in files:
        if path.startswith(newest):
            (tmp_path / "two" / path).write_bytes(files[path])
    again = make_trainer(reft_model(), tokenizer, tmp_path / "two", max_steps=5)
    again.train(resume_from_checkpoint=str(tmp_path / "two" / newest))
    assert again.state.global_step == 5


def test_what_is_pushed_holds_no_token(hub, tokenizer, tmp_path):
    settings = {**SETTINGS, "hub_strategy": "checkpoint"}
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, **settings)
    trainer.train()
    trainer.push_to_hub()
    assert "last-checkpoint/training_args.bin" in hub.files("alice/run")
    assert b"alices" in pickle.dumps(trainer.args)
    assert not [path for path, data in hub.files("alice/run").items() if b"alices" in data]


def test_a_push_goes_on_though_its_checkpoint_is_deleted(hub, tokenizer, tmp_path):
    """The first push waits until the second checkpoint has replaced the first."""
    later = threading.Event()

    def before(request):
        if "/preupload/" in request:
            assert later.wait(60)

    class Slow(pyreft.ReftTrainer):
        def _save_checkpoint(self, *args):
            super()._save_checkpoint(*args)
            if self.state.global_step == 4:
                assert not (tmp_path / "run" / "checkpoint-2").exists()
                later.set()

    hub.before = before
    settings = {**SETTINGS, "hub_strategy": "all_checkpoints", "save_total_limit": 1}
    make_trainer(reft_model(), tokenizer, tmp_path / "run", cls=Slow, **settings).train()
    assert messages(hub) == ["Training in progress, step 2", "Training in progress, step 4"]
    assert {path.removeprefix("checkpoint-2/") for path in hub.files("alice/run")} >= ADAPTER


def test_a_push_that_fails_is_said_and_the_run_goes_on(hub, tokenizer, tmp_path, caplog):
    def before(request):
        if "/commit/" in request:
            raise HubError(403, "no more")

    hub.before = before
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, **SETTINGS)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4
    for step in (2, 4):
        assert f"checkpoint-{step} is not on the Hub: 'alice/run' cannot be pushed" in caplog.text
