"""Learning rates by role, and what is resumed of them."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from runs import assert_equal, losses, make_arguments, make_trainer, reft_model, weights
from safetensors.torch import load_file, save_file

import pyreft
from conftest import LAYERS, make_base
from pyreft.interventions import OrthonormalProjection

FORMAT_1 = Path(__file__).parents[1] / "references" / "format_1"
ROLE_OF = {"rotate_layer.turn": "R", "proj_layer.weight": "P", "proj_layer.bias": "P"}
ROLE_OF |= {"learned_source.weight": "W", "learned_source.bias": "b", "learned_source": "b"}
RATIOS = {"R": 4.0, "W": 2.0, "b": 10.0}


def rates(groups, model):
    """The rate of each parameter by name."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


def wanted(model, rate, ratios):
    """The same, by the names of parameters alone."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            role = next((r for end, r in ROLE_OF.items() if name.endswith(f".{end}")), None)
            found[name] = rate * ratios.get(role, 1.0)
    return found


def test_each_parameter_has_the_rate_of_its_role(kind):
    model = reft_model(kind=kind, modules_to_save=["lm_head"], add_bias=kind == "noreft")
    absent = {"noreft": "R", "nodireft": "R", "consreft": "PW", "lobireft": "PW"}.get(kind, "P")
    ratios = {"R": 4, "P": 3, "W": 2, "b": 10}
    ratios = {role: ratio for role, ratio in ratios.items() if role not in absent}
    groups = pyreft.parameter_groups(model, 1e-3, ratios, weight_decay=0.1)
    assert rates(groups, model) == pytest.approx(wanted(model, 1e-3, ratios))
    assert set(rates(groups, model)) == set(weights(model))
    decayed = {id(p) for group in groups if group["weight_decay"] == 0.1 for p in group["params"]}
    plain = {id(p) for group in groups if group["weight_decay"] == 0.0 for p in group["params"]}
    names = {id(p): n for n, p in model.named_parameters()}
    assert not decayed & plain
    assert all("bias" in names[one] or names[one].endswith("learned_source") for one in plain)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd", "adafactor", "rmsprop"])
def test_the_trainer_gives_roles_their_rates(optimizer, tokenizer, tmp_path):
    model = reft_model()
    settings = {"optim": optimizer, "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
    trainer = make_trainer(model, tokenizer, tmp_path, learning_rate_ratios=RATIOS, **settings)
    groups = trainer.create_optimizer().param_groups
    assert rates(groups, model) == pytest.approx(wanted(model, 1e-3, RATIOS))
    trainer.train()
    after = rates(trainer.optimizer.param_groups, model)
    assert max(after.values()) == 0.0  # the schedule reaches every group
    assert len(losses(trainer)) == 4


def test_a_first_step_is_as_long_as_its_rate(tokenizer, tmp_path):
    """A first step of Adam is the rate, in each parameter that has a gradient."""
    moved = {}
    for ratios in (None, RATIOS):
        model = reft_model()
        before = weights(model)
        settings = {"max_steps": 1, "learning_rate": 1e-4, "lr_scheduler_type": "constant"}
        make_trainer(model, tokenizer, tmp_path, learning_rate_ratios=ratios, **settings).train()
        after = weights(model)
        moved[ratios is None] = {n: (after[n] - before[n]).abs().max().item() for n in before}
    for name, ratio in wanted(model, 1.0, RATIOS).items():
        assert moved[False][name] / moved[True][name] == pytest.approx(ratio, rel=0.02)


def test_ratios_of_one_change_nothing(tokenizer, tmp_path):
    runs = [
        make_trainer(reft_model(), tokenizer, tmp_path, learning_rate_ratios=ratios)
        for ratios in (None, {"R": 1, "W": 1.0})
    ]
    for run in runs:
        run.train()
    assert losses(runs[0]) == losses(runs[1])
    assert_equal(*(weights(run.model) for run in runs))


def test_groups_train_in_a_plain_loop_and_in_a_given_optimizer(tokenizer, tmp_path):
    model = reft_model()
    groups = pyreft.parameter_groups(model, 1e-2, RATIOS)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    trainer = make_trainer(
        model, tokenizer, tmp_path, optimizers=(optimizer, None), lr_scheduler_type="constant"
    )
    trainer.train()
    by_ratios = make_trainer(
        reft_model(), tokenizer, tmp_path, learning_rate_ratios=RATIOS, lr_scheduler_type="constant"
    )
    by_ratios.train()
    assert losses(trainer) == pytest.approx(losses(by_ratios), rel=1e-5)


def test_the_card_names_the_ratios(tokenizer, tmp_path):
    model = reft_model()
    make_trainer(model, tokenizer, tmp_path, learning_rate_ratios=RATIOS).train()
    model.save_pretrained(tmp_path / "adapter")
    assert "R 4, W 2, b 10" in (tmp_path / "adapter" / "README.md").read_text()


# ---- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 0.0, -1.0, math.nan, math.inf, "2", None, True])
def test_a_ratio_must_be_positive_and_finite(ratio, tokenizer, tmp_path):
    for make in (
        lambda: pyreft.parameter_groups(reft_model(), 1e-3, {"R": ratio}),
        lambda: make_trainer(reft_model(), tokenizer, tmp_path, learning_rate_ratios={"R": ratio}),
    ):
        with pytest.raises(ValueError, match="the ratio of R must be positive and finite"):
            make()


@pytest.mark.parametrize("rate", [0, -1e-3, math.nan, math.inf, "1e-3"])
def test_a_rate_must_be_positive_and_finite(rate):
    with pytest.raises(ValueError, match="learning_rate must be positive and finite"):
        pyreft.parameter_groups(reft_model(), rate, {"R": 1.0})


@pytest.mark.parametrize(
    ("kind", "ratios", "message"),
    [
        ("nodireft", {"R": 2.0}, "no trained parameter has the role R: .* have P, W, b"),
        ("lobireft", {"W": 2.0}, "no trained parameter has the role W: .* have R, b"),
        ("loreft", {"bias": 2.0}, "unknown role 'bias'; known: R, P, W, b"),
        ("loreft", [4.0], "a role and a number each"),
    ],
)
def test_a_ratio_for_what_is_not_there_is_refused(kind, ratios, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        pyreft.parameter_groups(reft_model(kind=kind), 1e-3, ratios)
    with pytest.raises(ValueError, match=message):
        make_trainer(reft_model(kind=kind), tokenizer, tmp_path, learning_rate_ratios=ratios)


def test_a_ratio_for_what_is_frozen_is_refused(tokenizer, tmp_path):
    model = reft_model()
    next(iter(model.interventions.values())).rotate_layer.requires_grad_(False)
    with pytest.raises(ValueError, match=r"no trained parameter has the role R: .* have W, b"):
        make_trainer(model, tokenizer, tmp_path, learning_rate_ratios={"R": 4.0})


@pytest.mark.parametrize("decay", [-0.1, math.nan, "0"])
def test_a_weight_decay_must_be_finite(decay):
    with pytest.raises(ValueError, match="weight_decay must be finite and not negative"):
        pyreft.parameter_groups(reft_model(), 1e-3, {"R": 1.0}, weight_decay=decay)


@pytest.mark.parametrize("said", [{"m": "Q"}, {"nope": "R"}, ["m"], None])
def test_a_users_kind_that_says_a_wrong_role_is_refused(said):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.m = torch.nn.Parameter(torch.zeros(3))

        def roles(self):
            return said

    with pytest.raises(ValueError, match=r"Own\.roles\(\) must return a role .* got "):
        pyreft.parameter_groups(Own(), 1e-3, {})


def test_ratios_beside_a_given_optimizer_are_refused(tokenizer, tmp_path):
    model = reft_model()
    optimizer = torch.optim.SGD(model.interventions.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match=r"build that one with pyreft\.parameter_groups"):
        make_trainer(
            model, tokenizer, tmp_path, optimizers=(optimizer, None), learning_rate_ratios=RATIOS
        )


# ---- resuming ------------------------------------------------------------------------------

SAVED = {"save_strategy": "steps", "save_steps": 2}


def test_a_run_with_ratios_resumes_exactly(tokenizer, tmp_path):
    settings = {"learning_rate_ratios": RATIOS, **SAVED}
    whole = make_trainer(reft_model(), tokenizer, tmp_path, **settings)
    whole.train()
    again = make_trainer(reft_model(), tokenizer, tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal(weights(whole.model), weights(again.model))


@pytest.mark.parametrize(
    ("before", "after"), [(RATIOS, None), (None, RATIOS), (RATIOS, RATIOS | {"W": 3.0})]
)
def test_other_groups_than_saved_are_refused(before, after, tokenizer, tmp_path):
    make_trainer(reft_model(), tokenizer, tmp_path, learning_rate_ratios=before, **SAVED).train()
    again = make_trainer(reft_model(), tokenizer, tmp_path, learning_rate_ratios=after)
    shown = [("W x 2" if one else "rest x 1") for one in (before, after)]
    if after and before:
        shown[1] = "W x 3"
    with pytest.raises(ValueError, match=f"saved with .*{shown[0]}.*this run has .*{shown[1]}"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- what was saved before -----------------------------------------------------------------


def before_format_2(directory):
    shutil.copytree(FORMAT_1, directory)
    base = make_base("llama", num_hidden_layers=LAYERS)
    return pyreft.ReftModel.from_pretrained(base, directory)


def test_an_adapter_of_format_1_loads_exactly(tmp_path):
    model = before_format_2(tmp_path / "checkpoint-2")
    directions = load_file(FORMAT_1 / "directions.safetensors")
    saved = load_file(FORMAT_1 / "reft_model.safetensors")
    for number, (key, module) in enumerate(model.interventions.items()):
        assert torch.equal(module.rotate_layer.weight, directions[str(number)])
        for name, tensor in module.state_dict().items():
            if name == "rotate_layer.turn":
                assert not tensor.any()
            else:
                assert torch.equal(tensor, saved[f"{key}.{name}"])


class Twice(torch.nn.Module):
    """A user's kind with a projection by a name of its own."""

    def __init__(self, embed_dim, low_rank_dimension):
        super().__init__()
        self.embed_dim, self.low_rank_dimension = embed_dim, low_rank_dimension
        self.inner = pyreft.LoreftIntervention(embed_dim, low_rank_dimension)
        self.directions = OrthonormalProjection(embed_dim, low_rank_dimension)

    def forward(self, hidden):
        return self.inner(hidden) + self.directions(hidden) @ self.directions.weight.mT


