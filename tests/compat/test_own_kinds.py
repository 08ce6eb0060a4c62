"""Interventions of a user's own, registered nowhere: what was trained is saved and loaded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from own_kind import IDS, Rotated, Scaled, Shifted, make_model
from torch import nn

import pyreft
from conftest import WIDTH, make_base
from pyreft.interventions.registry import kind_of

TESTS = Path(__file__).parents[1]
UNKNOWN = "will be saved without Shifted's arguments"
KINDS = {"Scaled": Scaled, "Rotated": Rotated, "Shifted": lambda: Shifted(WIDTH)}


def start(*arguments):
    """A process of the user's script."""
    paths = [str(TESTS / folder) for folder in (".", "compat", "training")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    script = str(TESTS / "compat" / "own_kind.py")
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Two runs: one that nobody disturbs, and one that is killed and goes on."""
    whole, resumed = (tmp_path_factory.mktemp("run") / name for name in ("whole", "resumed"))
    undisturbed, victim = start("train", whole), start("train", resumed)
    while not (resumed / "checkpoint-3").exists():
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (resumed / "reft_config.json").exists()
    for process in (undisturbed, start("train", resumed)):
        end(process)
    return whole, resumed


def test_a_killed_run_goes_on_and_is_loaded_in_another_process(killed):
    whole, resumed = (torch.tensor(json.loads(end(start("load", d)))) for d in killed)
    assert torch.equal(whole, resumed)
    assert (whole - make_model()(IDS).logits).abs().max() > 1e-3
    here = pyreft.ReftModel.from_pretrained(make_base("llama"), killed[0], kinds=KINDS)
    assert torch.equal(here(IDS).logits, whole)


def test_what_is_loaded_without_the_class_says_what_to_pass(killed):
    code = (
        "import sys, pyreft; from conftest import make_base;"
        "pyreft.ReftModel.from_pretrained(make_base('llama'), sys.argv[1])"
    )
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", code, killed[0]]
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    error = found.stderr.splitlines()[-1]
    assert "AdapterError" in error
    assert "unknown kind of intervention 'Scaled'" in error
    assert "from_pretrained(..., kinds=[Yours])" in error
    assert "@pyreft.register_intervention('Scaled')" in error


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({**KINDS, "Shifted": Shifted}, "saved without the arguments of its class Shifted"),
        ({**KINDS, "Other": Scaled}, "kinds has Other, the adapter has Rotated, Scaled, Shifted"),
        ({**KINDS, "Shifted": lambda: Shifted(WIDTH, 2)}, r"shape \(32,\).*shape \(32, 2\)"),
        ({**KINDS, "Shifted": lambda: nn.Linear(WIDTH, WIDTH)}, "lacks tensor"),
        ({**KINDS, "Scaled": Rotated}, "has the unknown tensor|lacks tensor"),
        ({**KINDS, "Scaled": nn.Identity}, "lacks tensor|has the unknown tensor"),
        ({**KINDS, "Scaled": nn.Linear}, "does not make the intervention"),
        ([pyreft.NoreftIntervention], "saved without the arguments of its class Shifted"),
    ],
)
def test_a_class_that_is_not_the_one_that_was_saved_is_refused(killed, kinds, message):
    base = make_base("llama")
    before = base(IDS).logits
    with pytest.raises(pyreft.AdapterError, match=message):
        pyreft.ReftModel.from_pretrained(base, killed[0], kinds=kinds)
    assert torch.equal(base(IDS).logits, before)


def test_what_makes_no_module_is_a_type_error(killed):
    with pytest.raises(TypeError, match=r"kinds\['Shifted'\] makes int, no module"):
        pyreft.ReftModel.from_pretrained(
            make_base("llama"), killed[0], kinds={**KINDS, "Shifted": lambda: 3}
        )


def test_an_adapter_beside_others_takes_the_classes_too(killed):
    model = make_model()
    model.load_adapter(killed[0], "other", kinds=KINDS)
    model.set_adapter("other")
    alone = pyreft.ReftModel.from_pretrained(make_base("llama"), killed[0], kinds=KINDS)
    assert torch.equal(model.eval()(IDS).logits, alone(IDS).logits)


def test_unknown_arguments_are_said_before_training(caplog):
    class Open(nn.Module):
        def __init__(self, *sizes):
            super().__init__()

        def forward(self, hidden):
            return hidden

    entry = {"layer": 0, "component": "block_output", "positions": "l1", "intervention": Open(3)}
    pyreft.ReftConfig(representations=entry)
    assert "will be saved without Open's arguments: its constructor takes any" in caplog.text
    assert "kinds={'Open': make}" in caplog.text


def test_an_argument_that_is_no_json_is_unknown(tmp_path, caplog):
    class Called(pyreft.LoreftIntervention):
        def __init__(self, **kwargs):
            super().__init__(**kwargs, keep_last_dim=True)
            self.alpha = kwargs["alpha"]

    module = Called(embed_dim=WIDTH, low_rank_dimension=2, alpha=lambda: 2.0)
    entry = {"layer": 0, "component": "block_output", "positions": "l1", "intervention": module}
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(representations=entry))
    model.save_pretrained(tmp_path)
    assert "not JSON" in caplog.text
    with pytest.raises(pyreft.AdapterError, match="without the arguments of its class Called"):
        pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path)

    def make():
        return Called(embed_dim=WIDTH, low_rank_dimension=2, alpha=lambda: 2.0)

    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path, kinds={"Called": make})
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


class Wider(pyreft.LoreftIntervention):
    """Gives its base other arguments than it was given itself, and has a default of its own."""

    def __init__(self, embed_dim, low_rank_dimension, act_fn="relu", powers=(1, 2), **kwargs):
        super().__init__(embed_dim, 2 * low_rank_dimension, **kwargs)
        self.act = torch.nn.ReLU() if act_fn == "relu" else torch.nn.Identity()
        self.powers, self.alpha = sum(powers), kwargs.get("alpha", 1.0)

    def forward(self, base, source=None, subspaces=None):
        return base + self.powers * self.act(super().forward(base) - base)


class Changing(pyreft.LoreftIntervention):
    def __init__(self, *, scales, **kwargs):
        super().__init__(**kwargs)
        self.scale = scales.pop(0) + len(scales)

    def forward(self, base, source=None, subspaces=None):
        return base + self.scale * (super().forward(base) - base)


@pytest.mark.parametrize(
    ("cls", "arguments"),
    [
        (Wider, {"low_rank_dimension": 2}),
        (Wider, {"low_rank_dimension": 1, "act_fn": None, "powers": (3,)}),
        (Changing, {"low_rank_dimension": 2, "scales": [2, 5, 7]}),
    ],
)
def test_what_the_constructor_was_given_is_saved(cls, arguments, tmp_path):
    module = cls(embed_dim=WIDTH, **arguments)
    entry = {"layer": 0, "component": "block_output", "positions": "l1", "intervention": module}
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(representations=entry))
    model.save_pretrained(tmp_path)
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path, kinds=[cls, Scaled])
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extra": {1: 2.0}}, "JSON would change them"),
        ({"extra": "torch.float32"}, "would come back as a type of torch"),
        ({"extra": object()}, "not JSON"),
    ],
)
def test_arguments_that_files_would_change_are_unknown(given, message, caplog):
    class Extra(pyreft.LoreftIntervention):
        def __init__(self, extra, **kwargs):
            super().__init__(**kwargs)

    module = Extra(embed_dim=WIDTH, low_rank_dimension=2, **given)
    entry = {"layer": 0, "component": "block_output", "positions": "l1", "intervention": module}
    config = pyreft.ReftConfig(representations=entry)
    assert config.to_dict()["interventions"][0]["arguments"] is None
    assert message in caplog.text


def test_two_classes_that_files_could_not_tell_apart_are_refused():
    def make(value):
        class Act(nn.Module):
            def forward(self, hidden):
                return hidden + value

        return Act()

    entries = [
        {"layer": layer, "component": "block_output", "positions": "l1", "intervention": module}
        for layer, module in enumerate([make(1.0), make(2.0)])
    ]
    with pytest.raises(ValueError, match="two classes of the adapter are called 'Act'"):
        pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(representations=entries))


def test_kinds_are_classes(killed):
    with pytest.raises(TypeError, match="kinds is a list of classes"):
        pyreft.ReftModel.from_pretrained(make_base("llama"), killed[0], kinds=[nn.Identity()])


def test_two_classes_of_one_name_are_two_kinds():
    first = type("Twin", (nn.Identity,), {"__module__": "one"})
    second = type("Twin", (nn.Identity,), {"__module__": "two"})
    again = type("Twin", (nn.Identity,), {"__module__": "one"})
    assert [kind_of(cls) for cls in (first, second, again)] == ["Twin", "two_Twin", "Twin"]


def test_a_replaced_activation_runs_everywhere_and_is_not_lost(tmp_path, caplog):
    """A lone edit runs the module itself; generation stacks edits by the formula of their class."""

    def make():
        made = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=4)
        made.act_fn = nn.ReLU()
        return made

    config = pyreft.ReftConfig(layers=[0, 1], positions="f2+l2", rank=4)
    model = pyreft.get_reft_model(make_base("llama"), config)
    torch.manual_seed(1)
    for intervention in model.interventions.values():
        intervention.act_fn = nn.ReLU()
        torch.nn.init.normal_(intervention.learned_source.weight)
    with torch.no_grad():
        expected = model(input_ids=IDS).logits[:, -1]
        out = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False}
        generated = model.generate(input_ids=IDS, max_new_tokens=1, **out)
    torch.testing.assert_close(generated.logits[0], expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="arithmetic is for"):
        model.add_weighted_adapter(["default"], [2.0], "double")
    model.save_pretrained(tmp_path)
    assert "act_fn=None was replaced by ReLU(), which has no name" in caplog.text
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path, kinds={"loreft": make})
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=IDS).logits[:, -1], expected)
