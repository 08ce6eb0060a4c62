"""What a script puts in place of `model.model`, or of a method, is what runs."""

import pytest
import torch
from reft import IDS, wrap
from torch import nn

from conftest import make_base
from pyreft import ReftModel


class Wrapped(nn.Module):
    """A base model that counts its generations."""

    def __init__(self, base):
        super().__init__()
        self.base, self.generations = base, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)

    def generate(self, *args, **kwargs):
        self.generations += 1
        return self.base.generate(*args, **kwargs)


@pytest.mark.parametrize("disabled", [False, True])
def test_generate_runs_the_base_model_that_is_there(disabled):
    model = wrap(make_base("llama")).eval()
    expected = model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    model.model = Wrapped(model.model)
    found = model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(found, expected)
    if disabled:
        with model.disable_adapter():
            model.generate(input_ids=IDS, max_new_tokens=3, do_sample=False)
    assert model.model.generations == 1 + disabled


def test_gradients_are_those_of_the_base_model_that_is_there():
    model = wrap(make_base("llama"))
    model.model = make_base("llama", seed=1).requires_grad_(True)
    model.disable_model_gradients()
    assert not any(p.requires_grad for p in model.model.parameters())


def test_a_part_of_the_base_model_is_replaced_there():
    model = wrap(make_base("llama"))
    model.lm_head = nn.Linear(32, 50, bias=False)
    assert model.lm_head is model.model.lm_head
    assert model(input_ids=IDS).logits.shape[-1] == 50
    assert "lm_head" not in dict(model.named_children())
    model.mine = nn.Linear(2, 2)
    assert "mine" in dict(model.named_children()) and not hasattr(model.model, "mine")


def test_batches_that_pass_by_the_adapter_are_refused():
    for name in ("generate_batch", "continuous_batching_context_manager"):
        with pytest.raises(AttributeError):
            getattr(wrap(make_base("llama")), name)


def test_a_subclass_says_what_of_the_base_model_is_trained(tmp_path):
    class Own(ReftModel):
        def disable_model_gradients(self):
            super().disable_model_gradients()
            self.model.model.norm.weight.requires_grad_(True)

    wrap(make_base("llama")).save_pretrained(tmp_path)
    loaded = Own.from_pretrained(make_base("llama"), tmp_path)
    trained = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    assert trained == ["model.norm.weight"]
