"""ReftConfig: what it says is what is learned, in memory and as JSON."""

import json

import pytest
import torch
from torch import nn

import pyreft
from conftest import LAYERS, WIDTH, make_base
from pyreft import InterventionConfig, PositionSpec, ReftConfig, get_reft_model

# Every argument of the short form with a value that is not its default.
SHORT_FORM = {
    "layers": [2, 0],
    "component": "mlp_output",
    "positions": "f2+l1",
    "kind": "nodireft",
    "rank": 3,
    "tied": False,
    "heads": [0, 2],
    "dropout": 0.25,
    "act_fn": "relu",
    "add_bias": True,
    "dtype": "float64",
    "arguments": {"low_rank_dimension": 5},
}
ENTRY = {"layer": 1, "component": "block_output", "low_rank_dimension": 2}


def through_json(config):
    return ReftConfig.from_dict(json.loads(json.dumps(config.to_dict())))


def build(config):
    """The interventions, spelled out, of an adapter on a Llama of three layers."""
    return get_reft_model(make_base("llama"), config).reft_config.representations


# ---- the short form ------------------------------------------------------------------------------


def test_the_default_is_the_papers_set_up():
    built = build(ReftConfig())
    assert [one.layer for one in built] == list(range(LAYERS))
    assert {str(one.positions) for one in built} == {"f7+l7"}
    assert {(one.kind, one.component) for one in built} == {("loreft", "block_output")}
    assert {one.low_rank_dimension for one in built} == {8}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", [0, 1, 2]),
        (1, [1]),
        (-1, [2]),
        ([2, 0], [2, 0]),
        ((0, -1), [0, 2]),
        (range(2), [0, 1]),
    ],
)
def test_layers_are_all_or_one_or_several(layers, expected):
    assert [one.layer for one in build(ReftConfig(layers=layers))] == expected


@pytest.mark.parametrize(
    ("argument", "value"),
    [("dropout", 0.25), ("act_fn", "relu"), ("add_bias", True), ("dtype", "float64")],
)
def test_an_argument_reaches_the_intervention(argument, value):
    (one,) = build(ReftConfig(layers=[0], kind="noreft", **{argument: value}))
    assert one.arguments[argument] == value
    assert one.intervention.get_config()[argument] == value


def test_a_dtype_may_be_torchs_own():
    assert ReftConfig(dtype=torch.bfloat16) == ReftConfig(dtype="bfloat16")


def test_a_kind_may_be_named_by_its_class(kind):
    cls = type(build(ReftConfig(kind=kind))[0].intervention)
    assert cls.__name__.lower() == f"{kind}intervention"
    assert ReftConfig(kind=cls) == ReftConfig(kind=kind)


def test_weights_that_are_not_tied_are_an_intervention_for_each_part_and_layer():
    built = build(ReftConfig(layers=[0, 1], positions="f2+l3", tied=False))
    assert [(str(one.positions), one.layer) for one in built] == [
        ("f2", 0),
        ("f2", 1),
        ("l3", 0),
        ("l3", 1),
    ]
    assert len({id(one.intervention) for one in built}) == 4


def test_arguments_are_those_of_a_kind_of_ones_own():
    (one,) = build(ReftConfig(layers=[0], arguments={"low_rank_dimension": 5, "dropout": 0.5}))
    assert (one.arguments["low_rank_dimension"], one.arguments["dropout"]) == (5, 0.5)


@pytest.mark.parametrize("argument", sorted(SHORT_FORM))
def test_every_argument_survives_json(argument):
    config = ReftConfig(**{argument: SHORT_FORM[argument]})
    assert config != ReftConfig()
    assert through_json(config) == config


@pytest.mark.parametrize("layers", [(0, 2), range(2), 1])
def test_layers_survive_json_however_they_were_given(layers):
    config = ReftConfig(layers=layers)
    assert through_json(config).resolve(LAYERS) == config.resolve(LAYERS)


def test_a_file_holds_the_config(tmp_path):
    config = ReftConfig(**{k: v for k, v in SHORT_FORM.items() if k != "arguments"})
    config.to_json_file(tmp_path / "config.json")
    assert ReftConfig.from_json_file(tmp_path / "config.json") == config


