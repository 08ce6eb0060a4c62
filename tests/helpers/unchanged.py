"""A model is after a block what it was before it, hooks and modes included."""

from contextlib import contextmanager

import torch

from pyreft.installed.modules import hooks_of


def state_of(model):
    modules = list(model.modules())
    return (
        [list(hooks_of(module)) for module in modules],
        [module.training for module in modules],
        [p.requires_grad for p in model.parameters()],
        [vars(module).get("forward") for module in modules],
        model.active_adapters,
    )


@contextmanager
def unchanged(model):
    before, tensors = state_of(model), {n: t.clone() for n, t in model.state_dict().items()}
    random, cells = torch.get_rng_state(), torch.is_grad_enabled()
    yield
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled() == cells
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]), name
