"""Loading: what is no adapter, or one for another model, is refused, and memory is as it was."""

import json
import socket
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants
from round_trip import CONFIG, IDS, WEIGHTS, wrap

from conftest import make_base
from pyreft import AdapterError, PositionSpec, ReftModel


@pytest.fixture
def saved(tmp_path):
    """A directory that holds an adapter."""
    wrap().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def load(directory, base=None):
    return ReftModel.from_pretrained(make_base("llama") if base is None else base, directory)


def refuse(directory, message, base=None):
    with pytest.raises(AdapterError, match=message):
        load(directory, base)


def change_config(directory, change):
    entry = json.loads((directory / CONFIG).read_text())
    change(entry)
    (directory / CONFIG).write_text(json.dumps(entry))


def change_tensors(directory, change):
    tensors = safetensors.torch.load_file(directory / WEIGHTS)
    change(tensors, next(name for name in tensors if name.endswith("learned_source.weight")))
    safetensors.torch.save_file(tensors, directory / WEIGHTS)


# ---- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "./adapter",
        "/no/such/place",
        "~/none",
        ".",
        "..",
        "../adapter",
        "a/b/c",
        "user/",
        "/adapter",
        "user\\adapter",
        "C:adapter",
        "-name",
        "a..b/c",
        "owner/name with spaces",
        "owner/\u00fcml\u00e4ut",
        "owner/name\n",
        Path("user/adapter"),
        "saved/adaptr",
    ],
)
@pytest.mark.parametrize("loader", [load, lambda path: ReftModel.load(path, make_base("llama"))])
def test_a_path_that_does_not_exist_is_never_taken_for_a_hub_name(
    path, loader, tmp_path, monkeypatch
):
    def connect(*args):
        raise AssertionError("a network was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved").mkdir()
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(AdapterError, match=r"^(there is no directory|'\.+' is no adapter)"):
        loader(path)


def test_a_directory_that_is_not_an_adapter_says_what_an_adapter_is(tmp_path):
    refuse(tmp_path, f"is no adapter: it needs {CONFIG} and {WEIGHTS}; there is nothing")
    (tmp_path / "model.safetensors").write_text("x")
    refuse(tmp_path, r"there is model\.safetensors")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_one_file_of_two_is_no_adapter(saved, name):
    (saved / name).unlink()
    refuse(saved, f"it needs {CONFIG} and {WEIGHTS}")


def test_a_file_is_no_adapter(saved):
    refuse(saved / WEIGHTS, "is no adapter.*a file")


def test_the_order_of_model_and_directory_is_explained(saved):
    with pytest.raises(TypeError, match="the base model first, then the directory"):
        ReftModel.from_pretrained(saved, make_base("llama"))


# ---- files that are damaged ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'"loreft"']
)
def test_json_that_is_no_config_is_refused(saved, data):
    (saved / CONFIG).write_bytes(data)
    refuse(saved, rf"cannot read .*{CONFIG}: ")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: b"PK\x03\x04 a zip file, as pickles are",
    ],
)
def test_weights_that_are_damaged_are_refused(saved, damage):
    path = saved / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    refuse(saved, rf"cannot read .*{WEIGHTS}: ")


@pytest.mark.parametrize("version", [None, 1, 1.0, "1", "x", "1.0.0", "1.0\n", []])
def test_a_version_that_is_none_is_refused(saved, version):
    change_config(saved, lambda entry: entry.update(format_version=version))
    refuse(saved, "format_version is .* not a version")


@pytest.mark.parametrize(
    ("version", "advice"), [("3.0", "upgrade"), ("0.9", "install a"), ("10.0", "upgrade")]
)
def test_another_major_version_is_refused_with_what_to_do(saved, version, advice):
    change_config(saved, lambda entry: entry.update(format_version=version))
    refuse(saved, rf"format is {version}, this pyreft reads 1\.x to 2\.x: {advice} pyreft")


def test_a_later_minor_version_is_read(saved):
    change_config(saved, lambda entry: entry.update(format_version="2.7"))
    assert load(saved)(IDS).logits.isfinite().all()


# ---- configs that do not fit ---------------------------------------------------------------------