# ---- upstream's form -----------------------------------------------------------------------------


def test_one_representation_is_a_dict_and_several_a_list():
    assert ReftConfig(representations=ENTRY) == ReftConfig(representations=[ENTRY])


def test_a_config_may_be_made_by_position_as_upstream_does():
    assert ReftConfig([ENTRY]) == ReftConfig(representations=[ENTRY])


@pytest.mark.parametrize("name", ["intervention", "intervention_type"])
def test_a_representation_names_its_intervention_by_class(name):
    (one,) = build(ReftConfig(representations={**ENTRY, name: pyreft.NoreftIntervention}))
    assert isinstance(one.intervention, pyreft.NoreftIntervention)
    assert one.low_rank_dimension == 2


def test_intervention_types_are_for_representations_that_name_none():
    named = {**ENTRY, "layer": 2, "intervention": "direft"}
    config = ReftConfig([ENTRY, named], intervention_types=pyreft.NoreftIntervention)
    assert [one.kind for one in build(config)] == ["noreft", "direft"]


def test_a_module_in_a_representation_is_used_as_it_is():
    module = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=2)
    assert build(ReftConfig(representations={**ENTRY, "intervention": module}))[0].intervention is (
        module
    )


def test_one_module_in_two_representations_shares_its_weights():
    module = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=2)
    entries = [{**ENTRY, "layer": layer, "intervention": module} for layer in (0, 2)]
    built = build(through_json(ReftConfig(representations=entries)))
    assert [one.tied_to for one in built] == [None, 0]
    assert built[0].intervention is built[1].intervention


def test_every_field_of_a_representation_survives_json():
    entry = {
        "layer": -1,
        "component": "head_attention_value_output",
        "positions": "f1+-1",
        "heads": [3, 1],
        "intervention": "noreft",
        "low_rank_dimension": 3,
        "dropout": 0.5,
        "act_fn": "tanh",
        "add_bias": True,
        "dtype": "bfloat16",
    }
    config = ReftConfig(representations=[entry, ENTRY])
    again = through_json(config)
    assert again == config
    first, second = again.resolve(LAYERS)
    assert first.arguments == {
        key: entry[key] for key in ("low_rank_dimension", "dropout", "act_fn", "add_bias", "dtype")
    }
    assert (first.layer, first.component, first.heads) == (2, entry["component"], (3, 1))
    assert (str(first.positions), first.kind) == ("f1+-1", "noreft")
    assert (second.positions, second.kind) == (None, "loreft")


def test_a_built_config_survives_json(kind):
    config = get_reft_model(make_base("llama"), ReftConfig(kind=kind, tied=False)).reft_config
    assert through_json(config).resolve(LAYERS) == config.resolve(LAYERS)


