"""A base model that is compiled gives the numbers that it gives without."""

import warnings

import pytest
import torch
from by_hand import find_layers
from reft import assert_same, batch, gradients, logits, wrap

from conftest import make_base


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


@pytest.mark.filterwarnings("ignore")  # the compiler warns of this and that
def test_a_model_compiled_in_place_gives_the_same_numbers():
    torch._dynamo.reset()
    model, plain = wrap(tiny()), wrap(tiny())
    model.compile(backend="eager")
    inputs = batch(plain.model)
    assert_same(gradients(model, inputs), gradients(plain, inputs))


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
