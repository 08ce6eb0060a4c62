"""Which tokens are edited: where the prompt ends, if it is short, and if the caller says."""

import pytest
import torch
from padded import assert_close, collate, edited_tokens, last_hidden, texts, wrap

from conftest import by_the_rule, make_base

# ---- where the prompt ends -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_label_ends_the_prompt(causal, side):
    model = wrap(make_base(causal), positions="l1+completion")
    batch = collate(texts(6, 9), side, prompts=[4, 5])
    completion = batch.pop("completion_mask").bool()
    batch["labels"] = batch["input_ids"].masked_fill(~completion, -100)
    assert edited_tokens(model, batch) == [[3, 4, 5], [4, 5, 6, 7, 8]]


def test_a_gap_in_the_labels_needs_a_completion_mask(causal):
    """It may be a second text, or a second turn, whose prompt would not be edited."""
    model = wrap(make_base(causal), positions="prompt")
    batch = collate(texts(8))
    batch["labels"] = torch.tensor([[-100, -100, 5, -100, -100, 5, 5, -100]])
    with pytest.raises(ValueError, match=r"stop and begin again.*completion_mask"):
        edited_tokens(model, batch)
    batch["completion_mask"] = batch["labels"] != -100
    assert edited_tokens(model, batch) == [[0, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_completion_mask_ends_the_prompt(architecture, side):
    model = wrap(make_base(architecture), positions="f1+l2")
    batch = collate(texts(6, 9), side, prompts=[4, 5])
    assert edited_tokens(model, batch) == [[0, 2, 3], [0, 3, 4]]
    batch["completion_mask"] = batch["completion_mask"].bool()
    assert edited_tokens(model, batch) == [[0, 2, 3], [0, 3, 4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_without_labels_the_attention_mask_is_the_prompt(architecture, side):
    model = wrap(make_base(architecture), positions="prompt")
    assert edited_tokens(model, collate(texts(3, 5), side)) == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_without_an_attention_mask_every_token_is_the_prompt(architecture):
    model = wrap(make_base(architecture), positions="l1")
    (row,) = texts(5)
    expected = last_hidden(model, collate([row]))[0]
    with torch.no_grad():
        found = model(row[None], output_hidden_states=True).hidden_states[-1][0]
    assert_close([found], [expected], 1e-6)


@pytest.mark.parametrize(
    "problem, labels",
    [
        ("single_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    ],
)
def test_labels_of_a_whole_text_end_no_prompt(problem, labels):
    """As many tokens as classes, so that a multi-label row has the shape of its text."""
    base = make_base("bert")
    base.config.problem_type = problem
    model = wrap(base, positions="l1")
    assert edited_tokens(model, collate(texts(3, 3)) | {"labels": labels}) == [[2], [2]]


# ---- short prompts -------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_short_prompts_follow_the_paper_and_edit_no_token_twice(architecture, tied, side):
    model = wrap(make_base(architecture), positions="f3+l2", tied=tied)
    lengths = list(range(1, 9))
    batch = collate(texts(*lengths), side)
    assert edited_tokens(model, batch) == [by_the_rule(n, 3, 2) for n in lengths]


def test_a_short_prompt_has_the_same_tokens_in_training_and_alone(causal):
    model = wrap(make_base(causal), positions="f7+l7")
    batch = collate(texts(8, 30), prompts=[5, 20])
    assert edited_tokens(model, batch) == [by_the_rule(5, 7, 7), by_the_rule(20, 7, 7)]
    assert edited_tokens(model, collate(texts(5))) == [by_the_rule(5, 7, 7)]


def test_weights_that_are_not_shared_edit_the_prefix_and_the_suffix(architecture):
    model = wrap(make_base(architecture), positions="f3+l2", tied=False)
    first, last = model.interventions.values()
    batch = collate(texts(4, 8), "left")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(2)
    explicit = torch.tensor([[[0, 1, -100], [2, 3, -100]], [[0, 1, 2], [6, 7, -100]]])
    expected = last_hidden(model, batch | {"intervention_locations": explicit})
    assert_close(last_hidden(model, batch), expected, 1e-6)
    swapped = last_hidden(model, batch | {"intervention_locations": explicit.flip(1)})
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(swapped, expected, strict=True))
    assert first.learned_source.weight.data_ptr() != last.learned_source.weight.data_ptr()


# ---- explicit positions --------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_explicit_positions_win_over_those_of_the_adapter(architecture, side):
    model = wrap(make_base(architecture), positions="f1+l1")
    explicit = torch.tensor([[[1, -1]], [[4, -100]], [[-2, 0]]])
    batch = collate(texts(5, 8, 6), side, prompts=[3, 7, 5])
    batch["intervention_locations"] = explicit
    assert edited_tokens(model, batch) == [[1, 2], [4], [0, 3]]


def packed(first, second):
    ids = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_packed_row_with_positions_gives_the_numbers_of_its_texts(with_labels):
    model = wrap(make_base("llama"), positions="l1")
    first, second = texts(5, 7)
    batch = packed(first, second) | {"intervention_locations": torch.tensor([[[2, 5 + 3]]])}
    if with_labels:
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][0, [0, 1, 2, 5, 6, 7, 8]] = -100
    with torch.no_grad():
        found = model(**batch).logits[0]
        alone = [
            model(row[None], intervention_locations=torch.tensor([[[last]]])).logits[0]
            for row, last in ((first, 2), (second, 3))
        ]
    assert_close([found], [torch.cat(alone)])


def test_a_mask_of_four_dimensions_needs_explicit_positions():
    model = wrap(make_base("llama"), positions="l1")
    (row,) = texts(5)
    mask = torch.ones(1, 1, 5, 5).tril().bool()
    with pytest.raises(ValueError, match="2-D mask, or explicit intervention_locations"):
        model(row[None], mask)
    with torch.no_grad():
        found = model(row[None], mask, intervention_locations=torch.tensor([[[-1]]])).logits
        assert_close([found], [model(row[None]).logits])
