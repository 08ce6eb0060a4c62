"""ReferenceModel: the base model without its adapter, one copy in memory."""

import copy
import pickle

import pytest
import torch
from reft import IDS, LABELS, batch, logits, wrap

from conftest import make_base
from pyreft import ReferenceModel


def pair(architecture="llama"):
    model = wrap(make_base(architecture))
    return model, ReferenceModel(model)


def test_it_gives_the_numbers_of_the_base_model(architecture):
    model, reference = pair(architecture)
    inputs = batch(model.model)
    expected = logits(make_base(architecture), inputs)
    assert torch.equal(logits(reference, inputs), expected)
    assert torch.equal(reference.forward(**inputs).logits, expected)
    assert not torch.equal(logits(model, inputs), expected)


def test_it_generates_as_the_base_model():
    _, reference = pair()
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = make_base("llama").generate(IDS, **settings)
    assert torch.equal(reference.generate(IDS, **settings), expected)


def test_it_holds_no_copy_of_the_base_model():
    model, reference = pair()
    assert not list(reference.parameters())
    assert not list(reference.buffers())
    assert list(reference.modules()) == [reference]
    ours, theirs = reference.state_dict(), model.model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)


def test_moving_and_switching_it_changes_nothing():
    model, reference = pair()
    model.train()
    model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    reference.eval().to(torch.float64).requires_grad_(True)
    reference(IDS, labels=LABELS)
    assert [module.training for module in model.modules()] == modes
    assert model.dtype == torch.float32
    assert not any(p.requires_grad for p in model.model.parameters())
    assert all(p.requires_grad for p in model.interventions.parameters())


def test_its_passes_are_without_dropout_and_gradients():
    model, reference = pair("gpt2")
    inputs = batch(model.model)
    expected = logits(make_base("gpt2"), inputs)
    model.train()
    assert torch.equal(reference(**inputs).logits, expected)
    assert not reference(**inputs).logits.requires_grad
    assert not torch.equal(logits(model, inputs), logits(model, inputs))


def test_the_adapter_is_on_again_after_a_pass_that_failed():
    model, reference = pair()
    expected = logits(model.eval(), batch(model.model))
    model.train()
    with pytest.raises(TypeError, match="unit_locations"):
        reference(IDS, unit_locations={})
    assert model.training
    assert torch.equal(logits(model.eval(), batch(model.model)), expected)


def test_what_it_does_not_define_is_the_models():
    model, reference = pair()
    assert reference.config is model.config
    assert (reference.device, reference.dtype) == (model.device, model.dtype)
    assert not hasattr(reference, "nothing_of_this_name")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_is_the_reference_of_a_copied_model(duplicate):
    _, reference = pair()
    again = duplicate(reference)
    assert torch.equal(again(IDS).logits, reference(IDS).logits)


def test_parts_of_the_base_model_that_are_trained_are_what_they_were():
    model = wrap(make_base("llama"), modules_to_save=["lm_head"])
    reference, before = ReferenceModel(model), make_base("llama")
    with torch.no_grad():
        model.model.lm_head.weight.mul_(2)
    assert torch.equal(reference(IDS).logits, before(IDS).logits)
    assert torch.equal(reference.state_dict()["lm_head.weight"], before.lm_head.weight)
    assert not torch.equal(model(IDS).logits, before(IDS).logits)
