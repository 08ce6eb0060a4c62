"""What nothing may touch: the base model, its hooks, and other adapters on it."""

import copy
from importlib.util import find_spec

import pytest
import torch
from by_hand import find_component, find_layers, first_output, on_output
from reft import batch, gradients, logits, no_dropout, wrap

from conftest import LAYERS, make_base


def test_hooks_of_the_user_survive(architecture):
    """Hooks put on before and after wrapping run in every pass, and are there after unwrapping."""
    base, calls = make_base(architecture), []
    layer = find_layers(base)[1]

    def note(name):
        return lambda *args: calls.append(name)

    layer.register_forward_hook(note("after"))
    layer.register_forward_pre_hook(note("before"))
    base.register_forward_hook(note("model"))
    model = wrap(base)
    layer.register_forward_hook(note("later"))
    every = ["before", "after", "later", "model"]
    for run in (lambda: model(**batch(base)), lambda: model.unwrap()(**batch(base))):
        calls.clear()
        run()
        assert sorted(calls) == sorted(every)


def test_a_hook_of_the_user_changes_what_it_changed_before(architecture):
    base = make_base(architecture)
    model = wrap(base, layers=[0])
    inputs = batch(base)
    before = logits(model, inputs)

    double = on_output(lambda hidden: 2 * hidden)
    handle = find_layers(base)[0].register_forward_hook(double)
    assert not torch.allclose(logits(model, inputs), before)
    handle.remove()
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("component", ["block_output", "mlp_output", "attention_output"])
@pytest.mark.parametrize("where", ["inside", "at"])
def test_what_a_hook_of_the_user_saw_is_not_changed_afterwards(architecture, component, where):
    """Modules inside the edited one, and a hook at it that comes first, see what is unedited."""
    base = make_base(architecture)
    model, seen = wrap(base, layers=[1], component=component), []
    edited = find_component(base, 1, component)

    def see(module, args, output):
        first = first_output(output)
        seen.append((first, first.clone()))

    for module in edited.modules():
        if (module is edited) == (where == "at"):
            module.register_forward_hook(see, prepend=True)
    logits(model, batch(base))
    assert seen
    assert all(torch.equal(kept, then) for kept, then in seen)


def test_unwrapping_leaves_the_base_model_bit_identical(architecture, kind):
    untouched, base = make_base(architecture), make_base(architecture)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in base.modules()]
    model = wrap(base, kind=kind)
    inputs = batch(base)
    assert not torch.allclose(logits(model, inputs), logits(untouched, inputs))
    assert model.unwrap() is base
    assert torch.equal(logits(base, inputs), logits(untouched, inputs))
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in base.modules()]
    with pytest.raises(RuntimeError, match="unwrap"):
        model(**inputs)


def test_a_disabled_adapter_leaves_the_base_model_bit_identical(architecture, kind):
    untouched, base = make_base(architecture), make_base(architecture)
    model, inputs = wrap(base, kind=kind), batch(base)
    edited = logits(model, inputs)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), logits(untouched, inputs))
        with model.disable_adapter():
            pass
        assert torch.equal(logits(model, inputs), logits(untouched, inputs))
    assert torch.equal(logits(model, inputs), edited)
    assert torch.equal(logits(base, inputs), logits(untouched, inputs))


def test_a_pass_that_fails_leaves_the_base_model_bare(architecture):
    base = make_base(architecture)
    inputs = batch(base)
    expected = logits(base, inputs)
    model = wrap(base)

    def fail(module, args):
        raise RuntimeError("out of memory")

    handle = find_layers(base)[LAYERS - 1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"), model.disable_adapter():
        model(**inputs)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**inputs)
    handle.remove()
    assert torch.equal(logits(base, inputs), expected)
    assert not torch.allclose(logits(model, inputs), expected)


def test_two_adapters_on_one_base_model_do_not_see_each_other(architecture):
    base = make_base(architecture)
    inputs = batch(base)
    one, two = wrap(base, layers=[0]), wrap(base, layers=[0, 1], positions="l2")
    first, second = logits(one, inputs), logits(two, inputs)
    alone = wrap(make_base(architecture), layers=[0])
    assert torch.equal(first, logits(alone, inputs))
    one.unwrap()
    assert torch.equal(logits(two, inputs), second)


def test_a_copy_is_a_model_of_its_own(architecture):
    base = make_base(architecture)
    inputs = batch(base)
    bare = logits(base, inputs)
    model = wrap(base)
    edited = logits(model, inputs)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, inputs), edited)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    changed = logits(twin, inputs)
    assert not torch.allclose(changed, edited)
    assert torch.equal(logits(model, inputs), edited)
    assert torch.equal(logits(model.unwrap(), inputs), bare)
    assert torch.equal(logits(twin, inputs), changed)
    gradients(twin, inputs)
    assert all(p.grad is None for p in model.parameters())


def test_a_copy_generates_by_itself(causal):
    model = wrap(make_base(causal), positions="all")
    ids = torch.arange(3, 9)[None]
    expected = model.generate(ids, max_new_tokens=5, do_sample=False)
    twin = copy.deepcopy(model)
    model.unwrap()
    assert torch.equal(twin.generate(ids, max_new_tokens=5, do_sample=False), expected)


@pytest.mark.skipif(
    find_spec("transformers.utils.output_capturing") is None,
    reason="this transformers captures hidden states before any hook runs",
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("asked_before_wrapping", [True, False])
def test_output_hidden_states_shows_the_edit(architecture, training, asked_before_wrapping):
    """Also where transformers put its hooks on first."""
    base, unedited = no_dropout(make_base(architecture)), []
    inputs = batch(base)
    if asked_before_wrapping:
        base(**inputs, output_hidden_states=True)
    model = wrap(base, layers=[0, 1])
    model.train(training)
    first, second = model.interventions.values()
    alone = model(**inputs, output_hidden_states=True).hidden_states

    def see(module, args, output):
        unedited.append(first_output(output).clone())

    for layer in find_layers(base)[:2]:
        layer.register_forward_hook(see, prepend=True)
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert len(hidden) == LAYERS + 1
    assert all(torch.equal(*pair) for pair in zip(hidden, alone, strict=True))
    for shown, before, intervention in zip(hidden[1:], unedited, (first, second), strict=False):
        torch.testing.assert_close(shown[:, 0], intervention(before[:, 0]))
        torch.testing.assert_close(shown[:, 2], before[:, 2])
        assert not torch.allclose(shown[:, 0], before[:, 0])
