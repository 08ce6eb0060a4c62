"""The format is what its page and its JSON Schema say."""

import hashlib
import json
import logging
import re
from pathlib import Path

import jsonschema
import numpy
import pytest
import torch
from encoder_decoder_models import make
from peft import LoraConfig, get_peft_model
from round_trip import CONFIG, IDS, WEIGHTS, wrap
from transformers import AutoModel, AutoModelForQuestionAnswering, AutoModelForTokenClassification

import pyreft
from conftest import CONSTANT, make_base
from pyreft import ReftConfig, ReftModel, get_reft_model
from pyreft.base_model.description import AUTO_CLASSES, describe_base
from pyreft.interventions import OrthonormalProjection

SCHEMA = json.loads((Path(pyreft.__file__).parent / "sharing/reft_config.schema.json").read_text())
PAGE = (Path(__file__).parents[2] / "docs" / "checkpoint_format.md").read_text()


def config_of(directory):
    return json.loads((directory / CONFIG).read_text())


def assert_valid(directory):
    jsonschema.validate(config_of(directory), SCHEMA)


def is_valid(entry):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(entry)


def save_with(directory, change):
    wrap().save_pretrained(directory)
    entry = config_of(directory)
    change(entry)
    (directory / CONFIG).write_text(json.dumps(entry))
    return entry


