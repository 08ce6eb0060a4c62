"""Training runs of a playground: turns, checkpoints, and what goes on from them."""

import json
import threading
import time
import zipfile

import pytest
from command_line import run as run_command
from playground_of import ask, make_playground

from pyreft import ReftModel
from pyreft.demo.choice import Choice
from pyreft.demo.pairs import read_file, read_number, read_pairs
from pyreft.demo.runs import Runs
from pyreft.training.settings import TrainSettings

PAIRS = [(f"say {i}", f"it is {i}") for i in range(4)]
PROMPT = "say 2"


@pytest.fixture
def playground(tmp_path):
    return make_playground(tmp_path, layers=6)


@pytest.fixture
def runs(playground, tmp_path):
    return Runs(playground, tmp_path / "runs")


def wait(run):
    end = time.time() + 120
    while not run.ended and time.time() < end:
        time.sleep(0.02)
    return run


def test_a_run_becomes_an_adapter_that_answers(runs, playground, tmp_path):
    run = wait(runs.start(PAIRS, TrainSettings(epochs=3, batch_size=2, learning_rate=1e-2)))
    assert (run.state, run.error, run.steps, len(run.losses)) == ("finished", None, 6, 6)
    assert run.losses[-1] < run.losses[0]
    found = ask(playground, PROMPT, Choice(run.adapter))
    assert found.marked.edited.any(1).sum() == 1, "the last token of the prompt"
    state = json.loads(next(run.directory.rglob("trainer_state.json")).read_text())
    assert [e["loss"] for e in state["log_history"] if "loss" in e] == run.losses
    # Of the archive, alone in a directory, the same adapter is read.
    with zipfile.ZipFile(run.pack(tmp_path)) as archive:
        assert not [name for name in archive.namelist() if "checkpoint" in name]
        archive.extractall(run.directory / "unpacked")
    again = playground.read(run.directory / "unpacked" / "adapter")
    assert ask(playground, PROMPT, Choice(again)).adapter == found.adapter
    assert not any(parameter.requires_grad for parameter in playground.base.parameters())


def test_it_is_the_run_of_pyreft_train(runs, playground, tmp_path):
    run = wait(runs.start(PAIRS, TrainSettings(epochs=2, batch_size=2)))
    base, folder = str(tmp_path / "base"), run.directory
    options = ("--config", folder / "settings.yaml")
    assert run_command("train", base, folder / "rows.jsonl", tmp_path / "again", *options) == 0
    again = ReftModel.from_pretrained(playground.base, tmp_path / "again")
    expected = [t.clone() for t in again.interventions.state_dict().values()]
    again.unwrap()
    found = ReftModel.from_pretrained(playground.base, folder / "adapter")
    for one, other in zip(found.interventions.state_dict().values(), expected, strict=True):
        assert (one == other).all()
    found.unwrap()


def test_a_stopped_run_keeps_its_checkpoint_and_goes_on(runs, tmp_path, monkeypatch):
    run = runs.start(PAIRS, TrainSettings(epochs=500, batch_size=4))
    while len(run.losses) < 3:
        time.sleep(0.01)
    run.stop()
    assert wait(run).state == "stopped"
    done = len(run.losses)
    assert done < 500
    command = run.command().split()
    assert command[:2] == ["pyreft", "train"]
    settings = run.directory / "settings.yaml"
    settings.write_text(settings.read_text().replace("epochs: 500", f"epochs: {done + 2}"))
    assert run_command(*command[1:]) == 0
    state = json.loads(next(run.directory.rglob("trainer_state.json")).read_text())
    assert state["global_step"] == done + 2


def test_others_are_answered_between_the_steps(runs, playground):
    before = ask(playground, PROMPT, None, 12).base
    run = runs.start(PAIRS, TrainSettings(epochs=400, batch_size=4))
    while not run.losses:
        time.sleep(0.01)
    playground.bare_answers.clear()
    assert ask(playground, PROMPT, None, 12).base == before
    assert not run.ended
    run.stop()
    wait(run)


def test_two_runs_wait_for_each_other(runs):
    first = runs.start(PAIRS, TrainSettings(epochs=30))
    second = runs.start(PAIRS, TrainSettings(epochs=2))
    while not first.losses:
        time.sleep(0.01)
    assert second.state == "waiting"
    first.stop()
    assert wait(second).state == "finished"
    assert runs.get(second.directory.name) is second
    assert runs.get("another") is None
    third = runs.start(PAIRS, TrainSettings(epochs=1))
    third.stop()
    assert wait(third).state in ("stopped", "finished")


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        ([], {}, "no pair"),
        (PAIRS, {"layers": "x"}, "layers are all"),
        (PAIRS, {"positions": "what"}, "what"),
    ],
)
def test_options_that_are_not_possible_are_refused_at_once(runs, pairs, settings, message):
    with pytest.raises(ValueError, match=message):
        runs.start(pairs, TrainSettings(**settings))


def test_a_run_that_fails_says_why_and_gives_the_model_back(runs, playground):
    run = wait(runs.start([("a" * 70, "b")], TrainSettings(epochs=1)))
    assert (run.state, run.command()) == ("failed", None)
    assert "row 0" in str(run.error)
    assert wait(runs.start(PAIRS, TrainSettings(layers="99", epochs=1))).state == "failed"
    assert ask(playground, PROMPT).base
    assert threading.active_count() < 20


def test_pairs_are_read_from_tables_and_files(tmp_path):
    assert read_pairs([["a", "b"], ["", None], [" c ", "d"]]) == [("a", "b"), ("c", "d")]
    with pytest.raises(ValueError, match="row 2 has no answer"):
        read_pairs([["a", "b"], ["c", " "]])
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion\na,b\n")
    assert read_file(str(file)) == [["a", "b"]]
    file.write_text("prompt,answer\na,b\n")
    with pytest.raises(ValueError, match="the columns prompt, answer"):
        read_file(str(file))
    file.write_text("prompt,completion\n" + "a,b\n" * 2001)
    with pytest.raises(ValueError, match="2,001 rows"):
        read_file(str(file))


@pytest.mark.parametrize("text", ["x", "0", "nan", "inf", "-1"])
def test_a_rate_that_is_no_positive_number_is_refused(text):
    assert read_number(" ") is None
    assert read_number("4e-3") == 4e-3
    with pytest.raises(ValueError, match="positive number"):
        read_number(text)
