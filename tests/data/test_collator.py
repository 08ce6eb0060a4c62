"""ReftDataCollator pads at the tokenizer's side and keeps every other column."""

import copy

import pytest
import torch

import pyreft


def collate(tokenizer, examples, side="right"):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = side
    return pyreft.ReftDataCollator(tokenizer=tokenizer)(examples)


EXAMPLES = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "intervention_locations": [[0, 1]], "id": 3},
    {"input_ids": [8, 9], "labels": [-100, 9], "intervention_locations": [[0]], "id": 4},
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_either_side_is_padded(tokenizer, side):
    batch = collate(tokenizer, EXAMPLES, side)
    short = [0, 1, 1] if side == "left" else [1, 1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], short]
    assert batch["labels"][batch["attention_mask"] == 0].tolist() == [-100]


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_are_not_shifted_and_are_filled_with_none(tokenizer, side):
    batch = collate(tokenizer, EXAMPLES, side)
    assert batch["intervention_locations"].tolist() == [[[0, 1]], [[0, -100]]]


def test_extra_columns_are_kept(tokenizer):
    examples = [{**one, "text": str(one["id"])} for one in EXAMPLES]
    batch = collate(tokenizer, examples)
    assert batch["id"].tolist() == [3, 4]
    assert batch["text"] == ["3", "4"]


def test_pad_equal_to_eos_hides_no_real_token(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    ids = [5, tokenizer.eos_token_id]
    batch = pyreft.ReftDataCollator(tokenizer=tokenizer)(
        [{"input_ids": ids, "labels": ids}, {"input_ids": [5], "labels": [5]}]
    )
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_upstreams_inner_collator_works(tokenizer):
    from transformers import DataCollatorForSeq2Seq

    inner = DataCollatorForSeq2Seq(tokenizer=tokenizer, label_pad_token_id=-100, padding="longest")
    batch = pyreft.ReftDataCollator(data_collator=inner)(EXAMPLES)
    assert batch["input_ids"].shape == (2, 3)


def test_tensors_are_examples_too(tokenizer):
    examples = [{k: torch.tensor(v) for k, v in one.items()} for one in EXAMPLES]
    assert collate(tokenizer, examples)["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]


def test_an_example_without_any_label_is_refused(tokenizer):
    with pytest.raises(ValueError, match="example 1 of the batch has no label but -100"):
        collate(tokenizer, [EXAMPLES[0], {**EXAMPLES[1], "labels": [-100, -100]}])


def test_a_tokenizer_that_cannot_pad_is_refused(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"set tokenizer.pad_token = tokenizer.eos_token"):
        pyreft.ReftDataCollator(tokenizer=tokenizer)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        pyreft.ReftDataCollator()


@pytest.mark.parametrize("ids", ["abc", None, [], [5, None], [5.0, 6.0], [[5, 6]]])
def test_what_is_no_list_of_token_ids_is_refused(ids, tokenizer):
    with pytest.raises(ValueError, match=r"input_ids of example 1 .*list of token ids"):
        collate(tokenizer, [{"input_ids": [5, 6]}, {"input_ids": ids}])


@pytest.mark.parametrize("label", ["good", None, [1, None], [1, 0]])
def test_what_is_no_number_is_refused_as_a_label(label, tokenizer):
    examples = [{"input_ids": [5, 6], "label": 0}, {"input_ids": [5, 6], "label": label}]
    with pytest.raises(ValueError, match=r"the label of example 1 .*a label is a number"):
        collate(tokenizer, examples)


def test_integers_for_several_classes_are_told_from_floats(tokenizer):
    with pytest.raises(ValueError, match="of several classes at once are floats"):
        collate(tokenizer, [{"input_ids": [5, 6], "labels": [1, 0, 1]}])


@pytest.mark.parametrize("said", [None, 0])
def test_examples_that_were_padded_before_keep_their_positions(tokenizer, said, caplog):
    """Positions count no padding, but for upstream's pad token: one before every text."""
    more = {} if said is None else {"leading_pad": said}
    examples = [
        {
            "input_ids": [0] * pads + [5, 6, 7],
            "attention_mask": [0] * pads + [1, 1, 1],
            "labels": [-100] * (pads + 2) + [7],
            "intervention_locations": [[1]],
            **more,
        }
        for pads in (2, 1)
    ]
    tokenizer.padding_side = "left"
    try:
        batch = pyreft.ReftDataCollator(tokenizer=tokenizer)(examples)
        one = pyreft.ReftDataCollator(tokenizer=tokenizer)(examples[1:])
    finally:
        tokenizer.padding_side = "right"
    assert batch["intervention_locations"].tolist() == [[[1]], [[1]]]
    assert batch["leading_pad"].tolist() == [0, 0]
    assert one["intervention_locations"].tolist() == ([[[1]]] if said == 0 else [[[0]]])
    assert ("taken for the pad token of upstream" in caplog.text) == (said is None)
