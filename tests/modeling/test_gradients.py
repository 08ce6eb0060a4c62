"""What learns, and what nothing may touch: the base model, its hooks and its gradients."""

import copy
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch.nn import functional

from conftest import LAYERS, VOCAB, make_base
from pyreft import ReftConfig, get_reft_model

COMPONENTS = ["block_output", "block_input", "mlp_output", "attention_output"]
INNER = {
    "llama": {"block_output": "", "mlp_output": "mlp", "attention_output": "self_attn"},
    "gpt2": {"block_output": "", "mlp_output": "mlp", "attention_output": "attn"},
    "bert": {"block_output": "", "mlp_output": "output", "attention_output": "attention"},
}


def wrap(base, **config):
    torch.manual_seed(0)
    model = get_reft_model(base, ReftConfig(**{"rank": 4, "positions": "f2+l1"} | config))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.interventions.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def find_layers(base):
    names = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer"}
    return base.get_submodule(names[base.config.model_type])


def batch(base, seed=0):
    """Three rows, right-padded, with the labels that the base model takes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (3, 10), generator=generator)
    mask = (torch.arange(10) < torch.tensor([[10], [7], [9]])).long()
    ids = ids.masked_fill(mask == 0, 0)
    if base.config.model_type == "bert":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}
    labels = ids.masked_fill((mask == 0) | (torch.arange(10) < 5), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def no_dropout(base):
    """Training mode without chance, so that two passes can be compared."""
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    for name in ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"):
        if hasattr(base.config, name):
            setattr(base.config, name, 0.0)
    return base


def checkpoint(model, reentrant):
    """Turn gradient checkpointing on; transformers 5.23 gave it another name."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": reentrant})


def gradients(model, *inputs):
    """The gradients of the interventions after one backward pass through all the forward passes."""
    model.zero_grad()
    losses = [model(**one).loss for one in inputs]
    sum((index + 1) * loss for index, loss in enumerate(losses)).backward()
    found = {name: p.grad for name, p in model.interventions.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())
    return {name: grad.clone() for name, grad in found.items()}


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, one in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(one, expected[name], rtol=tolerance, atol=tolerance * scale)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


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
        def edit(module, args, output):
            whole = isinstance(output, torch.Tensor)
            hidden = output if whole else output[0]
            hidden = torch.where(chosen, intervention(hidden), hidden)
            return hidden if whole else (hidden, *output[1:])

        return edit

    for layer, intervention in zip(find_layers(bare), model.interventions.values(), strict=True):
        inner = layer.get_submodule(INNER[architecture][component])
        inner.register_forward_hook(edit_by(intervention))
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


# ---- compilation -------------------------------------------------------------------------------


def tiny():
    return make_base("llama", num_hidden_layers=1)


def compile_whole(base):
    return torch.compile(base, backend="aot_eager")


def compile_in_place(base):
    base.compile(backend="eager")
    return base


def compile_layers(base):
    for layer in find_layers(base):
        layer.compile(backend="eager")
    return base


@pytest.fixture(params=[compile_whole, compile_in_place, compile_layers])
def compiled(request):
    """A way to compile a base model. The compiler itself warns of this and that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        yield request.param
        torch._dynamo.reset()


def test_a_base_model_compiled_and_run_before_wrapping_gives_the_same_numbers(compiled):
    base, plain = compiled(tiny()), wrap(tiny())
    logits(base, batch(plain.model))
    model = wrap(base)
    for seed in range(2):
        inputs = batch(plain.model, seed)
        torch.testing.assert_close(logits(model, inputs), logits(plain, inputs))
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, inputs), logits(plain.unwrap(), inputs))


def test_a_base_model_compiled_after_wrapping_gives_the_same_gradients(compiled):
    model, plain = wrap(tiny()), wrap(tiny())
    model.model = compiled(model.model)
    for seed in range(2):
        inputs = batch(plain.model, seed)
        assert_same(gradients(model, inputs), gradients(plain, inputs))
    torch.testing.assert_close(logits(model.unwrap(), inputs), logits(plain.unwrap(), inputs))


@pytest.mark.parametrize("compiled", [compile_whole, compile_in_place], indirect=True)
def test_a_compiled_base_model_generates_the_same(compiled):
    settings = {"inputs": torch.arange(3, 9)[None], "max_new_tokens": 3, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    expected = wrap(tiny()).generate(**settings)
    found = wrap(compiled(tiny())).generate(**settings)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits))


# ---- nothing else is touched ---------------------------------------------------------------------


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

    def double(module, args, output):
        return output * 2 if isinstance(output, torch.Tensor) else (output[0] * 2, *output[1:])

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
    edited = find_layers(base)[1].get_submodule(INNER[architecture][component])

    def see(module, args, output):
        first = output if isinstance(output, torch.Tensor) else output[0]
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
        unedited.append((output if isinstance(output, torch.Tensor) else output[0]).clone())

    for layer in find_layers(base)[:2]:
        layer.register_forward_hook(see, prepend=True)
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert len(hidden) == LAYERS + 1
    assert all(torch.equal(*pair) for pair in zip(hidden, alone, strict=True))
    for shown, before, intervention in zip(hidden[1:], unedited, (first, second), strict=False):
        torch.testing.assert_close(shown[:, 0], intervention(before[:, 0]))
        torch.testing.assert_close(shown[:, 2], before[:, 2])
        assert not torch.allclose(shown[:, 0], before[:, 0])
