"""Tiny models with one intervention, for the tests of upstream's defects."""

import torch

import pyreft
from conftest import KINDS, make_base

IDS = torch.arange(3, 15).view(2, 6)
GREEDY = {"max_new_tokens": 5, "do_sample": False}
CLASSES = {kind: getattr(pyreft, f"{kind.capitalize()}Intervention") for kind in KINDS}


def wrap(base=None, kind="loreft", positions="l1", **arguments):
    """A model with one intervention, of the same weights at each call."""
    base = base or make_base("llama")
    torch.manual_seed(1)
    config = pyreft.ReftConfig(kind=kind, layers=[1], positions=positions, rank=4, **arguments)
    return pyreft.get_reft_model(base, config).eval()


def only(model):
    """Its intervention."""
    (intervention,) = model.interventions.values()
    return intervention


def at(positions):
    """Upstream's unit locations."""
    return {"sources->base": (None, positions)}


def reload(model, folder, base=None):
    """The adapter on a fresh model, by way of the disk."""
    model.save(folder)
    return pyreft.ReftModel.load(folder, base or make_base("llama"))


def assert_close(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)
