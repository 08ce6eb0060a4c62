"""Ours against numbers of stanfordnlp/pyreft 0.1.0: tests/references/make_upstream.py."""

import json

import pytest
import torch
from one_edit import CLASSES, assert_close, at
from stored_llama import ABOUT, REFERENCES, TENSORS, assert_logits, batch, stored_llama

import pyreft

INTEGERS = json.loads((REFERENCES / "upstream_locations.json").read_text())


def stored_intervention(case, index=0, kind="loreft", **arguments):
    """One of our interventions with upstream's weights."""
    name = f"{case}/{index}/"
    weights = {k.removeprefix(name): v for k, v in TENSORS.items() if k.startswith(name)}
    directions = weights["R"] if "R" in weights else weights["P"].T
    intervention = CLASSES[kind](
        embed_dim=directions.shape[0], low_rank_dimension=ABOUT["rank"], **arguments
    )
    source = intervention.learned_source
    with torch.no_grad():
        if "R" in weights:
            intervention.rotate_layer.weight = weights["R"]
        else:
            intervention.proj_layer.weight.copy_(weights["P"])
        if "c" in weights:
            intervention.proj_layer.bias.copy_(weights["c"])
        (source.bias if "W" in weights else source).copy_(weights["b"])
        if "W" in weights:
            source.weight.copy_(weights["W"])
    return intervention.eval()


def stored_model(places, interventions):
    base = stored_llama()
    representations = []
    for (_, layer, component), intervention in zip(places, interventions, strict=True):
        place = {"component": component, "intervention": intervention}
        place["low_rank_dimension"] = ABOUT["rank"]
        representations.append(place if layer is None else {"layer": layer, **place})
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations)).eval()


@pytest.mark.parametrize("case", ABOUT["alone"])
def test_each_kind_gives_upstreams_output(case):
    intervention = stored_intervention(case, **ABOUT["alone"][case])
    expected = TENSORS[f"{case}/output"]
    assert (expected - TENSORS[f"{case}/hidden"]).abs().max() > 0.1
    assert_close(intervention(TENSORS[f"{case}/hidden"]), expected, 1e-6)


@pytest.mark.parametrize("case", ABOUT["in_model"])
def test_an_edited_llama_gives_upstreams_logits(case):
    places = ABOUT["in_model"][case]["at"]
    interventions = [stored_intervention(case, i, kind) for i, (kind, _, _) in enumerate(places)]
    model = stored_model(places, interventions)
    _, outputs = model(batch(), unit_locations=at(ABOUT["in_model"][case]["locations"]))
    assert_logits(outputs.logits, TENSORS[f"{case}/logits"])


def test_directions_of_each_row_give_the_logits_of_upstreams_composition_example():
    model = stored_model([(None, 1, "block_output")], [stored_intervention("composition")])
    locations = ABOUT["in_model"]["one_layer"]["locations"]
    _, outputs = model(batch(), unit_locations=at(locations), subspaces=[[[0], [1, 2]]])
    assert_logits(outputs.logits, TENSORS["composition/logits"])


def test_greedy_generation_gives_upstreams_tokens():
    model = stored_model([(None, 1, "block_output")], [stored_intervention("generation")])
    expected = TENSORS["generation/ids"]
    prompt = {"input_ids": expected[:, :4], "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    arguments = {"max_new_tokens": 8, "do_sample": False}
    bare, generated = model.generate(
        prompt,
        unit_locations=at([[[3], [3]]]),
        intervene_on_prompt=True,
        output_original_output=True,
        **arguments,
    )
    assert torch.equal(generated, expected)
    assert not torch.equal(bare, expected)


def test_gradient_descent_gives_upstreams_losses():
    intervention = stored_intervention("training", kind="noreft", add_bias=True)
    model = stored_model([(None, 1, "block_output")], [intervention]).train()
    optimizer = torch.optim.SGD(intervention.parameters(), lr=ABOUT["training"]["learning_rate"])
    losses = []
    for _ in range(ABOUT["training"]["steps"]):
        _, outputs = model(
            batch(), unit_locations=at([[[0, 3], [0, 3]]]), labels=TENSORS["training/labels"]
        )
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outputs.loss.detach())
    expected = TENSORS["training/losses"]
    assert expected[0] - expected[-1] > 0.1
    assert_close(torch.stack(losses), expected, 1e-5)


def test_intervention_locations_are_upstreams_integers():
    for arguments, expected in INTEGERS["get_intervention_locations"]:
        assert pyreft.get_intervention_locations(**arguments) == expected, arguments


@pytest.mark.parametrize(("spec", "expected"), INTEGERS["parse_positions"])
def test_parsed_positions_are_upstreams_integers(spec, expected):
    assert pyreft.parse_positions(spec) == tuple(expected)


@pytest.mark.parametrize(
    ("short", "positions"),
    [
        ({"sources->base": (None, 2)}, [2]),
        ({"sources->base": 2}, [2]),
        ({"sources->base": [1, 2, 3]}, [1, 2, 3]),
        ({"base": 2}, [2]),
        ({"base": [[[0, 2], [0, 2]]]}, [0, 2]),
    ],
)
def test_short_forms_of_unit_locations_mean_what_they_mean_upstream(short, positions):
    model = stored_model([(None, 1, "block_output")], [stored_intervention("one_layer")])
    _, outputs = model(batch(), unit_locations=short)
    _, expected = model(batch(), unit_locations=at([[positions, positions]]))
    assert torch.equal(outputs.logits, expected.logits)
