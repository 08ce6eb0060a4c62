"""Unit locations under padding: columns, tokens, and upstream's pad token."""

import pytest
import torch

from pyreft.compat.columns import read_locations
from pyreft.positions import PositionSpec
from pyreft.positions.counted_pad import count_from_text, without_leading_pad

NONE = -100
F1_L1 = [PositionSpec.parse("f1+l1")]
OPEN = [None]


def batch(*rows):
    """Rows of "." for padding and letters for tokens, as ids and a mask."""
    mask = torch.tensor([[letter != "." for letter in row] for row in rows]).long()
    return {"input_ids": mask * 7, "attention_mask": mask}


def locations(*rows):
    """One intervention: (B, 1, P)."""
    return torch.tensor([[list(row)] for row in rows])


@pytest.mark.parametrize(
    ("rows", "specs", "given", "expected"),
    [
        # No padding at the left: columns are tokens.
        (["abcd", "ab.."], OPEN, [[0, 3], [0, 1]], [[0, 3], [0, 1]]),
        (["abcd", "ab.."], F1_L1, [[1, 2], [1, 0]], [[1, 2], [1, 0]]),
        # Padded at the left: which of both shows in the adapter's own positions,
        (["abcd", "..ab"], F1_L1, [[0, 3], [0, 1]], [[0, 3], [0, 1]]),
        (["abcd", "..ab"], F1_L1, [[0, 3], [2, 3]], [[0, 3], [0, 1]]),
        # or in tokens that are not there,
        (["abcd", "..ab"], OPEN, [[0, 3], [2, 3]], [[0, 3], [0, 1]]),
        # or in columns that hold padding.
        (["abcd", "..ab"], OPEN, [[0, 3], [0, 1]], [[0, 3], [0, 1]]),
        # The last token is the last column.
        (["abcd", "..ab"], OPEN, [[-1, -1], [-1, -1]], [[-1, -1], [-1, -1]]),
        # A pad token before every row, which columns count; its own is no position.
        ([".abcd", ".ab.."], OPEN, [[1, 4], [1, 2]], [[0, 3], [0, 1]]),
        ([".abcd", ".ab.."], OPEN, [[1, 4], [0, 2]], [[0, 3], [NONE, 1]]),
        ([".abcd", "...ab"], OPEN, [[1, 4], [3, 4]], [[0, 3], [0, 1]]),
        ([".abcd", "...ab"], OPEN, [[0, 4], [2, 4]], [[NONE, 3], [NONE, 1]]),
        ([".abcd"], OPEN, [[1, 4]], [[0, 3]]),
        ([".abcd"], F1_L1, [[0, 3]], [[0, 3]]),
        # Filling stays what it is.
        (["abcd", "..ab"], OPEN, [[0, NONE], [2, 3]], [[0, NONE], [0, 1]]),
    ],
)
def test_what_a_script_means_is_found(rows, specs, given, expected):
    found = read_locations(locations(*given), batch(*rows), specs)
    assert found.tolist() == locations(*expected).tolist()


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (["abcdef", "..abcd"], [[0, 3], [2, 3]], "could count columns of the batch or tokens"),
        ([".abcd", "...ab"], [[1, 4], [1, 4]], "1 is on the padding of its row"),
    ],
)
def test_what_could_be_both_or_is_neither_is_an_error(rows, given, message):
    with pytest.raises(ValueError, match=message):
        read_locations(locations(*given), batch(*rows), OPEN)


def test_negative_positions_count_from_the_end_under_any_padding():
    rows = batch("abcdefgh", "...abcde")
    found = read_locations(locations([-1, 6], [-1, 7]), rows, OPEN)
    assert found.tolist() == locations([-1, 6], [-1, 4]).tolist()
    embedded = {
        "inputs_embeds": torch.zeros(1, 5, 3),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]),
    }
    found = read_locations(locations([4]), embedded, OPEN)
    assert found.tolist() == locations([2]).tolist()
    counted = count_from_text(locations([-1, 0, 2]), torch.tensor([1]))
    assert counted.tolist() == locations([-1, NONE, 1]).tolist()


def test_only_columns_of_tokens_lose_the_pad_token():
    given = {
        **batch(".abc"),
        "labels": torch.tensor([[1, 0, 2, 3]]),  # of something else, as many by chance
        "scores": torch.ones(1, 4),
        "leading_pad": torch.tensor([1]),
        "intervention_locations": locations([1]),
    }
    found = without_leading_pad(given)
    assert found["input_ids"].shape == (1, 3)
    assert found["labels"].shape == found["scores"].shape == (1, 4)


def test_labels_end_the_prompt_that_positions_are_in():
    labels = torch.tensor([[NONE, NONE, 5, 5], [NONE, NONE, NONE, 5]])
    found = read_locations(locations([0, 1], [2, 2]), batch("abcd", "..ab"), F1_L1, labels=labels)
    assert found.tolist() == locations([0, 1], [0, 0]).tolist()


def test_leading_pad_tokens_are_counted_and_left_out():
    given = {
        **batch(".abc", "..ab"),
        "labels": torch.tensor([[NONE, NONE, 7, 7], [NONE, NONE, NONE, 7]]),
        "intervention_locations": locations([1, 0], [2, 3]),
        "leading_pad": torch.tensor([1, 2]),
        "id": torch.tensor([0, 1]),
    }
    found = without_leading_pad(given)
    assert "leading_pad" not in found and given["input_ids"].shape == (2, 4)
    assert found["input_ids"].tolist() == [[7, 7, 7], [0, 7, 7]]
    assert found["labels"].tolist() == [[NONE, 7, 7], [NONE, NONE, 7]]
    assert found["intervention_locations"].tolist() == [[[0, NONE]], [[0, 1]]]
    assert found["id"].tolist() == [0, 1]
    assert without_leading_pad(found) == found
    assert count_from_text(None, given["leading_pad"]) is None
