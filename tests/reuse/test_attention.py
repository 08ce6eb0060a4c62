"""Attention of a window to what is before it is that of transformers, and of float64."""

import threading
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from reused import BASES, SIZES, make_model, make_trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pyreft.reuse import attention
from pyreft.reuse.attention import attending, window_attention

PREFIX, WINDOW, WIDTH = 6, 5, 8
MODULE = SimpleNamespace(num_key_value_groups=3, is_causal=True)


def make_inputs(dtype=torch.float32, prefix=PREFIX, rows=2):
    """Queries of six heads, keys and values of two, a mask that hides a part of each prefix."""
    torch.manual_seed(0)
    length = prefix + WINDOW
    tensors = [torch.randn(rows, heads, n, WIDTH) for heads, n in [(6, WINDOW), (2, length)]]
    tensors.append(torch.randn(rows, 2, length, WIDTH))
    mask = torch.ones(rows, 1, WINDOW, length, dtype=torch.bool).tril(prefix)
    mask[0, :, :, : prefix // 2] = False
    return [t.to(dtype).requires_grad_() for t in tensors], mask


def outputs_and_gradients(function, tensors, mask, scaling=None):
    """The output, and the gradients of queries and of keys and values behind the prefix."""
    out = function(MODULE, *tensors, mask, scaling=scaling)[0]
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grads = torch.autograd.grad((out * weights).sum(), tensors)
    return out.detach(), *(grad[:, :, -WINDOW:] for grad in grads)


@pytest.fixture
def inside(monkeypatch):
    monkeypatch.setattr(attention._HERE, "inside", True)


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("additive", [False, True])
def test_it_is_the_attention_of_float64(scaling, additive):
    tensors, mask = make_inputs()
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = outputs_and_gradients(sdpa_attention_forward, exact, mask, scaling)
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = outputs_and_gradients(window_attention, tensors, mask, scaling)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6)


@pytest.fixture
def fallen_back(monkeypatch):
    """The calls that transformers' attention gets."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        return sdpa_attention_forward(*args, **kwargs)

    monkeypatch.setattr(attention, "sdpa", lambda: counted)
    return calls


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("inputs", "mask", "kwargs"),
    [
        ({"dtype": torch.bfloat16}, True, {}),
        ({"prefix": 0}, True, {}),
        ({"prefix": 0}, False, {}),
        ({}, True, {"position_bias": torch.ones(1, 6, WINDOW, PREFIX + WINDOW)}),
    ],
    ids=["half precision", "no prefix", "no mask", "bias of positions"],
)
def test_what_it_is_not_for_goes_to_transformers(inputs, mask, kwargs, fallen_back):
    tensors, made = make_inputs(**inputs)
    arguments = (MODULE, *tensors, made if mask else None)
    found = window_attention(*arguments, **kwargs)[0]
    assert len(fallen_back) == 1
    assert torch.equal(found, sdpa_attention_forward(*arguments, **kwargs)[0])


@pytest.mark.usefixtures("inside")
def test_autocast_goes_to_transformers(fallen_back):
    tensors, mask = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        window_attention(MODULE, *tensors, mask)
    assert len(fallen_back) == 1


@pytest.mark.usefixtures("inside")
def test_the_prefix_gets_no_gradient():
    tensors, mask = make_inputs()
    window_attention(MODULE, *tensors, mask)[0].sum().backward()
    for tensor in tensors[1:]:
        assert not tensor.grad[:, :, :PREFIX].any()
        assert tensor.grad[:, :, PREFIX:].any()


def test_other_threads_get_the_attention_of_transformers(fallen_back):
    tensors, mask = make_inputs()
    base = BASES["llama"]()
    with attending(base):
        window_attention(MODULE, *tensors, mask)
        assert not fallen_back
        thread = threading.Thread(target=window_attention, args=(MODULE, *tensors, mask))
        thread.start()
        thread.join()
        assert len(fallen_back) == 1
    window_attention(MODULE, *tensors, mask)
    assert len(fallen_back) == 2


@pytest.mark.parametrize("architecture", BASES)
def test_windows_attend_so_and_whole_batches_do_not(architecture, tmp_path, monkeypatch):
    seen = []

    def watched(module, query, *args, **kwargs):
        seen.append((query.shape[2], query.requires_grad))
        return window_attention(module, query, *args, **kwargs)

    monkeypatch.setitem(hf.AttentionInterface._global_mapping, attention._NAME, watched)
    model = make_model(architecture)
    make_trainer(model, tmp_path, max_steps=1).train()
    assert seen
    assert model.model.config._attn_implementation == "sdpa"
    seen.clear()
    make_trainer(model, tmp_path, max_steps=1, reuse_frozen=False).train()
    assert not seen


def make_falcon():
    sizes = {name: SIZES[name] for name in ("hidden_size", "num_attention_heads", "vocab_size")}
    return hf.FalconForCausalLM(hf.FalconConfig(**sizes, num_hidden_layers=2))


def make_eager():
    return hf.LlamaForCausalLM._from_config(hf.LlamaConfig(**SIZES), attn_implementation="eager")


@pytest.mark.parametrize("make", [make_falcon, make_eager])
def test_models_that_attend_in_their_own_way_are_left_alone(make):
    base = make()
    told = base.config._attn_implementation
    with attending(base):
        assert base.config._attn_implementation == told


def test_a_failure_leaves_the_config_as_it_was():
    base = BASES["llama"]()
    with pytest.raises(RuntimeError), attending(base):
        assert base.config._attn_implementation != "sdpa"
        raise RuntimeError
    assert base.config._attn_implementation == "sdpa"