# ---- the schema ----------------------------------------------------------------------------------


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_what_is_saved_is_valid(architecture, kind, tmp_path):
    config = {"kind": kind, "layers": "all", "dtype": "bfloat16", "add_bias": True, "dropout": 0.5}
    if kind not in CONSTANT:
        config["act_fn"] = "gelu"
    wrap(architecture, **config).save_pretrained(tmp_path)
    assert_valid(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"component": "head_attention_value_output", "heads": [3, 1], "low_rank_dimension": 2},
        {"component": "model.layers[1].mlp.output", "layer": None, "low_rank_dimension": 2},
        {"positions": None, "low_rank_dimension": 2},
        {"intervention": "checkpoint_plain", "powers": [1, 2]},
    ],
)
def test_every_place_and_kind_is_valid(entry, tmp_path):
    wrap(representations=[{"layer": 0, "positions": "l1", **entry}]).save_pretrained(tmp_path)
    assert_valid(tmp_path)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_heads_a_lora_and_two_stacks_are_valid(tmp_path):
    config = ReftConfig(layers=[0], modules_to_save=["classifier"])
    get_reft_model(make_base("bert"), config).save_pretrained(tmp_path / "head")
    lora = get_peft_model(make_base("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model = get_reft_model(lora, ReftConfig(layers=[0]), disable_model_grads=False)
    model.save_pretrained(tmp_path / "lora")
    t5 = get_reft_model(make("t5"), ReftConfig(component="decoder_block_output", positions="all"))
    t5.save_pretrained(tmp_path / "t5")
    for name in ("head", "lora", "t5"):
        assert_valid(tmp_path / name)
    assert config_of(tmp_path / "t5")["base_model"]["task"] == "seq2seq_lm"


BROKEN = [
    lambda e: e.pop("format_version"),
    lambda e: e.pop("interventions"),
    lambda e: e.pop("base_model"),
    lambda e: e.update(notes="x"),
    lambda e: e.update(interventions=[]),
    lambda e: e.update(modules_to_save=[]),
    lambda e: e.update(modules_to_save=["score", "score"]),
    lambda e: e.update(lora={"r": 2}),
    lambda e: e["base_model"].update(notes="x"),
    lambda e: e["base_model"].pop("hidden_size"),
    lambda e: e["base_model"].update(hidden_size=32.5),
    lambda e: e["base_model"].update(hidden_size=True),
    lambda e: e["base_model"].update(vocab_size=-1),
    lambda e: e["base_model"].update(name_or_path="models/../../etc"),
    lambda e: e["base_model"].update(labels=[1, 2]),
    lambda e: e["interventions"][0].update(layer=-1),
    lambda e: e["interventions"][0].update(layer="0"),
    lambda e: e["interventions"][0].update(kind="torch.nn.Linear"),
    lambda e: e["interventions"][0].update(heads=[]),
    lambda e: e["interventions"][0].update(notes="x"),
    lambda e: e["interventions"][0].pop("arguments"),
    lambda e: e["interventions"][0]["arguments"].update(device="cuda"),
    lambda e: e["interventions"][0]["arguments"].update(low_rank_dimension=0),
    lambda e: e["interventions"][0]["arguments"].update(dropout=1.0),
    lambda e: e["interventions"][0]["arguments"].update(add_bias=1),
    lambda e: e["interventions"][0]["arguments"].update(dtype="int8"),
    lambda e: e["interventions"][0]["arguments"].update(rank=2),
]


@pytest.mark.parametrize("damage", BROKEN)
def test_what_the_schema_refuses_is_refused(damage, tmp_path):
    entry = save_with(tmp_path, damage)
    assert not is_valid(entry)
    with pytest.raises(pyreft.AdapterError):
        ReftModel.from_pretrained(make_base("llama"), tmp_path)


# ---- versions ------------------------------------------------------------------------------------


def test_fields_of_a_later_minor_version_are_left_out_with_one_warning(tmp_path, caplog):
    def add(entry):
        entry.update(format_version="2.3", licence="MIT")
        entry["base_model"]["sha256"] = "0"
        entry["interventions"][0]["scale"] = 1.0

    save_with(tmp_path, add)
    with caplog.at_level(logging.WARNING):
        loaded = ReftModel.from_pretrained(make_base("llama"), tmp_path)
    (record,) = caplog.records
    names = ("base_model.sha256", "interventions[0].scale", "licence")
    assert all(name in record.getMessage() for name in names)
    assert torch.equal(loaded(IDS).logits, wrap()(IDS).logits)


def test_a_later_version_without_new_fields_is_read_in_silence(tmp_path, caplog):
    save_with(tmp_path, lambda entry: entry.update(format_version="2.3"))
    ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert not caplog.records


def test_arguments_of_a_later_version_are_refused(tmp_path):
    def add(entry):
        entry["format_version"] = "2.3"
        entry["interventions"][0]["arguments"]["scale"] = 2.0

    save_with(tmp_path, add)
    with pytest.raises(pyreft.AdapterError, match="scale"):
        ReftModel.from_pretrained(make_base("llama"), tmp_path)


# ---- the base model ------------------------------------------------------------------------------


def test_the_base_model_is_described(tmp_path):
    base = make_base("bert")
    base.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    base.config.problem_type = "single_label_classification"
    base.config._commit_hash = "0123456789abcdef0123456789abcdef01234567"
    base.config.name_or_path = "user/model"
    get_reft_model(base, ReftConfig(layers=[0])).save_pretrained(tmp_path)
    assert config_of(tmp_path)["base_model"] == {
        "name_or_path": "user/model",
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "task": "sequence_classification",
        "labels": ["no", "maybe", "yes"],
        "problem_type": "single_label_classification",
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "architecture": "BertForSequenceClassification",
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 99,
    }


def test_a_directory_is_named_by_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = make_base("llama")
    base.config.name_or_path = "../models/mine"
    said = describe_base(base)["name_or_path"]
    assert said == str(tmp_path.parent / "models" / "mine")


@pytest.mark.parametrize(
    ("auto", "task"),
    [
        (AutoModel, "features"),
        (AutoModelForTokenClassification, "token_classification"),
        (AutoModelForQuestionAnswering, "question_answering"),
    ],
)
def test_a_task_is_what_loads_the_model(auto, task):
    base = auto.from_config(make_base("llama").config)
    assert describe_base(base)["task"] == task
    assert type(AUTO_CLASSES[task].from_config(base.config)) is type(base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 100}, "vocab_size 99; this model has vocab_size 100"),
        ({"num_key_value_heads": 4}, "num_key_value_heads 2"),
        ({"intermediate_size": 64}, "intermediate_size 48"),
    ],
)
def test_a_base_of_another_size_is_told_apart(changes, message, tmp_path):
    wrap().save_pretrained(tmp_path)
    with pytest.raises(pyreft.AdapterError, match=message):
        ReftModel.from_pretrained(make_base("llama", **changes), tmp_path)


