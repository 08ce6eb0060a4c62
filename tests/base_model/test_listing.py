"""What can be edited in a model is listed before training, and is what configs then find."""

import json

import pytest
import transformers as hf
from architectures import make

import pyreft
from conftest import LAYERS, WIDTH
from pyreft.base_model import trace
from pyreft.cli import main

PLAIN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
PLAIN |= {"num_attention_heads": 2}


def listed(model):
    return {one.component: one for one in pyreft.list_components(model)}


def test_names_have_their_layers_widths_and_tokens():
    found = listed(make("llama"))
    assert found["block_output"].layers == tuple(range(LAYERS))
    assert found["block_output"].width == WIDTH
    assert found["mlp_activation"].width == 48
    assert found["head_attention_value_output"].num_heads == 4
    assert {one.tokens for one in found.values()} == {"text"}
    said = "block_output: layers 0-2, width 32, text tokens, (B, T, D)"
    assert str(found["block_output"]) == said


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "xlnet", "albert"])
def test_an_intervention_fits_whatever_is_listed(architecture):
    for one in pyreft.list_components(make(architecture)):
        config = pyreft.ReftConfig(component=one.component, layers=list(one.layers), rank=2)
        model = pyreft.get_reft_model(make(architecture), config)
        width = one.width // (one.num_heads or 1)
        assert {module.embed_dim for module in model.interventions.values()} == {width}


def test_layers_of_several_widths_are_listed_apart():
    config = hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1], patch_size=2)
    found = pyreft.list_components(hf.ConvNextForImageClassification(config))
    outputs = [one for one in found if one.component == "block_output"]
    assert [(one.layers, one.width, one.shape) for one in outputs] == [
        ((0,), 8, "(B, D, H, W)"),
        ((1,), 12, "(B, D, H, W)"),
    ]
    assert outputs[0].tokens == "image" and outputs[0].kinds == ("patch",)


def test_a_tower_is_listed_by_path():
    found = listed(make("llava"))
    paths = [name for name, one in found.items() if one.tokens == "image"]
    assert len(paths) == LAYERS
    config = pyreft.ReftConfig(component=paths[0], positions="f1", rank=2)
    (module,) = pyreft.get_reft_model(make("llava"), config).interventions.values()
    assert module.embed_dim == found[paths[0]].width == 16
    assert found["block_output"].kinds == ("text", "image")


def test_a_config_is_enough_on_the_command_line(tmp_path, capsys):
    for config, name in [
        (hf.ViTConfig(**PLAIN, image_size=8, patch_size=4), "ViTForImageClassification"),
        (hf.LlamaConfig(**PLAIN, vocab_size=40), "LlamaForCausalLM"),
    ]:
        config.architectures = [name]
        config.save_pretrained(tmp_path / name)
        with pytest.raises(SystemExit) as exit:
            main(["components", str(tmp_path / name), "--json"])
        assert exit.value.code == 0
        found = {one["component"]: one for one in json.loads(capsys.readouterr().out)}
        assert found["block_output"]["width"] == 16
        assert found["block_output"]["tokens"] == ("image" if "ViT" in name else "text")
    with pytest.raises(SystemExit) as exit:
        main(["components", str(tmp_path / "nothing")])
    assert exit.value.code == 1


def test_a_model_that_does_not_run_is_listed_by_its_structure(monkeypatch):
    monkeypatch.setattr(trace, "_run", lambda model: trace.Trace({}, problem="it does not"))
    monkeypatch.setattr(trace, "_traces", {})
    assert listed(make("llama"))["block_output"].width == WIDTH
