"""The ways in which transformers loads one model: attention, precision, ties and vocabularies.

A file of weights that are quantized needs a package that CI may not have; its test is skipped then.
"""

import pytest
import torch
import transformers as hf
from reft import assert_same, batch, gradients, logits, wrap

import pyreft
from conftest import VOCAB, make_base

IMPLEMENTATIONS = ["eager", "sdpa", "flex_attention"]


def save(base, directory):
    base.save_pretrained(directory)
    return directory


def require_reload(model, base, directory, inputs):
    """A saved adapter on the same base model gives the same numbers, bit for bit."""
    expected = logits(model, inputs)
    model.save_pretrained(directory)
    model.unwrap()
    loaded = pyreft.ReftModel.from_pretrained(base, directory)
    assert torch.equal(logits(loaded, inputs), expected)


# torch says of flex attention that it is slow uncompiled, and how its mask is compiled.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_attention_of_any_implementation_gives_the_same_numbers(how):
    plain = wrap(make_base("llama"))
    base = make_base("llama")
    base.set_attn_implementation(how)
    model, inputs = wrap(base), batch(base)
    here = inputs["attention_mask"].bool()
    prompt = {"inputs": torch.arange(3, 9)[None], "max_new_tokens": 3, "do_sample": False}
    # Flex attention would compile itself for a minute.
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(logits(model, inputs)[here], logits(plain, inputs)[here])
        assert torch.equal(model.generate(**prompt), plain.generate(**prompt))
        if how != "flex_attention":  # has no backward pass on a CPU
            assert_same(gradients(model, inputs), gradients(plain, inputs))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_loaded_in_half_precision_is_edited_and_reloads(dtype, tmp_path):
    directory = save(make_base("llama"), tmp_path / "base")
    base = hf.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    model, inputs = wrap(base), batch(base)
    exact = wrap(make_base("llama"))
    assert {p.dtype for p in model.interventions.parameters()} == {torch.float32}
    here = inputs["attention_mask"].bool()
    found, expected = logits(model, inputs)[here].float(), logits(exact, inputs)[here]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    gradients(model, inputs)
    require_reload(model, base, tmp_path / "adapter", inputs)


def test_a_tied_head_does_not_see_an_edit_of_the_embedding():
    base = make_base("llama", tie_word_embeddings=True)
    assert base.lm_head.weight is base.model.embed_tokens.weight
    before, inputs = base.lm_head.weight.clone(), batch(base)
    model = wrap(base, component="model.embed_tokens.output")
    by_hand = base.model.embed_tokens(inputs["input_ids"])
    (edit,) = model.interventions.values()
    mask = inputs["attention_mask"]
    for row, edited in enumerate([(0, 1, 4)] * 3):
        by_hand[row, list(edited)] = edit(by_hand[row, list(edited)])
    with model.disable_adapter(), torch.no_grad():
        expected = base(inputs_embeds=by_hand, attention_mask=mask).logits
    torch.testing.assert_close(logits(model, inputs), expected)
    gradients(model, inputs)
    assert torch.equal(base.lm_head.weight, before)
    assert base.lm_head.weight is base.model.embed_tokens.weight


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_may_be_resized_before_and_after_wrapping(tied, tmp_path):
    base = make_base("llama", tie_word_embeddings=tied)
    base.resize_token_embeddings(VOCAB + 5, mean_resizing=False)
    model, inputs = wrap(base), batch(base)
    base.resize_token_embeddings(VOCAB + 9, mean_resizing=False)
    inputs["input_ids"][0, 2] = VOCAB + 7
    assert logits(model, inputs).shape[-1] == VOCAB + 9
    gradients(model, inputs)
    require_reload(model, base, tmp_path, inputs)
