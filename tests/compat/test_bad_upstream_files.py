"""Upstream's directories that are broken or hostile: refused, and nothing in them is run."""

import json
import pickle
import shutil
import zipfile

import pytest
import torch
from stored_llama import REFERENCES, stored_llama

from pyreft import AdapterError, ReftModel
from pyreft.compat.upstream_files import read_upstream

LOREFT = "<class 'pyreft.interventions.LoreftIntervention'>"
KEY = "intkey_layer_1_comp_block_output_unit_pos_nunit_1#0.bin"


@pytest.fixture
def saved(tmp_path):
    """What upstream wrote of a DiReFT, to be spoiled."""
    source = REFERENCES / "upstream_adapters" / "direft"
    return shutil.copytree(source, tmp_path / "adapter")


def refuse(directory, message):
    with pytest.raises(AdapterError, match=message):
        read_upstream(directory)


def change_config(directory, change):
    path = directory / "config.json"
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))


def change_tensors(directory, change):
    tensors = dict(torch.load(directory / KEY))
    change(tensors)
    torch.save(tensors, directory / KEY)


class Payload:
    """What a pickle would run."""

    ran = False

    def __reduce__(self):
        return setattr, (Payload, "ran", True)


def set_representation(index, value):
    return lambda entry: entry["representations"][0].__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(intervention_types=["<class 'os.system'>"]), "none of the six"),
        (lambda e: e.update(intervention_types=["loreft"]), "none of the six"),
        (lambda e: e.update(intervention_types=[7]), "none of the six"),
        (lambda e: e.update(intervention_types=[]), "1 representations and 0"),
        (lambda e: e.update(intervention_types={}), "no lists"),
        (lambda e: e.update(representations=[]), "no lists"),
        (lambda e: e.pop("representations"), "no lists"),
        (lambda e: e.update(representations=["layer"]), "is not a list of layer"),
        (lambda e: e["representations"][0].extend([1] * 9), "is not a list of layer"),
        (set_representation(0, "1/../../../etc/passwd"), "is no index"),
        (set_representation(0, -1), "is no index"),
        (set_representation(0, True), "is no index"),
        (set_representation(0, None), "No such file|cannot read"),
        (set_representation(1, "../../block.output"), "names no part"),
        (set_representation(1, "a.\x00"), "names no part"),
        (set_representation(1, 5), "named by a string"),
        (set_representation(2, "h.pos"), "only 'pos' works"),
        (set_representation(3, 2), "only 1 works"),
        (set_representation(4, 2), "its rank is 3, config.json says 2"),
        (set_representation(4, "3"), "its rank is 3, config.json says 3"),
        (set_representation(7, [[0, 1]]), "only None works"),
        (set_representation(9, 0), "to share weights"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(change, message, saved):
    change_config(saved, change)
    refuse(saved, message)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"mode": 1, "mode": 2}', '{"a":' * 100_000, "\x00", "null"]
)
def test_a_config_that_is_no_json_object_is_refused(text, saved):
    (saved / "config.json").write_text(text)
    refuse(saved, "cannot read .*config.json")


def test_a_config_that_is_no_text_is_refused(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe{}")
    refuse(saved, "cannot read .*config.json")


def test_a_layer_that_the_model_does_not_have_is_refused(saved):
    change_config(saved, set_representation(0, 10**9))
    (saved / KEY).rename(saved / KEY.replace("layer_1_", f"layer_{10**9}_"))
    with pytest.raises(AdapterError, match="layer 1000000000 is out of range"):
        ReftModel.load(saved, stored_llama())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("learned_source.weight"), "lacks tensor learned_source.weight"),
        (lambda t: t.update(more=torch.zeros(1)), "has the unknown tensor more"),
        (
            lambda t: t.update({"learned_source.bias": torch.zeros(4)}),
            r"not floats of shape \(3,\)",
        ),
        (
            lambda t: t.update({"learned_source.bias": torch.zeros(3).long()}),
            r"not floats of shape \(3,\)",
        ),
        (lambda t: t.update({"learned_source.bias": torch.full((3,), torch.nan)}), "not finite"),
        (lambda t: t.update(embed_dim=torch.tensor(17)), "its embed_dim is 17"),
        (lambda t: t.update({"learned_source.bias": torch.zeros(1).expand(10**12)}), "larger than"),
        (lambda t: t.update({"learned_source.bias": "text"}), "is not a tensor"),
        (lambda t: t.update({5: torch.zeros(1)}), "is not a tensor"),
        (
            lambda t: t.update({"learned_source.bias": torch.zeros(3).to_sparse()}),
            "not a plain tensor",
        ),
        (
            lambda t: t.update({"rotate_layer.parametrizations.weight.0.base": torch.eye(15)}),
            "does not go with",
        ),
        (lambda t: t.pop("rotate_layer.parametrizations.weight.original"), "original is missing"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, saved):
    change_tensors(saved, change)
    refuse(saved, message)


@pytest.mark.parametrize(
    "rotate_layer", [{}, {"rotate_layer": torch.zeros(())}, {"rotate_layer": torch.zeros(0, 0)}]
)
def test_a_loreft_without_directions_is_refused(rotate_layer, saved):
    change_config(saved, lambda e: e.update(intervention_types=[LOREFT]))
    torch.save({"weight": torch.zeros(3, 16), "bias": torch.zeros(3)} | rotate_layer, saved / KEY)
    refuse(saved, "lacks tensor rotate_layer.original|not floats of shape")


@pytest.mark.parametrize("name", [KEY, "pytorch_model.bin"])
@pytest.mark.parametrize("written_by", ["torch", "pickle"])
def test_a_pickle_is_not_run(name, written_by, saved):
    content = {"learned_source.bias": Payload()}
    if written_by == "torch":
        torch.save(content, saved / name)
    else:
        (saved / name).write_bytes(pickle.dumps(content))
    refuse(saved, f"cannot read .*{name}")
    assert not Payload.ran


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(1000)])
def test_a_file_of_tensors_that_is_none_is_refused(content, saved):
    (saved / KEY).write_bytes(content)
    refuse(saved, "cannot read")


def test_a_file_that_is_cut_short_is_refused(saved):
    whole = (saved / KEY).read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        (saved / KEY).write_bytes(whole[:length])
        refuse(saved, "cannot read")


def test_a_file_that_unpacks_to_something_large_is_refused(saved):
    with zipfile.ZipFile(saved / KEY, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    refuse(saved, "compressed")


@pytest.mark.parametrize("name", [KEY, "config.json"])
def test_a_link_out_of_the_directory_is_refused(name, saved, tmp_path):
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    refuse(saved, "is a link to .*, outside the adapter's directory")


def test_a_missing_file_is_named(saved):
    (saved / KEY).rename(saved / KEY.replace("_1_", "_2_"))
    refuse(saved, f"cannot read .*{KEY}")


def test_a_head_that_the_model_does_not_have_is_refused_and_the_model_is_as_it_was(saved):
    torch.save({"score.weight": torch.zeros(2, 2)}, saved / "pytorch_model.bin")
    base = stored_llama()
    with pytest.raises(AdapterError, match=r"has no module 'score.weight'"):
        ReftModel.load(saved, base)
    assert not any(module._forward_hooks for module in base.modules())