def test_a_base_with_another_head_is_told_apart(tmp_path):
    wrap().save_pretrained(tmp_path)
    base = AutoModel.from_config(make_base("llama").config)
    with pytest.raises(pyreft.AdapterError, match=r"'LlamaForCausalLM'; this .* 'LlamaModel'"):
        ReftModel.from_pretrained(base, tmp_path)


# ---- what the page computes --------------------------------------------------------------


@pytest.mark.parametrize(("width", "rank"), [(9, 1), (16, 3), (6, 5)])
def test_the_pages_numpy_reads_the_directions(width, rank):
    code = re.search(r"```python\n(def directions.*?)```", PAGE, re.S)[1]
    names = {"np": numpy}
    exec(code, names)
    torch.manual_seed(0)
    projection = OrthonormalProjection(width, rank, dtype=torch.float64)
    with torch.no_grad():
        projection.original.normal_()
        projection.turn.normal_()
    found = names["directions"](*(projection.state_dict()[n].numpy() for n in ("original", "turn")))
    numpy.testing.assert_allclose(found, projection.weight.detach(), rtol=0, atol=1e-12)


def numbers(text):
    return numpy.array([[float(n) for n in line.split()] for line in text.strip().splitlines()])


def documented(name):
    """The matrix or vector that the page shows after a name and "="."""
    pattern = rf"    .*?(?<![\w(]){name} +=  ?([-\d. ]+(?:\n +[-\d. ]+$)*)"
    found = numbers(re.search(pattern, PAGE.split("## A worked example")[1], re.M)[1])
    return found[0] if len(found) == 1 else found


def read_by_hand(path):
    """Tensors and metadata of a file, as somebody reads it who has nothing but the page."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    metadata = header.pop("__metadata__", {})
    assert all(info["dtype"] == "F32" for info in header.values())
    raw = {name: body[slice(*info["data_offsets"])] for name, info in header.items()}
    return header, raw, metadata


def test_the_worked_example_is_computed_from_disk_by_numpy_alone(tmp_path):
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_hidden_layers": 1}
    base = make_base("llama", **sizes)
    model = get_reft_model(base, ReftConfig(layers=[0], positions="l1", rank=2)).eval()
    (module,) = model.interventions.values()
    with torch.no_grad():
        module.rotate_layer.original.copy_(torch.tensor(documented("A")))
        module.learned_source.weight.copy_(torch.tensor(documented("W")))
        module.learned_source.bias.copy_(torch.tensor(documented("b")))
    model.save_pretrained(tmp_path)

    header, raw, metadata = read_by_hand(tmp_path / WEIGHTS)
    key = "layer_0_comp_block_output_unit_pos_nunit_1#0"
    tensors = {
        name.removeprefix(f"{key}."): numpy.frombuffer(raw[name], "<f4").reshape(info["shape"])
        for name, info in header.items()
    }
    free, weight, bias = (
        tensors[name].astype(numpy.float64)
        for name in ("rotate_layer.original", "learned_source.weight", "learned_source.bias")
    )
    q, u = numpy.linalg.qr(free)
    signs = numpy.sign(numpy.diag(u))
    q, u = q * signs, signs[:, None] * u
    hidden = documented("h")
    projected, source = q.T @ hidden, weight @ hidden + bias
    edited = hidden + q @ (source - projected)
    shown = {
        "Q": q,
        "U": u,
        r"Q\^T h": projected,
        r"W h \+ b": source,
        r"W h \+ b - R h": source - projected,
        r"\(W h \+ b - R h\)": edited,
    }
    for name, found in shown.items():
        numpy.testing.assert_allclose(found, documented(name), rtol=0, atol=1e-15)
    module.double()
    ours = module(torch.tensor(hidden)).detach().numpy()
    numpy.testing.assert_allclose(ours, edited, rtol=0, atol=1e-15)

    content = metadata["reft_config"].encode()
    content += b"".join(name.encode() + raw[name] for name in sorted(raw))
    assert hashlib.sha256(content).hexdigest() == metadata["fingerprint"]
    inside = json.loads(metadata["reft_config"])
    assert config_of(tmp_path) == inside | {"fingerprint": metadata["fingerprint"]}
