"""Bad input to a model: a clear error that leaves no trace, never a silent skip."""

import re

import pytest
import torch
from reft import IDS, LABELS
from torch import nn
from transformers import DataCollatorWithFlattening

from conftest import make_base
from pyreft import (
    PositionSpec,
    ReftConfig,
    get_reft_model,
    register_intervention,
    register_position,
)

REFUSED = (ValueError, TypeError)
MASK = torch.ones_like(IDS)


def wrap(**config):
    config = {"layers": [0], "rank": 2, "positions": "l1"} | config
    return get_reft_model(make_base("llama"), ReftConfig(**config)).eval()


@pytest.fixture
def model():
    return wrap()


# ---- position specs ------------------------------------------------------------------------------


NO_SPECS = ["", " ", "f0", "l0", "f", "f1+", "+l1", "f1l1", "f1+f2", "f-1", "F1", "f1,l1", "q3"]
NO_SPECS += ["f1.5", "--1", "last", "f" + "9" * 20, [], None, 1.5, True]


@pytest.mark.parametrize("spec", NO_SPECS)
def test_a_spec_that_does_not_parse_shows_the_grammar(spec):
    with pytest.raises(REFUSED, match=r"f<n> .* l<n> .* prompt, completion, all.*for example"):
        wrap(positions=spec)(IDS)


@pytest.mark.parametrize("spec", [[1.5], [True], ["f1"], [[0]], b"l1"])
def test_positions_in_a_list_are_integers(spec):
    with pytest.raises(REFUSED, match=re.escape(repr(spec))):
        wrap(positions=spec)


@pytest.mark.parametrize("index", [10, -11])
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_an_index_outside_the_prompt_says_how_long_the_prompt_is(call, index):
    model = wrap(positions=[0, index])
    with pytest.raises(ValueError, match=rf"position {index} .* 10 tokens: .* from -10 to 9"):
        model(IDS) if call == "forward" else model.generate(IDS, max_new_tokens=4)


def test_an_index_in_the_completion_is_outside_the_prompt():
    with pytest.raises(ValueError, match=r"position 7 .* prompt, which has 6 tokens"):
        wrap(positions=[7])(IDS, labels=LABELS)


# ---- positions of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("locations", "message"),
    [
        (torch.tensor([[[10]]]), r"position 10 \(row 0, slot 0\) is outside .* 10 tokens"),
        (torch.tensor([[[0, -11]]]), r"position -11 \(row 0, slot 1\) is outside"),
        (torch.tensor([[0]]), r"shape \(batch, interventions, positions\).*got \(1, 1\)"),
        (torch.tensor([[[0]], [[0]]]), r"batch = 1, got \(2, 1, 1\)"),
        (torch.tensor([[[0], [1]]]), "for 2 interventions, the model has 1"),
        (torch.tensor([[[0.5]]]), "integers, got torch.float32"),
        (torch.tensor([[[True]]]), "integers, got torch.bool"),
        (torch.tensor([[[1j]]]), "integers, got torch.complex64"),
        ([[["0"]]], "intervention_locations"),
        ("l1", "intervention_locations.*l1"),
        (3, "intervention_locations.*3"),
    ],
)
def test_intervention_locations_that_do_not_fit_are_refused(model, locations, message):
    with pytest.raises(REFUSED, match=message):
        model(IDS, intervention_locations=locations)
    with pytest.raises(REFUSED, match=message):
        model.generate(IDS, intervention_locations=locations, max_new_tokens=2)


@pytest.mark.parametrize(
    ("locations", "message"),
    [
        ({"sources->base": (None, [[[10]]])}, "position 10 .* is outside the prompt"),
        ({"base": [[[0], [1]]]}, "for each of the 1 rows"),
        ({"base": [[[0]], [[0]]]}, "for 2 interventions, the model has 1"),
        ({"base": [[0]]}, r"list of positions for each of the 1 rows.*\[0\]"),
        ({"base": "l1"}, "unit_locations.*l1"),
        ({"base": [[[0.5]]]}, "integer|0.5"),
        ({"base": [[[None]]]}, "unit_locations.*None"),
        ({"base": 0, "other": 0}, "a dict with one key"),
        ({"source": 0}, "unknown key 'source' of unit_locations"),
        ([[[0]]], "unit_locations is a dict with one key"),
    ],
)
def test_unit_locations_that_do_not_fit_are_refused(model, locations, message):
    with pytest.raises(REFUSED, match=message):
        model({"input_ids": IDS}, unit_locations=locations)


