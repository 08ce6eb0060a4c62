"""Adapters with weights become one, that edits a model as their edits by hand, in float64."""

import pytest
import torch

import pyreft
from conftest import VOCAB, WIDTH, make_base
from pyreft import InterventionConfig, ReftConfig, get_reft_model
from pyreft.config.combination import combine
from pyreft.interventions import intervention_class

IDS = torch.randint(3, VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))
POSITIONS = {"f2": [0, 1], "l1": [7], "f2+l1": [0, 1, 7]}


def adapter(*places, kind="nodireft", seed=0, **arguments):
    """The interventions of an adapter: of (layer, positions), or (layer, positions, component)."""
    torch.manual_seed(seed)
    configs = []
    for layer, positions, *component in places:
        given = {"embed_dim": WIDTH, "low_rank_dimension": 2, "dtype": "float64"} | arguments
        module = intervention_class(kind)(**given).eval()
        where = {
            "layer": layer,
            "positions": positions,
            "component": (*component, "block_output")[0],
        }
        configs.append(InterventionConfig(kind=kind, intervention=module, **where))
    return configs


def combined_logits(weighted):
    base = make_base("llama").double()
    model = get_reft_model(base, ReftConfig(representations=combine(weighted))).eval()
    return model(IDS).logits


def logits_by_hand(weighted):
    """Each edit is computed from what the layer returns, and all are added."""
    base = make_base("llama").double()

    def edit(layer):
        def hook(module, args, output):
            edited = output.clone()
            for configs, weight in weighted:
                for one in configs:
                    if one.layer == layer:
                        at = POSITIONS[str(one.positions)]
                        hidden = output[:, at]
                        edited[:, at] += weight * (one.intervention(hidden) - hidden)
            return edited

        return hook

    for index, layer in enumerate(base.model.layers):
        layer.register_forward_hook(edit(index))
    return base(IDS).logits


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([(0, "f2+l1"), (2, "f2+l1")], [(0, "f2+l1"), (2, "f2+l1")]),
        ([(0, "f2+l1")], [(1, "f2+l1")]),
        ([(0, "f2"), (0, "l1"), (2, "l1")], [(0, "f2"), (0, "l1"), (1, "l1"), (2, "l1")]),
    ],
)
@pytest.mark.parametrize("kind", ["nodireft", "noreft", "lobireft"])
def test_a_combination_edits_as_both_adapters_do(one, other, kind):
    weighted = [(adapter(*one, kind=kind), 0.7), (adapter(*other, kind=kind, seed=1), -1.5)]
    with torch.no_grad():
        ours, expected = combined_logits(weighted), logits_by_hand(weighted)
        bare = make_base("llama").double()(IDS).logits
    assert (expected - bare).abs().max() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_what_stands_alone_may_be_of_any_kind():
    weighted = [(adapter((0, "l1"), kind="loreft"), 2), (adapter((1, "l1"), kind="consreft"), -1)]
    with torch.no_grad():
        torch.testing.assert_close(
            combined_logits(weighted), logits_by_hand(weighted), rtol=0, atol=1e-10
        )


def test_the_adapters_are_not_changed_and_the_result_is_not_them():
    mine = adapter((0, "l1"))
    (made,) = combine([(mine, 1)])
    assert made.intervention is not mine[0].intervention
    assert made.positions == mine[0].positions
    torch.testing.assert_close(
        made.intervention.state_dict(), mine[0].intervention.state_dict(), rtol=0, atol=0
    )


def test_tied_weights_stay_tied_where_the_same_is_done_to_them():
    (first,) = adapter((0, "l1"))
    tied = [
        InterventionConfig(layer, positions="l1", kind="nodireft", intervention=first.intervention)
        for layer in (0, 1, 2)
    ]
    at_0, at_1, at_2 = combine([(tied, 0.5), (adapter((1, "l1"), seed=1), 2)])
    assert at_0.intervention is at_2.intervention is not at_1.intervention
    config = ReftConfig(representations=[at_0, at_1, at_2])
    assert [one.tied_to for one in config.representations] == [None, None, 0]


def test_a_combination_is_saved_and_loaded_as_any_adapter(tmp_path):
    weighted = [(adapter((0, "l1")), 0.5), (adapter((0, "l1"), seed=1, dropout=0.1), 2)]
    configs = combine(weighted)
    model = get_reft_model(make_base("llama").double(), ReftConfig(representations=configs)).eval()
    model.save_pretrained(tmp_path)
    again = pyreft.ReftModel.from_pretrained(make_base("llama").double(), tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        ([(0, "f2+l1")], [(0, "l1")], "share tokens and are not the same"),
        ([(0, "all")], [(0, "prompt")], "share tokens and are not the same"),
        ([(0, "l1")], [(0, None)], "adapter 1 leaves the positions"),
        ([(0, None)], [(0, "l1")], "adapter 0 leaves the positions"),
        ([(0, None), (0, None)], [(0, None)], "adapter 0 has several interventions"),
        (
            [(1, "f3")],
            [(1, "l3")],
            r"0 and 1 edit f3 and l3 of block_output of layer 1.*set_adapter",
        ),
        ([(0, "f2"), (0, "l1")], [(0, "f2")], "0 and 1 edit f2\\+l1 and f2 .* of fewer than 3 tok"),
    ],
)
def test_positions_that_meet_in_part_are_refused(one, other, message):
    with pytest.raises(ValueError, match=message):
        combine([(adapter(*one), 1), (adapter(*other), 1)])


def test_positions_of_the_batch_are_the_same_where_each_adapter_has_one_there():
    (made,) = combine([(adapter((0, None)), 1), (adapter((0, None), seed=1), 1)])
    assert made.positions is None and made.low_rank_dimension == 4


def test_a_position_function_and_its_name_are_the_same_positions():
    function = pyreft.register_position("test_second", lambda tokens: tokens.index == 1)
    (made,) = combine([(adapter((0, function)), 1), (adapter((0, "test_second"), seed=1), 1)])
    assert made.low_rank_dimension == 4


def test_heads_that_are_shared_in_part_are_refused():
    def with_heads(*heads):
        (config,) = adapter((0, "l1", "head_attention_value_output"))
        return [InterventionConfig(**{**vars(config), "heads": heads})]

    assert len(combine([(with_heads(0, 1), 1), (with_heads(2), 1)])) == 2
    assert len(combine([(with_heads(0, 1), 1), (with_heads(0, 1), 1)])) == 1
    with pytest.raises(ValueError, match=r"edit heads \(0, 1\) and \(1,\)"):
        combine([(with_heads(0, 1), 1), (with_heads(1), 1)])


def test_what_cannot_be_joined_says_where():
    with pytest.raises(ValueError, match=r"what edits block_output of layer 0: .* overlap"):
        combine([(adapter((0, "l1"), kind="loreft"), 1), (adapter((0, "l1"), kind="direft"), 1)])
    with pytest.raises(ValueError, match="has no module yet"):
        combine([([InterventionConfig(0, positions="l1")], 1)])
