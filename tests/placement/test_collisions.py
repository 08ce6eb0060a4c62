"""On one layer no token is edited twice (Wu et al. 2024, section 3)."""

import pytest
import torch
from reft import IDS, LABELS

from conftest import make_base
from pyreft import ReftConfig, get_reft_model, register_position


def first_token(tokens):
    return tokens.prompt & (tokens.index == 0)


register_position("test_first_token", first_token)


def wrap_two(*positions, **changes):
    """Two interventions at one place, unless `changes` of the second say otherwise."""
    entry = {"layer": 0, "component": "block_output", "low_rank_dimension": 2}
    entries = [
        {**entry, "positions": positions[0]},
        {**entry, "positions": positions[1], **changes},
    ]
    return get_reft_model(make_base("llama"), ReftConfig(representations=entries)).eval()


@pytest.mark.parametrize(
    ("positions", "changes"),
    [
        (("l1", "l2"), {}),
        (("f1", "prompt"), {}),
        (("completion", "all"), {}),
        (("l1", "l1"), {"layer": -3}),
        (("f2", "0"), {}),
        (("9", "-1"), {}),
        (("l1", lambda tokens: tokens.prompt), {}),
        (("l1", "l1"), {"layer": None, "component": "model.layers[0].output"}),
        ((first_token, "test_first_token"), {}),
    ],
)
def test_two_interventions_on_one_token_are_refused(positions, changes):
    with pytest.raises(ValueError, match=r"(?s)edit.*layers?.0.*must be disjoint"):
        wrap_two(*positions, **changes)(IDS)


@pytest.mark.parametrize(
    ("positions", "changes"),
    [
        (("f7", "l7"), {}),
        (("prompt", "completion"), {}),
        (("0", "-1"), {}),
        (("l1", "l1"), {"layer": 1}),
        (("l1", "l1"), {"component": "block_input"}),
    ],
)
def test_interventions_that_share_no_token_of_a_layer_are_not_refused(positions, changes):
    assert wrap_two(*positions, **changes)(IDS, labels=LABELS).loss > 0


def test_two_interventions_on_one_token_of_the_batch_are_refused():
    model = wrap_two("f1", "l1")
    with pytest.raises(ValueError, match=r"interventions 0 and 1 .* column 4 of row 0"):
        model(IDS, intervention_locations=torch.tensor([[[4], [4]]]))


@pytest.mark.parametrize(("heads", "refused"), [([0, 2], True), ([2, 3], False)])
def test_two_interventions_share_a_token_if_they_share_no_head(heads, refused):
    entry = {"layer": 0, "component": "head_attention_value_output", "positions": "l1"}
    entry["low_rank_dimension"] = 2
    entries = [{**entry, "heads": [0, 1]}, {**entry, "heads": heads}]
    config = ReftConfig(representations=entries)
    if refused:
        with pytest.raises(ValueError, match="must be disjoint"):
            get_reft_model(make_base("llama"), config)
    else:
        assert get_reft_model(make_base("llama"), config)(IDS).logits.isfinite().all()