def test_unit_locations_in_generate_need_intervene_on_prompt(model):
    with pytest.raises(ValueError, match="intervene_on_prompt=True"):
        model.generate({"input_ids": IDS}, unit_locations={"base": 0}, max_new_tokens=2)


@pytest.mark.parametrize("base", [{}, {"input_ids": [[3, 4]]}])
def test_upstreams_batch_holds_tensors(model, base):
    with pytest.raises(REFUSED, match="tensor"):
        model(base, unit_locations={"base": 0})


@pytest.mark.parametrize(
    ("subspaces", "message"),
    [
        ([2], r"indices from 0 to 1, got \[2\]"),
        ([-1], r"indices from 0 to 1, got \[-1\]"),
        ([[[0]], [[0]]], "for 2 interventions, the model has 1"),
        ([[[0], [1]]], "for each of the 1 rows"),
        (torch.tensor([0]), r"shape \(batch, interventions, directions\)"),
        ([0.5], "subspaces.*0.5"),
        ([True], r"indices from 0 to 1, got \[True\]"),
        (True, r"indices from 0 to 1, got \[True\]"),
        (torch.tensor([[[True]]]), r"indices from 0 to 1, got \[True\]"),
        ("first", "subspaces.*first"),
        ([[["a"]]], "subspaces.*a"),
    ],
)
def test_subspaces_that_are_not_there_are_refused(model, subspaces, message):
    with pytest.raises(REFUSED, match=message):
        model(IDS, subspaces=subspaces)
    with pytest.raises(REFUSED, match=message):
        model.generate(IDS, subspaces=subspaces, max_new_tokens=2)


# ---- where the prompt ends -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": torch.full_like(IDS, -100)}, "row 0: its labels .*no token.*Drop the row"),
        ({"completion_mask": torch.zeros_like(IDS)}, "row 0: its completion_mask .*no token"),
        ({"labels": IDS}, "prompt of row 0 is empty.*set them to -100 on the prompt"),
        ({"attention_mask": 0 * MASK}, "prompt of row 0 is empty"),
        ({"attention_mask": MASK[:, 1:]}, r"\(batch, tokens\) = \(1, 10\), got \(1, 9\)"),
        ({"completion_mask": MASK[:, 1:]}, r"completion_mask.*\(1, 9\)"),
        ({"completion_mask": MASK.tolist()}, "completion_mask"),
        ({"labels": IDS.tolist()}, "labels"),
        ({"attention_mask": MASK.tolist()}, "attention.mask"),
        ({"attention_mask": {"full_attention": None}}, "attention.mask"),
        ({"input_ids": IDS[0]}, r"input_ids.*\(10,\)"),
        ({"input_ids": IDS.tolist()}, "input_ids"),
    ],
)
def test_a_batch_in_which_no_prompt_can_be_found_is_refused(model, batch, message):
    with pytest.raises(REFUSED, match=message):
        model(**{"input_ids": IDS} | batch)


def test_an_empty_prompt_is_refused_in_generate(model):
    with pytest.raises(ValueError, match="prompt of row 0 is empty"):
        model.generate(IDS[:, :0], max_new_tokens=2)


def test_without_a_prompt_to_find_an_empty_one_will_do():
    assert wrap(positions="all")(IDS, labels=IDS).loss > 0


@pytest.mark.parametrize("by", ["position_ids", "cu_seq_lens_q", "seq_idx"])
def test_packed_rows_without_positions_are_refused(model, by):
    texts = [{"input_ids": [3, 4, 5], "labels": [-100, 4, 5]}] * 2
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = {k: v for k, v in collate(texts).items() if k in ("input_ids", "labels", by)}
    with pytest.raises(ValueError, match=r"packed.*give intervention_locations"):
        model(**batch)


