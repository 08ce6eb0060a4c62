"""A round trip is exact: what comes back is what was saved."""

import pytest
import safetensors.torch
import torch
from round_trip import WEIGHTS, Plain, assert_same, content, round_trip, wrap
from torch import nn

import pyreft
from conftest import CONSTANT, WIDTH, make_base
from pyreft import LoreftIntervention, ReftConfig, ReftModel, get_reft_model

NON_DEFAULT = {"rank": 3, "positions": "f2+-1", "layers": [2, 0], "dropout": 0.25}


@pyreft.register_intervention("checkpoint_counting")
class Counting(Plain):
    def __init__(self, embed_dim):
        super().__init__(embed_dim)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("chosen", torch.arange(embed_dim) % 2 == 0)

    def forward(self, hidden):
        return torch.where(self.chosen, hidden * self.steps, hidden)


@pyreft.register_intervention("checkpoint_describing")
class Describing(nn.Module):
    """Says itself what it is made from."""

    def __init__(self, embed_dim, sizes):
        super().__init__()
        self.inner = nn.Linear(embed_dim, embed_dim * sizes["outer"])

    def get_config(self):
        width = self.inner.in_features
        return {"embed_dim": width, "sizes": {"outer": self.inner.out_features // width}}

    def forward(self, hidden):
        return self.inner(hidden).unflatten(-1, (-1, hidden.shape[-1])).sum(-2)


@pyreft.register_intervention("checkpoint_scaled")
class Scaled(LoreftIntervention):
    """An argument more than its parent, whose get_config it inherits."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def forward(self, base, source=None, subspaces=None):
        return base + self.scale * (super().forward(base) - base)


@pyreft.register_intervention("checkpoint_sharing")
class Sharing(nn.Module):
    """Two names for one parameter."""

    def __init__(self, embed_dim):
        super().__init__()
        self.embed_dim = embed_dim
        self.up, self.down = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.down.weight = self.up.weight

    def forward(self, hidden):
        return self.down(self.up(hidden))


@pytest.mark.parametrize(("dtype", "tied"), [("float64", True), ("bfloat16", False)])
def test_every_argument_of_every_kind_comes_back(architecture, kind, dtype, tied, tmp_path):
    config = {**NON_DEFAULT, "kind": kind, "dtype": dtype, "tied": tied, "add_bias": True}
    if kind not in CONSTANT:
        config["act_fn"] = "relu"
    round_trip(wrap(architecture, **config), tmp_path / "adapter", architecture)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_activation_with_parameters_comes_back(dtype, tmp_path):
    round_trip(wrap(act_fn="prelu", dtype=dtype), tmp_path / "adapter")


@pytest.mark.parametrize(
    "place",
    [
        {"component": "head_attention_value_output", "heads": [3, 1]},
        {"component": "mlp_activation"},
        {"component": "model.layers[1].mlp.output", "layer": None},
        {"positions": None},
        {"positions": "all"},
        {"layer": -1},
    ],
)
def test_every_place_comes_back(place, tmp_path):
    entry = {"layer": 0, "positions": "l1", "low_rank_dimension": 2, **place}
    round_trip(wrap(representations=[entry]), tmp_path / "adapter")


@pytest.mark.parametrize(
    "module",
    [
        lambda: Plain(WIDTH, powers=(1, 2), scale=0.5),
        lambda: Counting(WIDTH),
        lambda: Describing(WIDTH, {"outer": 2}),
        lambda: Scaled(scale=7.0, embed_dim=WIDTH, low_rank_dimension=2),
        lambda: Sharing(WIDTH),
    ],
    ids=["plain", "counting", "describing", "scaled", "sharing"],
)
def test_a_registered_module_of_ones_own_comes_back(module, tmp_path):
    entry = {"layer": 1, "positions": "l1", "intervention": module()}
    round_trip(wrap(representations=entry), tmp_path / "adapter")


def test_a_kind_of_ones_own_is_made_from_its_arguments(tmp_path):
    model = wrap(kind="checkpoint_plain", arguments={"powers": [1, 2], "scale": 3.0})
    again = round_trip(model, tmp_path / "adapter")
    (module,) = again.interventions.values()
    assert (type(module), list(module.powers), module.scale) == (Plain, [1, 2], 3.0)


def test_shared_weights_are_saved_once_and_come_back_shared(tmp_path):
    module = LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=2)
    entries = [{"layer": i, "positions": "l1", "intervention": module} for i in (0, 2)]
    again = round_trip(wrap(representations=entries), tmp_path / "adapter")
    first, second = again.interventions.values()
    assert first is second
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / WEIGHTS)
    assert len(tensors) == len(module.state_dict())


def test_a_position_function_comes_back_by_name(tmp_path):
    pyreft.register_position(
        "checkpoint_even", lambda tokens: tokens.text & (tokens.index % 2 == 0)
    )
    again = round_trip(wrap(positions="checkpoint_even+l1"), tmp_path / "adapter")
    assert str(again.reft_config.representations[0].positions) == "l1+checkpoint_even"


def test_a_reloaded_adapter_saves_the_same_files(tmp_path):
    again = round_trip(wrap(), tmp_path / "one" / "adapter")
    again.save_pretrained(tmp_path / "two" / "adapter")
    assert content(tmp_path / "one" / "adapter") == content(tmp_path / "two" / "adapter")


def test_upstreams_save_and_load_are_the_same(tmp_path):
    model = wrap()
    model.save(save_directory=str(tmp_path / "adapter"))
    assert_same(ReftModel.load(str(tmp_path / "adapter"), make_base("llama")), model)
    fresh = get_reft_model(make_base("llama"), ReftConfig(layers=[0], rank=2, positions="l1"))
    fresh.load_intervention(str(tmp_path / "adapter"))
    assert_same(fresh, model)