# ---- errors: what was given, what is possible ----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [0, 3]}, "layer 3 is out of range: the model has 3 layers, 0 to 2"),
        ({"layers": -4}, "layer -4 is out of range: the model has 3 layers"),
        ({"layers": [0, -3]}, r"layers must be different, and at least one, got \[0, -3\]"),
        ({"layers": []}, "at least one"),
        ({"layers": "0-2"}, "layers must be \"all\" or indices, got '0-2'"),
        ({"layers": [True]}, "a layer is an index, got True"),
        ({"layers": 1.0}, "layer.*1.0"),
        ({"layers": None}, "layer.*None"),
        ({"component": "block"}, "unknown component 'block': one of block_input, .*, or a path"),
        ({"component": 5}, "component.*5"),
        ({"kind": "loref"}, r"unknown kind of intervention 'loref'; known: .*loreft.*register"),
        ({"kind": nn.Linear}, "cannot make the intervention .* of kind 'Linear'"),
        ({"rank": 0}, "from 1 to embed_dim, which is 32; got 0"),
        ({"rank": 33}, "from 1 to embed_dim, which is 32; got 33"),
        ({"rank": 1.5}, "1.5"),
        ({"rank": "4"}, "'4'"),
        ({"tied": "no"}, "tied.*'no'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": "0.1"}, "dropout.*'0.1'"),
        ({"act_fn": "rel"}, "unknown act_fn 'rel'; one of .*relu"),
        ({"act_fn": "relu", "kind": "consreft"}, "trains a constant; it takes no act_fn"),
        ({"add_bias": "yes"}, "add_bias.*'yes'"),
        ({"dtype": "int8"}, "must be a floating point type such as float32, got 'int8'"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"heads": [0]}, "block_output has no heads.*head_attention_value_output"),
        ({"arguments": {"rank": 2}}, "missing .* 'low_rank_dimension'"),
        ({"arguments": {"low_rank_dimension": 2}, "dropout": 0.5}, "dropout"),
        ({"arguments": [2]}, r"arguments.*\[2\]"),
        ({"representations": []}, "representations is empty"),
        ({"representations": "l1"}, "must be a dict or a list of dicts, got 'l1'"),
        ({"representations": [ENTRY, 5]}, "representation 1 must be a dict, got 5"),
        ({"representations": ENTRY, "rank": 4}, "rank belongs into"),
        ({"representations": ENTRY, "positions": "l1"}, "positions belongs into"),
        ({"intervention_types": pyreft.NoreftIntervention}, "intervention_types.*representations"),
        (
            {"layers": [0, 1], "component": "model.layers[0].output"},
            "path.*layer|layer.*path",
        ),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_in_its_own_words(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(ReftConfig(**arguments))


def test_a_module_is_no_kind():
    module = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=4)
    with pytest.raises((ValueError, TypeError), match="kind"):
        ReftConfig(kind=module)  # its weights would be lost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 3}, "layer 3 is out of range: the model has 3 layers"),
        ({"layer": "o"}, "a layer is an index, got 'o'"),
        ({"layer": None}, "'block_output' needs a layer"),
        ({"component": None}, "a component is named by a string, got None"),
        ({"low_rank_dimension": None}, "low_rank_dimension"),
        ({"low_rank_dimension": 40}, "which is 32; got 40"),
        ({"foo": 1}, "foo"),
        ({"unit": "h.pos"}, "unit='h.pos'"),
        ({"max_number_of_units": 2}, "max_number_of_units=2"),
        ({"intervention_link_key": 0}, "give the same module as `intervention` of both"),
        ({"intervention": "loref"}, "unknown kind of intervention 'loref'"),
        ({"intervention": 5}, "a name or a module class, got 5. A module .* representations"),
        ({"intervention": nn.Linear}, "cannot make the intervention .* of kind 'Linear'"),
        ({"intervention": pyreft.LoreftIntervention(16, 2)}, "of width 16; .* width 32"),
        ({"heads": 5}, "heads.*5"),
        ({"arguments": [1]}, r"arguments.*\[1\]"),
        ({"positions": "f0"}, "'f0' selects nothing; .*f<n>"),
    ],
)
def test_a_representation_that_makes_no_sense_is_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build(ReftConfig(representations={**ENTRY, **change}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"rnk": 4}, "unknown field 'rnk' of a config; known: .*rank"),
        ({"rank": "4"}, "'rank' of a config cannot be '4'"),
        ({"rank": True}, "'rank' of a config cannot be True"),
        ({"tied": 1}, "'tied' of a config cannot be 1"),
        ({"positions": "q7"}, "cannot read 'q7'"),
        ({"interventions": {}}, "must be a list of objects"),
        ({"interventions": [], "rank": 4}, "unknown field rank beside interventions"),
        ({"interventions": [{"kind": "loreft"}]}, "lacks the field arguments, component"),
    ],
)
def test_json_of_another_shape_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        ReftConfig.from_dict(entry)


def test_an_intervention_config_made_by_hand_holds_parsed_positions():
    one = InterventionConfig(layer=0, positions="l1", arguments={"low_rank_dimension": 2})
    model = get_reft_model(make_base("llama"), ReftConfig(representations=[one]))
    assert model.reft_config.representations[0].positions == PositionSpec.parse("l1")
    assert model(torch.arange(3, 9)[None]).logits.shape[1] == 6


def test_a_path_alone_is_one_intervention():
    assert len(build(ReftConfig(component="model.layers[0].output"))) == 1
