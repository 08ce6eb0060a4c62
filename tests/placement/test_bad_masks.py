"""Prompts and masks that do not fit each other are refused, in calls and in generate."""

import pytest
import torch
from encoder_decoder_models import make_generator
from encoder_decoders import wrap as wrap_two_stacks
from reft import cache_of, passing

from conftest import make_base
from pyreft import ReftConfig, get_reft_model

REFUSED = (ValueError, TypeError)
IDS = torch.arange(3, 11)[None]
ONES = torch.ones_like(IDS)
ROWS = IDS.repeat(2, 1)


def wrap(positions="l1"):
    config = ReftConfig(layers=[0], rank=2, positions=positions)
    return get_reft_model(make_base("llama"), config).eval()


def columns(count, rows=1):
    return torch.ones(rows, count, dtype=torch.long)


# ---- generate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS[0]}, r"input_ids must have the shape \(batch, tokens\).*got \(8,\)"),
        ({"input_ids": IDS[None]}, r"input_ids must have the shape.*got \(1, 1, 8\)"),
        ({"input_ids": IDS.tolist()}, "input_ids must be a tensor, got"),
        ({"inputs": "a prompt"}, "input_ids must be a tensor, got 'a prompt'"),
        ({"inputs_embeds": torch.zeros(8, 32)}, r"inputs_embeds.*width\); got \(8, 32\)"),
        ({"inputs_embeds": [[1.0]]}, "inputs_embeds must be a tensor"),
        ({"attention_mask": ONES}, "generate needs a prompt"),
        ({"input_ids": IDS, "attention_mask": ONES.tolist()}, "attention_mask must be a tensor"),
        ({"input_ids": IDS, "attention_mask": {"all": ONES}}, "attention_mask must be a tensor"),
        (
            {"input_ids": IDS, "attention_mask": ONES[0]},
            r"\(batch, tokens\) = \(1, 8\), got \(8,\)",
        ),
        ({"input_ids": IDS, "attention_mask": ONES[None, None]}, r"= \(1, 8\), got \(1, 1, 1, 8\)"),
        ({"input_ids": IDS, "attention_mask": columns(8, rows=2)}, r"= \(1, 8\), got \(2, 8\)"),
        ({"input_ids": IDS, "attention_mask": columns(7)}, r"= \(1, 8\), got \(1, 7\)"),
        ({"input_ids": IDS, "attention_mask": columns(11)}, r"= \(1, 8\), got \(1, 11\)"),
        (
            {"inputs_embeds": torch.zeros(1, 8, 32), "attention_mask": columns(11)},
            r"= \(1, 8\), got \(1, 11\)",
        ),
    ],
)
@pytest.mark.parametrize("positions", ["l1", "all"])
def test_generate_refuses_a_prompt_and_a_mask_that_do_not_fit(positions, arguments, message):
    with pytest.raises(REFUSED, match=message):
        wrap(positions).generate(**arguments, max_new_tokens=2)


@pytest.mark.parametrize("given", ["the rest", "the whole prompt"])
@torch.no_grad()
def test_generate_takes_a_mask_of_what_the_cache_holds_as_well(given):
    model = wrap()
    expected = model.generate(IDS, max_new_tokens=3, do_sample=False)
    cache = passing(cache_of(model.model(IDS[:, :5], use_cache=True)), model)
    arguments = {**cache, "max_new_tokens": 3, "do_sample": False}
    ids = IDS[:, 5:] if given == "the rest" else IDS
    with pytest.raises(ValueError, match=r"got \(1, 9\)"):
        model.generate(input_ids=ids, attention_mask=columns(9), **arguments)
    with pytest.raises(ValueError, match="prompt has 3 tokens, and the cache holds 5 before it"):
        model.generate(input_ids=IDS[:, 5:], **arguments)
    try:
        found = model.generate(input_ids=ids, attention_mask=ONES, **arguments)
    except IndexError as error:
        pytest.skip(f"this transformers cannot: {error}")  # 5.0.0
    assert torch.equal(found[:, -3:], expected[:, -3:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": columns(9)}, r"attention_mask.* = \(1, 8\), got \(1, 9\)"),
        ({"decoder_input_ids": IDS[0]}, r"decoder_input_ids must have the shape.*got \(8,\)"),
        (
            {"decoder_input_ids": torch.tensor([[2, 5]]), "decoder_attention_mask": columns(3)},
            r"decoder_attention_mask.* = \(1, 2\), got \(1, 3\)",
        ),
    ],
)
def test_generate_refuses_such_a_prompt_of_an_encoder_or_a_decoder(arguments, message):
    model = wrap_two_stacks(make_generator("t5"), "decoder")
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=IDS, max_new_tokens=2, **arguments)


# ---- calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [7, 11])
@pytest.mark.parametrize("told", ["by the intervention", "by the call", "all"])
def test_a_call_refuses_a_mask_of_other_tokens(told, count):
    model = wrap("all" if told == "all" else "l1")
    where = {"intervention_locations": torch.tensor([[[-1]]])} if told == "by the call" else {}
    with pytest.raises(ValueError, match=rf"\(batch, tokens\) = \(1, 8\), got \(1, {count}\)"):
        model(IDS, attention_mask=columns(count), **where)


@torch.no_grad()
def test_a_mask_after_a_filled_cache_is_of_all_tokens():
    model = wrap("all")
    mask = columns(8, rows=2)
    mask[1, :2] = 0
    place = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(ROWS, attention_mask=mask, position_ids=place).logits[:, 5:]

    def rest(mask):
        first = model(ROWS[:, :5], attention_mask=before, position_ids=place[:, :5], use_cache=True)
        cache = passing(cache_of(first), model)
        return model(ROWS[:, 5:], attention_mask=mask, position_ids=place[:, 5:], **cache).logits

    before = mask[:, :5]
    torch.testing.assert_close(rest(mask), whole, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"= \(2, 3\), got \(2, 11\)"):
        rest(columns(11, rows=2))


@torch.no_grad()
def test_positions_told_in_a_call_on_a_filled_cache_count_what_its_mask_admits():
    model = wrap()
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 1, 1]])
    seen = []
    model.model.model.layers[0].register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    for where in (0, 1):
        cache = passing(cache_of(model.model(IDS[:, :5], use_cache=True)), model)
        told = {"intervention_locations": torch.tensor([[[where]]])}
        model(IDS[:, 5:], attention_mask=mask, **cache, **told)
    assert (seen[1] != seen[3]).any(-1).tolist() == [[False, True, True]]