# ---- what is wrapped, and what it is wrapped with ------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ReftConfig(), nn.Linear(2, 2)), "takes a ReftConfig and a .*model, got Linear and ReftC"),
        (
            (nn.Linear(2, 2), {"layers": [0]}),
            "takes a ReftConfig and a .*model, got dict and Linear",
        ),
        (("gpt2", ReftConfig()), "takes a ReftConfig and a .*model, got ReftConfig and str"),
        ((nn.Linear(2, 2), ReftConfig()), "Linear"),
    ],
)
def test_only_a_model_and_a_config_can_be_wrapped(arguments, message):
    with pytest.raises(REFUSED, match=message):
        get_reft_model(*arguments)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(32, 16), r"Linear must return .* \(1, 1, 32\), got \(1, 1, 16\)"),
        (nn.LSTM(32, 32), "LSTM must return a hidden state of the shape .* got tuple"),
    ],
)
def test_a_module_that_returns_no_hidden_state_is_refused(module, message):
    entry = {"layer": 0, "positions": "l1", "intervention": module}
    with pytest.raises(ValueError, match=message):
        get_reft_model(make_base("llama"), ReftConfig(representations=entry))(IDS)


@pytest.mark.parametrize(
    ("name", "function"),
    [("f1", len), ("all", len), ("a b", len), ("", len), (5, len), ("not_callable", 5)],
)
def test_a_position_function_has_an_identifier_for_a_name(name, function):
    message = (
        "function.*5" if name == "not_callable" else f"{name!r} cannot name a position function"
    )
    with pytest.raises(REFUSED, match=message):
        register_position(name, function)


@pytest.mark.parametrize(
    ("kind", "cls", "message"),
    [
        ("a b", nn.Linear, "named by an identifier, got 'a b'"),
        (nn.Linear, nn.Linear, "named by an identifier"),
        ("loreft", nn.Linear, "'loreft' is LoreftIntervention; choose another name"),
        ("a_function", len, "only a torch.nn.Module class can be an intervention, got"),
        ("a_module", nn.Linear(2, 2), "only a torch.nn.Module class"),
    ],
)
def test_a_kind_is_a_module_class_with_a_name_of_its_own(kind, cls, message):
    with pytest.raises(REFUSED, match=message):
        register_intervention(kind)(cls)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ([PositionSpec.parse("l1")] * 2, "positions for 2 interventions, the model has 1"),
        (["l1"], "l1"),
        ([PositionSpec.parse("f1")], "f1.*l1|l1.*f1"),
    ],
)
def test_positions_that_do_not_fit_the_adapter_are_not_recorded(model, positions, message):
    # A batch at f1, recorded as l1, would make a loaded adapter act where it was not trained.
    with pytest.raises(REFUSED, match=message):
        model.record_positions(positions)


# ---- after an error ------------------------------------------------------------------------------


class Failing(nn.Module):
    def forward(self, hidden):
        raise RuntimeError("as users' code does")


@pytest.mark.parametrize("call", ["forward", "generate"])
@torch.no_grad()
def test_an_error_leaves_no_trace(call):
    base = make_base("llama")
    before = base(IDS).logits
    entry = {"layer": 0, "positions": "all", "intervention": Failing()}
    model = get_reft_model(base, ReftConfig(representations=entry))
    with pytest.raises(RuntimeError, match="as users' code does"):
        model(IDS) if call == "forward" else model.generate(IDS, max_new_tokens=2)
    assert torch.equal(base(IDS).logits, before)
    assert torch.equal(base.generate(IDS, max_new_tokens=3)[:, :10], IDS)


def test_a_model_without_its_adapter_says_how_to_wrap_it_again(model):
    base = model.unwrap()
    with pytest.raises(RuntimeError, match=r"taken off .* unwrap.*get_reft_model"):
        model(IDS)
    assert base(IDS).logits.isfinite().all()
