"""A component is the same with PEFT's LoRA beneath it: same module, same width, same edit."""

import copy
import functools
from dataclasses import replace

import encoder_decoder_models
import pytest
import torch
from architectures import PARTS, make
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from conftest import VOCAB, randomize
from pyreft import ReftConfig, get_reft_model
from pyreft.base_model.components import CROSS_NAMES, NAMES, find_component

# PEFT uses names that transformers has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")
LAYER = 1
IDS = torch.randint(3, VOCAB - 9, (2, 7), generator=torch.Generator().manual_seed(0))
TWO_STACKS = {"t5": encoder_decoder_models.make, "bart": encoder_decoder_models.make}
OF_TWO_STACKS = [*NAMES, *(f"decoder_{name}" for name in (*NAMES, *CROSS_NAMES))]
PLACES = [(a, c) for a in PARTS for c in NAMES]
PLACES += [(a, c) for a in TWO_STACKS for c in OF_TWO_STACKS]
# OPT flattens the tokens of a batch into one dimension around its feed-forward part.
RUNNABLE = [p for p in PLACES if p[0] != "opt" or not p[1].startswith("mlp")]
# MPT does not run in float64 in transformers 5.0.
RUNNABLE = [p for p in RUNNABLE if p[0] != "mpt"]


@functools.cache
def make_models(architecture):
    """In float64: the bare model, the same with a random LoRA in its layers, and that merged."""
    base = TWO_STACKS.get(architecture, make)(architecture).double()
    lora = with_lora(copy.deepcopy(base))
    return base, lora, copy.deepcopy(lora).merge_and_unload()


def linears_in_layers(base):
    linears = {n: m for n, m in base.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    return {n: m for n, m in linears.items() if any(part.isdigit() for part in n.split("."))}


def with_lora(base):
    """LoRA with random weights on every linear map of every layer."""
    linears = linears_in_layers(base)
    torch.manual_seed(0)
    config = LoraConfig(
        target_modules=list(linears),
        r=4,
        init_lora_weights=False,
        fan_in_fan_out=any(isinstance(linear, Conv1D) for linear in linears.values()),
    )
    return get_peft_model(base, config).double().eval()


def assert_same_component(base, model, layer, component):
    """That PEFT's model has the component of the base model."""
    expected, found = (find_component(one, layer, component) for one in (base, model))
    names = [
        next(name for name, m in one.named_modules() if m is place.module)
        for one, place in ((base, expected), (model.get_base_model(), found))
    ]
    assert names[0] == names[1]
    assert replace(found, module=expected.module) == expected


@torch.no_grad()
def logits(model):
    inputs = {"input_ids": IDS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = IDS[:, :5]
    return model(**inputs).logits


def edited(base, component):
    """Logits with a random edit of the last token."""
    torch.manual_seed(1)
    settings = {"layers": [LAYER], "positions": "l1", "rank": 2, "kind": "nodireft"}
    model = get_reft_model(base, ReftConfig(component=component, dtype="float64", **settings))
    found = logits(randomize(model.eval(), 1.0))
    model.unwrap()
    return found


@pytest.mark.parametrize(("architecture", "component"), PLACES)
def test_a_component_is_the_same_module_of_the_same_width(architecture, component):
    base, lora, _ = make_models(architecture)
    assert_same_component(base, lora, LAYER, component)


@pytest.mark.parametrize(("architecture", "component"), RUNNABLE)
def test_an_edit_is_that_of_the_merged_weights(architecture, component):
    _, lora, merged = make_models(architecture)
    found, expected = edited(lora, component), edited(merged, component)
    # Norms of some models are computed in float32.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (expected - logits(merged)).abs().max() > 1e-2


@pytest.mark.parametrize(("path", "width"), [("q_proj.output", 32), ("k_proj.output", 16)])
def test_a_path_to_a_linear_map_with_lora_has_its_width(path, width):
    base, lora, _ = make_models("llama")
    component = f"model.layers[1].self_attn.{path}"
    assert find_component(lora, None, component).width == width
    assert_same_component(base, lora, None, component)
    from_peft = find_component(lora, None, f"base_model.model.{component}")
    assert from_peft == find_component(lora, None, component)


@pytest.mark.parametrize("component", NAMES)
def test_whatever_peft_puts_around_linear_maps_leaves_components_as_they_are(component):
    base = make("llama")
    inner = [name for name in linears_in_layers(base) if "mlp" in name]
    ia3 = IA3Config(target_modules=inner, feedforward_modules=inner)
    trained = LoraConfig(target_modules=["q_proj"], modules_to_save=["o_proj", "down_proj"])
    dora = LoraConfig(target_modules=["o_proj", "down_proj"], use_dora=True)
    for config in (ia3, trained, dora):
        model = get_peft_model(copy.deepcopy(base), config)
        assert_same_component(base, model, LAYER, component)
