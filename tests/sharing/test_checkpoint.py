"""Saving: what comes back is what was saved, and what was there is not lost."""

import json
import os
import stat

import pytest
import safetensors.torch
import torch
from torch import nn

import pyreft
from conftest import WIDTH, make_base
from pyreft import LoreftIntervention, ReftConfig, ReftModel, get_reft_model

IDS = torch.arange(3, 15).view(2, 6)
FILES = ["reft_config.json", "reft_model.safetensors"]
NON_DEFAULT = {"rank": 3, "positions": "f2+-1", "layers": [2, 0], "dropout": 0.25}


@pyreft.register_intervention("checkpoint_plain")
class Plain(nn.Module):
    """A user's own module: no get_config, a tuple among its arguments, buffers of all types."""

    def __init__(self, embed_dim, powers=(1,), scale=1.0):
        super().__init__()
        self.embed_dim, self.powers, self.scale = embed_dim, powers, scale
        self.shift = nn.Parameter(torch.randn(embed_dim))
        self.register_buffer("mean", torch.randn(embed_dim))

    def forward(self, hidden):
        return self.scale * sum(hidden**power for power in self.powers) + self.shift - self.mean


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


@pyreft.register_intervention("checkpoint_open")
class Open(nn.Module):
    """Arguments that no attribute can be found for."""

    def __init__(self, embed_dim, **options):
        super().__init__()
        self.embed_dim, self.options = embed_dim, options

    def forward(self, hidden):
        return hidden * self.options.get("scale", 1.0)


def wrap(architecture="llama", seed=1, **config):
    """An adapter whose every parameter is random."""
    config = {"layers": [0], "rank": 2, "positions": "l1"} | config
    if "representations" in config:
        config = {"representations": config["representations"]}
    if "arguments" in config:
        del config["rank"]
    model = get_reft_model(make_base(architecture), ReftConfig(**config)).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.interventions.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def spelled_out(model):
    return json.dumps(model.reft_config.to_dict())


def assert_same(found, expected):
    """Same config, same tensors, same numbers, bit for bit; with dropout, too."""
    assert spelled_out(found) == spelled_out(expected)
    theirs, ours = found.interventions.state_dict(), expected.interventions.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert all(theirs[name].dtype == ours[name].dtype for name in ours)
    for training in (True, False):
        numbers = []
        for model in (found, expected):
            model.interventions.train(training)
            torch.manual_seed(0)
            numbers.append(model(IDS).logits)
        assert torch.equal(*numbers)


def round_trip(model, directory, architecture="llama"):
    model.save_pretrained(directory)
    again = ReftModel.from_pretrained(make_base(architecture), directory)
    assert not again.training
    assert_same(again, model)
    return again


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


# ---- a round trip is exact -----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tied"), [("float64", True), ("bfloat16", False)])
def test_every_argument_of_every_kind_comes_back(architecture, kind, dtype, tied, tmp_path):
    config = {**NON_DEFAULT, "kind": kind, "dtype": dtype, "tied": tied, "add_bias": True}
    if kind not in ("consreft", "lobireft"):
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
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / FILES[1])
    assert len(tensors) == len(module.state_dict())


def test_a_position_function_comes_back_by_name(tmp_path):
    pyreft.register_position(
        "checkpoint_even", lambda tokens: tokens.text & (tokens.index % 2 == 0)
    )
    again = round_trip(wrap(positions="checkpoint_even+l1"), tmp_path / "adapter")
    assert str(again.reft_config.representations[0].positions) == "l1+checkpoint_even"


def test_a_reloaded_adapter_saves_the_same_files(tmp_path):
    again = round_trip(wrap(), tmp_path / "one")
    again.save_pretrained(tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_upstreams_save_and_load_are_the_same(tmp_path):
    model = wrap()
    model.save(save_directory=str(tmp_path / "adapter"))
    assert_same(ReftModel.load(str(tmp_path / "adapter"), make_base("llama")), model)
    fresh = get_reft_model(make_base("llama"), ReftConfig(layers=[0], rank=2, positions="l1"))
    fresh.load_intervention(str(tmp_path / "adapter"))
    assert_same(fresh, model)


# ---- what cannot be saved is refused, and nothing is written -------------------------------------


def cannot_be_saved():
    at = {"layer": 0, "positions": "l1"}
    return {
        "class is not registered": {**at, "intervention": nn.Linear(WIDTH, WIDTH)},
        "register it with pyreft.register_position": {
            "layer": 0,
            "low_rank_dimension": 2,
            "positions": lambda tokens: tokens.prompt,
        },
        "get_config": {**at, "intervention": Open(WIDTH, scale=2.0)},
        "no JSON": {**at, "intervention": Plain(WIDTH, scale=torch.tensor(2.0))},
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


def test_a_base_model_that_learns_is_not_dropped_in_silence(tmp_path):
    model = wrap()
    model.enable_model_gradients()
    with pytest.raises(ValueError, match=r"trainable parameters.*include_model=False"):
        model.save_intervention(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


# ---- where an adapter is saved -------------------------------------------------------------------


def test_a_directory_is_made_with_its_parents_and_holds_two_files(tmp_path):
    wrap().save_pretrained(str(tmp_path / "a" / "b"))
    assert sorted(os.listdir(tmp_path / "a" / "b")) == FILES


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
    assert sorted(os.listdir(tmp_path)) == FILES


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
    assert sorted(os.listdir(tmp_path)) == sorted([*FILES, path.name])


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
    assert sorted(os.listdir(tmp_path)) == FILES  # and no temporary file
    found = ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert_same(found, old if moment == 1 else new)