ARGUMENTS = {"embed_dim": 32, "low_rank_dimension": 2}
WRONG = [
    ({"format": 1}, "unknown field 'format' of an intervention; known: layer"),
    ({"layer": "0"}, "'layer' of an intervention cannot be '0'"),
    ({"layer": True}, "'layer' of an intervention cannot be True"),
    ({"layer": 0.0}, "'layer' of an intervention cannot be 0.0"),
    ({"layer": 3}, "layer 3 is out of range: the model has 3 layers"),
    ({"layer": None}, "'block_output' needs a layer"),
    ({"component": 5}, "'component' of an intervention cannot be 5"),
    ({"component": "block"}, "unknown component 'block'"),
    ({"component": "__class__.output"}, "no module '__class__'"),
    ({"positions": 1}, "'positions' of an intervention cannot be 1"),
    ({"positions": "f0"}, "'f0' selects nothing"),
    ({"positions": "my_function"}, "cannot read 'my_function'.*registered function"),
    ({"kind": None}, "'kind' of an intervention cannot be None"),
    ({"kind": "os.system"}, r"unknown kind of intervention 'os\.system'.*register_intervention"),
    ({"arguments": [1]}, r"'arguments' of an intervention cannot be \[1\]"),
    ({"arguments": {}}, "low_rank_dimension"),
    ({"arguments": {**ARGUMENTS, "rank": 2}}, "has no argument 'rank'"),
    ({"arguments": {**ARGUMENTS, "embed_dim": 16}}, "of width 16; .* width 32"),
    ({"arguments": {**ARGUMENTS, "embed_dim": 10**12}}, "width|embed_dim"),  # and no allocation
    ({"arguments": {**ARGUMENTS, "low_rank_dimension": 2.5}}, "2.5"),
    ({"arguments": {**ARGUMENTS, "dtype": "os"}}, "floating point type such as float32, got 'os'"),
    ({"arguments": {**ARGUMENTS, "device": "meta"}}, "device"),
    ({"heads": [0]}, "block_output has no heads"),
    ({"heads": ["a"]}, "head"),
    ({"tied_to": 0}, "intervention 0 is tied to 0, which must come before it"),
    ({"tied_to": "0"}, "'tied_to' of an intervention cannot be '0'"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_an_intervention_that_does_not_fit_is_refused_with_the_adapters_name(
    saved, fields, message
):
    change_config(saved, lambda entry: entry["interventions"][0].update(fields))
    with pytest.raises(AdapterError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("name", ["component", "kind", "arguments"])
def test_an_intervention_that_lacks_a_field_is_refused(saved, name):
    change_config(saved, lambda entry: entry["interventions"][0].pop(name))
    refuse(saved, f"lacks the field {name}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"notes": "x"}, "unknown field notes"),
        ({"interventions": []}, "nothing to train"),
        ({"interventions": {}}, "must be a list of objects"),
        ({"base_model": "llama"}, "'base_model' must be an object"),
    ],
)
def test_a_config_of_another_shape_is_refused(saved, fields, message):
    change_config(saved, lambda entry: entry.update(fields))
    refuse(saved, message)


def test_two_interventions_on_one_token_are_refused(saved):
    change_config(saved, lambda entry: entry["interventions"].append(entry["interventions"][0]))
    refuse(saved, "two interventions edit one token")


def test_shared_weights_of_another_kind_are_refused(tmp_path):
    module = next(iter(wrap().interventions.values()))
    entries = [{"layer": i, "positions": "l1", "intervention": module} for i in (0, 1)]
    wrap(representations=entries).save_pretrained(tmp_path)
    change_config(tmp_path, lambda entry: entry["interventions"][1].update(kind="noreft"))
    refuse(tmp_path, "tied|share")


# ---- another model -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (("llama", {"hidden_size": 64}), "hidden_size 32; this model has hidden_size 64"),
        (("llama", {"num_hidden_layers": 4}), "num_hidden_layers 3; this .* num_hidden_layers 4"),
        (("gpt2", {}), "model_type 'llama'; this model has model_type 'gpt2'"),
    ],
)
def test_an_adapter_for_another_model_says_what_differs(saved, base, message):
    architecture, sizes = base
    refuse(saved, message, make_base(architecture, **sizes))


# ---- tensors that do not fit: nothing in memory is changed ---------------------------------------

BAD_TENSORS = [
    (lambda tensors, name: tensors.pop(name), "lacks tensor .*learned_source.weight"),
    (lambda tensors, name: tensors.update(extra=torch.ones(1)), "has the unknown tensor extra"),
    (
        lambda tensors, name: tensors.update({name: tensors[name].T.contiguous()}),
        r"shape \(32, 2\); the config makes it float32 of shape \(2, 32\)",
    ),
    (lambda tensors, name: tensors.update({name: torch.ones(())}), r"shape \(\)"),
    (lambda tensors, name: tensors.update({name: tensors[name].int()}), "is int32"),
]


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS)
def test_a_base_model_is_as_it_was_after_a_load_that_failed(saved, change, message):
    change_tensors(saved, change)
    base = make_base("llama").train()
    refuse(saved, message, base)
    assert base.training
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())
    for name, parameter in make_base("llama").named_parameters():
        assert torch.equal(base.get_parameter(name), parameter)


@pytest.mark.parametrize(("change", "message"), BAD_TENSORS)
def test_an_adapter_in_memory_is_as_it_was_after_a_load_that_failed(saved, change, message):
    model = wrap()
    torch.nn.init.normal_(next(iter(model.interventions.values())).learned_source.weight)
    before = {name: tensor.clone() for name, tensor in model.interventions.state_dict().items()}
    change_tensors(saved, change)
    with pytest.raises(AdapterError, match=message):
        model.load_intervention(saved)
    after = model.interventions.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


# ---- weights into an adapter that is there -------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "direft"}, "has kind 'loreft', this model's has 'direft'"),
        ({"layers": [1]}, "has layer 0, this model's has 1"),
        ({"layers": [0, 1]}, "has 1 interventions, this model has 2"),
        ({"rank": 3}, "has arguments .*'low_rank_dimension': 2"),
        ({"act_fn": "relu"}, "has arguments .*'act_fn': None"),
        ({"component": "mlp_output"}, "has component 'block_output'"),
        ({"positions": "f1"}, "has positions 'l1'"),
    ],
)
def test_weights_of_another_config_are_refused(saved, config, message):
    with pytest.raises(AdapterError, match=message):
        wrap(**config).load_intervention(saved)


def test_weights_bring_their_positions_where_the_config_leaves_them_open(saved):
    model = wrap(representations={"layer": 0, "low_rank_dimension": 2})
    model.load_intervention(saved)
    assert model.reft_config.representations[0].positions == PositionSpec.parse("l1")
    assert torch.equal(model(IDS).logits, load(saved)(IDS).logits)
