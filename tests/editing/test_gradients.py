"""What learns: the interventions alone, by the right gradients, recomputed and in other types."""

import copy

import pytest
import torch
from by_hand import find_component, on_output
from reft import assert_same, batch, gradients, logits, no_dropout, wrap
from torch.nn import functional

from conftest import LAYERS, make_base

COMPONENTS = ["block_output", "block_input", "mlp_output", "attention_output"]


def checkpoint(model, reentrant):
    """Turn gradient checkpointing on; transformers 5.23 gave it another name."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


# ---- who learns ----------------------------------------------------------------------------------


def test_only_interventions_get_gradients(architecture, kind):
    base = make_base(architecture)
    model = wrap(base, kind=kind)
    gradients(model, batch(base))
    assert all(p.grad is None and not p.requires_grad for p in base.parameters())
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.interventions.parameters()}


@pytest.mark.parametrize("component", ["block_output", "mlp_output", "attention_output"])
def test_gradients_are_those_of_hooks_that_copy(architecture, component):
    """Autograd loses nothing by an edit in place."""
    base, bare = make_base(architecture), make_base(architecture).requires_grad_(False)
    model = wrap(base, component=component, positions=[0, 4])
    chosen = torch.zeros(10, 1, dtype=torch.bool)
    chosen[[0, 4]] = True
    inputs = batch(base)
    expected = gradients(model, inputs)

    def edit_by(intervention):
        return on_output(lambda hidden: torch.where(chosen, intervention(hidden), hidden))

    interventions = model.interventions.values()
    for layer, intervention in zip(range(LAYERS), interventions, strict=True):
        find_component(bare, layer, component).register_forward_hook(edit_by(intervention))
    model.zero_grad()
    bare(**inputs).loss.backward()
    assert_same({n: p.grad for n, p in model.interventions.named_parameters()}, expected)


def test_training_changes_no_bit_of_the_base_model(architecture, kind):
    base = make_base(architecture)
    before = copy.deepcopy(base.state_dict())
    model = wrap(base, kind=kind, dropout=0.1)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(**batch(base)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert len(set(losses)) > 1
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


# ---- recomputation and autocast --------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("passes", [1, 2])
def test_gradient_checkpointing_gives_equal_gradients(architecture, component, reentrant, passes):
    base = no_dropout(make_base(architecture))
    model = wrap(base, component=component)
    model.train()
    inputs = [batch(base, seed) for seed in range(passes)]
    inputs[1:] = [{name: value[1:] for name, value in one.items()} for one in inputs[1:]]
    expected = gradients(model, *inputs)
    with model.disable_adapter():
        bare = logits(model, inputs[0])
    checkpoint(model, reentrant)
    assert_same(gradients(model, *inputs), expected)
    model.eval()
    assert torch.equal(logits(base, inputs[0]), bare)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_repeats_the_dropout_of_an_edit(reentrant):
    base = make_base("llama")
    model = wrap(base, dropout=0.5)
    model.train()
    torch.manual_seed(0)
    expected = gradients(model, batch(base))
    checkpoint(model, reentrant)
    torch.manual_seed(0)
    assert_same(gradients(model, batch(base)), expected)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("bare_first", [True, False])
def test_gradient_checkpointing_recomputes_a_bare_pass_bare(reentrant, bare_first):
    """A divergence from the base model, as preference training takes it."""

    def run():
        model = wrap(no_dropout(make_base("llama")))
        model.train()
        model.enable_input_require_grads()
        if checkpointed:
            checkpoint(model, reentrant)
        inputs = batch(model.model)

        def bare():
            with model.disable_adapter():
                return model(**inputs).logits.log_softmax(-1)

        reference = bare() if bare_first else None
        edited = model(**inputs).logits.log_softmax(-1)
        reference = reference if bare_first else bare()
        functional.kl_div(edited, reference, None, None, "batchmean", log_target=True).backward()
        return {name: p.grad for name, p in model.interventions.named_parameters()}

    checkpointed = False
    expected = run()
    checkpointed = True
    assert_same(run(), expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_backward_pass_that_fails_leaves_the_base_model_bare(reentrant):
    base = make_base("llama")
    inputs = batch(base)
    expected = logits(base, inputs)
    model = wrap(base)
    model.train()
    checkpoint(model, reentrant)
    outputs = model(**inputs)

    def out_of_memory(grad):
        raise RuntimeError("out of memory")

    next(model.interventions.parameters()).register_hook(out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        outputs.loss.backward()
    model.eval()
    assert torch.equal(logits(base, inputs), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), expected)


@pytest.mark.parametrize("component", COMPONENTS)
def test_autocast_trains_in_float32(architecture, component):
    base = make_base(architecture)
    model = wrap(base, component=component)
    exact = gradients(model, batch(base))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(model, batch(base))
    for name, grad in found.items():
        assert grad.dtype == torch.float32
        assert functional.cosine_similarity(grad.flatten(), exact[name].flatten(), dim=0) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_model_below_float32_trains_float32_interventions(architecture, dtype):
    base = make_base(architecture)
    exact = gradients(wrap(base), batch(base))
    model = wrap(make_base(architecture).to(dtype))
    for name, grad in gradients(model, batch(base)).items():
        assert grad.dtype == torch.float32
        assert functional.cosine_similarity(grad.flatten(), exact[name].flatten(), dim=0) > 0.9
