"""Adapters to save, and what a round trip through a directory must bring back."""

import json

import torch
from torch import nn

import pyreft
from conftest import make_base, randomize
from pyreft import ReftConfig, ReftModel, get_reft_model

IDS = torch.arange(3, 15).view(2, 6)
CONFIG, WEIGHTS = FILES = ["reft_config.json", "reft_model.safetensors"]
SAVED = ["README.md", *FILES]


@pyreft.register_intervention("checkpoint_plain")
class Plain(nn.Module):
    """A user's own module: no get_config, a tuple among its arguments, a buffer."""

    def __init__(self, embed_dim, powers=(1,), scale=1.0):
        super().__init__()
        self.embed_dim, self.powers, self.scale = embed_dim, powers, scale
        self.shift = nn.Parameter(torch.randn(embed_dim))
        self.register_buffer("mean", torch.randn(embed_dim))

    def forward(self, hidden):
        return self.scale * sum(hidden**power for power in self.powers) + self.shift - self.mean


def wrap(architecture="llama", seed=1, **config):
    """An adapter whose every parameter is random."""
    config = {"layers": [0], "rank": 2, "positions": "l1"} | config
    if "representations" in config:
        config = {"representations": config["representations"]}
    if "arguments" in config:
        del config["rank"]
    model = get_reft_model(make_base(architecture), ReftConfig(**config)).eval()
    return randomize(model, 0.1, seed)


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
