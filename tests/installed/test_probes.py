"""What is relied on of other packages is probed, and refused by name where it does not hold."""

import subprocess
import sys

import pytest
import torch
import transformers as hf

import pyreft
from conftest import make_base
from pyreft.installed import all_facts, releases
from pyreft.installed.fact import Fact, require_found
from pyreft.installed.trainer_methods import trainer_saves_by_methods, trainer_steps_by_methods

# Facts that not all supported releases have, and something documented goes without.
OPTIONAL = {"trainer_asks_where_to_go_on"}


@pytest.mark.parametrize("fact", all_facts(), ids=lambda fact: fact.name)
def test_every_fact_holds_and_is_a_sentence(fact):
    assert fact.statement.endswith(".") and fact.statement[0].isupper()
    assert fact.package in releases.TESTED
    assert fact.holds or fact.name in OPTIONAL, fact.explain()


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode], ids=lambda b: b.__name__)
def test_a_fact_does_not_depend_on_where_it_is_asked_for(block):
    with block():
        problems = {fact.name: fact._find_problem() for fact in all_facts()}
    assert {name for name, problem in problems.items() if problem} <= OPTIONAL


def test_probes_leave_random_numbers_as_they_are():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for fact in all_facts():
        fact._find_problem()
    assert torch.equal(torch.rand(3), expected)


def test_a_refusal_names_the_fact_the_releases_and_what_was_found():
    def water_boils_at_a_hundred_degrees():
        """Water boils at 100 degrees."""
        require_found(85, 100, "where it boils up here")

    fact = Fact("transformers", water_boils_at_a_hundred_degrees)
    assert not fact.holds
    with pytest.raises(pyreft.UnsupportedReleaseError) as error:
        fact.require("cooking")
    message = str(error.value)
    assert message.startswith("cooking relies on this: Water boils at 100 degrees. transformers ")
    assert f"{hf.__version__} is installed" in message
    assert f"newest tested release is {releases.TESTED['transformers'][1]}" in message
    assert message.endswith("where it boils up here is 85, not 100.")


def test_a_probe_runs_once():
    runs = []
    fact = Fact("torch", lambda: runs.append(1))
    assert fact.holds and fact.holds and runs == [1]
    fact.forget()
    assert fact.holds and runs == [1, 1]


# ---- the Trainer ---------------------------------------------------------------------------------


@pytest.fixture
def probed_anew():
    facts = trainer_saves_by_methods, trainer_steps_by_methods
    for fact in facts:
        fact.forget()
    yield
    for fact in facts:
        fact.forget()


def make_trainer(directory):
    config = pyreft.ReftConfig(layers=[1], positions="l1", rank=2)
    arguments = hf.TrainingArguments(str(directory), report_to="none", use_cpu=True)
    return pyreft.ReftTrainer(pyreft.get_reft_model(make_base("llama"), config), arguments)


@pytest.mark.parametrize(
    "method",
    ["_save_checkpoint", "_load_best_model", "_save", "training_step", "_wrap_model"],
)
def test_a_trainer_whose_methods_moved_is_refused(method, tmp_path, monkeypatch, probed_anew):
    moved = getattr(hf.Trainer, method)
    monkeypatch.delattr(hf.Trainer, method)
    monkeypatch.setattr(hf.Trainer, f"{method}_of_state", moved, raising=False)
    with pytest.raises(pyreft.UnsupportedReleaseError, match=f"Trainer has no method {method}"):
        make_trainer(tmp_path)


def test_a_trainer_whose_methods_take_other_arguments_is_refused(
    tmp_path, monkeypatch, probed_anew
):
    def compute_loss(self, model, batch):
        raise AssertionError

    monkeypatch.setattr(hf.Trainer, "compute_loss", compute_loss)
    with pytest.raises(
        pyreft.UnsupportedReleaseError, match="compute_loss takes no inputs, return"
    ):
        make_trainer(tmp_path)


def test_a_method_that_nothing_calls_any_more_is_refused(tmp_path, monkeypatch, probed_anew):
    """It is still there, so that overriding it would be in vain."""
    callers = [
        name
        for name, value in vars(hf.Trainer).items()
        if "_load_best_model" in getattr(getattr(value, "__code__", None), "co_names", ())
    ]
    assert callers
    for name in callers:
        monkeypatch.setattr(hf.Trainer, name, lambda self, *args, **kwargs: None)
    with pytest.raises(pyreft.UnsupportedReleaseError, match="nothing in Trainer calls _load_"):
        make_trainer(tmp_path)


def test_checkpoints_of_other_trainers_are_refused_likewise(tmp_path, monkeypatch, probed_anew):
    class OtherTrainer(pyreft.AdapterCheckpoints, hf.Trainer):
        pass

    monkeypatch.delattr(hf.Trainer, "_save_checkpoint")
    with pytest.raises(pyreft.UnsupportedReleaseError, match="OtherTrainer, whose checkpoints are"):
        OtherTrainer(args=hf.TrainingArguments(str(tmp_path), report_to="none"))


# ---- releases ------------------------------------------------------------------------------------


def pretend(monkeypatch, package, release):
    found = releases.version
    monkeypatch.setattr(
        releases, "version", lambda name: release if name == package else found(name)
    )


@pytest.mark.parametrize("package", releases.TESTED)
def test_a_release_newer_than_any_tested_is_said(package, monkeypatch):
    oldest, newest = releases.TESTED[package]
    pretend(monkeypatch, package, "99.0.1")
    with pytest.warns(UserWarning, match=f"tested with {package} {oldest} to {newest}, and"):
        releases.check_releases()
    assert package in releases.untested()


def test_another_patch_of_a_tested_release_is_not(monkeypatch):
    newest = releases.TESTED["transformers"][1]
    pretend(monkeypatch, "transformers", newest.rpartition(".")[0] + ".77")
    assert "transformers" not in releases.untested()


def test_transformers_of_before_the_range_is_an_error_that_says_what_to_do(monkeypatch):
    pretend(monkeypatch, "transformers", "4.57.6")
    with pytest.raises(ImportError, match=r"needs transformers 5\.0\.0 or later, and 4\.57\.6"):
        releases.check_releases()


def test_the_warning_comes_once_at_import_and_the_import_costs_no_transformers():
    script = """
import sys, warnings
from pyreft.installed import releases
releases.version = lambda name: "99.0"
del sys.modules["pyreft"]
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as seen:
    import pyreft
    import pyreft.positions
print(sum("was tested with transformers" in str(w.message) for w in seen))
print("transformers" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "False"]
