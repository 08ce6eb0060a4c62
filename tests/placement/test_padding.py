"""An edit changes its positions and nothing else, however a batch is padded."""

import copy

import pytest
import torch
from by_hand import find_layers, on_output
from padded import LAYER, assert_close, collate, edited_tokens, last_hidden, texts, wrap

from conftest import make_base
from pyreft import ReftConfig, get_reft_model

# ---- the edit itself ---------------------------------------------------------------------------


def test_the_model_is_the_base_model_with_its_hidden_states_replaced(architecture, kind):
    """Against a hook of two lines on a bare copy of the base model."""
    base = make_base(architecture)
    model = wrap(copy.deepcopy(base), kind=kind, positions="f2+l1")
    batch = collate(texts(5, 8), side="left")
    (intervention,) = model.interventions.values()
    rows, columns = torch.tensor([[0], [1]]), torch.tensor([[3, 4, 7], [0, 1, 7]])

    def replace(hidden):
        hidden = hidden.clone()
        hidden[rows, columns] = intervention(hidden[rows, columns])
        return hidden

    bare = last_hidden(base, batch)
    find_layers(base)[LAYER].register_forward_hook(on_output(replace))
    assert_close(last_hidden(model, batch), last_hidden(base, batch), 1e-6)
    assert all(
        (a - b).abs().max() > 1e-2 for a, b in zip(bare, last_hidden(model, batch), strict=True)
    )


@pytest.mark.parametrize("name", ["block_output", "attention_output", "mlp_output"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_untouched_positions_are_bit_identical(architecture, name, side):
    model = wrap(make_base(architecture), component=name, positions="f1+l2")
    batch = collate(texts(6, 9, 4), side)
    assert edited_tokens(model, batch, name) == [[0, n - 2, n - 1] for n in (6, 9, 4)]


def test_untouched_positions_are_bit_identical_for_every_kind(architecture, kind):
    model = wrap(make_base(architecture), kind=kind, positions="l1")
    assert edited_tokens(model, collate(texts(6, 9))) == [[5], [8]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_untouched_positions_are_bit_identical_below_float32(architecture, dtype):
    model = wrap(make_base(architecture).to(dtype), positions="l1")
    assert edited_tokens(model, collate(texts(6, 9))) == [[5], [8]]


# ---- padding -------------------------------------------------------------------------------------


def check_padding(model, lengths, prompts=None):
    rows = texts(*lengths)
    per_row = [None] * len(rows) if prompts is None else [[n] for n in prompts]
    single = [
        last_hidden(model, collate([row], prompts=n))[0]
        for row, n in zip(rows, per_row, strict=True)
    ]
    for side, extra in [("right", 0), ("left", 0), ("left", 3), ("right", 2), ("both", 2)]:
        assert_close(last_hidden(model, collate(rows, side, extra, prompts)), single)


def test_padding_and_batching_change_no_number_for_any_kind(architecture, kind):
    check_padding(wrap(make_base(architecture), kind=kind, layers="all"), (4, 9, 17))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "positions", ["l1", "f3+l2", "prompt", "completion", "all", "f1+2+-1", "l1+completion"]
)
def test_padding_and_batching_change_no_number_for_any_positions(architecture, positions, tied):
    model = wrap(make_base(architecture), layers="all", positions=positions, tied=tied)
    check_padding(model, (6, 10, 17), prompts=(4, 9, 12))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_embeddings_give_the_numbers_of_their_tokens(architecture, side):
    model = wrap(make_base(architecture), layers="all")
    batch = collate(texts(4, 9), side)
    embedded = dict(batch)
    embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("input_ids")).detach()
    assert_close(last_hidden(model, embedded), last_hidden(model, batch), 1e-6)


# ---- no positions --------------------------------------------------------------------------------

NOWHERE = {
    "no completion": ({"positions": "completion"}, None),
    "no position in the batch": ({"positions": "f7+l7"}, torch.full((2, 3, 2), -100)),
    "a batch with room for none": ({"positions": "f7+l7"}, torch.zeros(2, 3, 0).long()),
    "positions left to the batch": ({"representations": [{"layer": 1, "rank": 4}]}, None),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_without_positions_it_is_exactly_the_base_model(architecture, kind, case):
    config, explicit = copy.deepcopy(NOWHERE[case])
    if "representations" in config:
        config = {"representations": [{"layer": 1, "low_rank_dimension": 4, "intervention": kind}]}
    else:
        config |= {"kind": kind, "layers": "all", "rank": 4}
    model = get_reft_model(make_base(architecture), ReftConfig(**config)).eval()
    batch = collate(texts(4, 7), "left")
    with torch.no_grad():
        expected = make_base(architecture)(**batch, output_hidden_states=True)
        found = model(**batch, output_hidden_states=True, intervention_locations=explicit)
    assert torch.equal(found.logits, expected.logits)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)