def test_a_state_dict_without_the_turn_loads(tmp_path):
    torch.manual_seed(0)
    first, second = Twice(16, 3), Twice(16, 3)
    old = {n: t for n, t in first.state_dict().items() if not n.endswith(".turn")}
    with torch.no_grad():
        second.directions.turn.normal_()
    second.load_state_dict(old)
    hidden = torch.randn(4, 16)
    assert torch.equal(first(hidden), second(hidden))
    with pytest.raises(RuntimeError, match=r'Missing key.*"directions\.original"'):
        second.load_state_dict({n: t for n, t in old.items() if "directions" not in n})


def test_a_users_kind_of_format_1_loads(tmp_path):
    registered = pyreft.register_intervention("twice_of_format_1")(Twice)
    torch.manual_seed(0)
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(kind=registered, rank=2))
    model.save_pretrained(tmp_path)
    path = tmp_path / "reft_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if not n.endswith(".turn")}, path)
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path)
    ids = torch.arange(5, 11)[None]
    assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_a_checkpoint_of_format_1_resumes_with_new_moments_of_r(tmp_path):
    model = before_format_2(tmp_path / "checkpoint-2")
    rows = [{"input_ids": [5, 6, 7, n], "labels": [-100, -100, -100, n]} for n in range(8, 16)]
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 4}
    arguments = make_arguments(tmp_path, **settings)
    trainer = pyreft.ReftTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    steps = {name: set() for name in ("R", "W", "b")}
    for module in model.interventions.values():
        for name, role in module.roles().items():
            parameter = dict(module.named_parameters())[name]
            steps[role].add(int(trainer.optimizer.state[parameter]["step"]))
    assert steps == {"R": {2}, "W": {4}, "b": {4}}
