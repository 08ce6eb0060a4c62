"""What a linear map can take up goes into its weights, or into PEFT's LoRA; the rest stays."""

import json

import pytest
import torch
from by_hand import on_output

from conftest import KINDS, VOCAB, make_base, randomize
from pyreft import AdapterError, ReftConfig, get_reft_model
from pyreft.adapters.merge_methods import export_lora, merge_and_unload

# PEFT uses names that transformers has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")
IDS = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0
# Components whose output is a linear map's; of GPT-2 with the weight the other way round.
LINEAR = {
    "llama": ["mlp_output", "attention_output", "model.layers[1].mlp.up_proj.output"],
    "gpt2": ["mlp_output", "attention_output", "transformer.h[1].mlp.c_fc.output"],
    "bert": [
        f"bert.encoder.layer[1].{name}.output" for name in ("output.dense", "intermediate.dense")
    ],
}
PLACES = [(name, component) for name, components in LINEAR.items() for component in components]


def wrap(architecture="llama", component="mlp_output", base=None, **config):
    """An adapter on every token, every parameter of it random."""
    where = {} if "." in component else {"layers": [0, 2]}
    config = {"positions": "all", "rank": 3, "component": component} | where | config
    base = make_base(architecture) if base is None else base
    return randomize(get_reft_model(base, ReftConfig(**config)).eval(), 0.3)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


def on_text(output):
    return output[MASK.bool()] if output.dim() == 3 else output


def difference(one, other):
    return (on_text(one) - on_text(other)).abs().max().item()


def by_hand(architecture, model):
    """Logits of a bare model with the interventions as hooks, in the model's own type."""
    base = make_base(architecture).double()
    bare = logits(base)
    for config in model.reft_config.representations:
        layers = base.model.layers if architecture == "llama" else base.transformer.h
        inner = {"llama": "mlp", "gpt2": "mlp"}[architecture]
        layers[config.layer].get_submodule(inner).register_forward_hook(
            on_output(config.intervention)
        )
    return bare, logits(base)


# ---- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "component"), PLACES)
def test_a_merged_model_computes_what_the_edited_one_did(architecture, component):
    model = wrap(architecture, component)
    bare, expected = logits(make_base(architecture)), logits(model)
    merged = merge_and_unload(model, add_bias=True)
    assert type(merged) is type(make_base(architecture))
    assert difference(bare, expected) > 0.01
    assert difference(logits(merged), expected) <= 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_merged_exactly_in_float64(architecture, kind):
    base = make_base(architecture).double()
    model = wrap(architecture, base=base, kind=kind, dtype="float64", add_bias=True)
    bare, expected = by_hand(architecture, model)
    assert difference(bare, expected) > 0.1
    merged = merge_and_unload(model, add_bias=True)
    assert difference(logits(merged), expected) <= 1e-9


def test_a_merged_model_is_a_plain_one():
    base = make_base("gpt2")
    names = set(base.state_dict())
    merged = merge_and_unload(wrap("gpt2", base=base))
    assert merged is base and set(merged.state_dict()) == names
    assert not any(module._forward_hooks for module in merged.modules())


def test_a_merged_model_is_the_same_after_a_round_trip_through_disk(tmp_path):
    merged = merge_and_unload(wrap("gpt2"))
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(type(merged).from_pretrained(tmp_path)), logits(merged))


def test_heads_that_were_trained_stay_in_the_merged_model():
    model = wrap(
        "bert", "bert.encoder.layer[1].output.dense.output", modules_to_save=["classifier"]
    )
    with torch.no_grad():
        model.model.classifier.weight.add_(1.0)
    expected = logits(model)
    assert difference(logits(merge_and_unload(model)), expected) <= 1e-4


def test_a_constant_part_needs_a_bias_unless_one_is_made():
    model = wrap()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    expected = logits(model)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.down_proj: the edit has a const"):
        merge_and_unload(model)
    assert all(torch.equal(before[name], t) for name, t in model.model.state_dict().items())
    assert torch.equal(logits(model), expected)
    with torch.no_grad():
        for intervention in model.interventions.values():
            intervention.learned_source.bias.zero_()
    expected = logits(model)
    assert difference(logits(merge_and_unload(model)), expected) <= 1e-4


def test_rounding_happens_once_in_bfloat16():
    model = wrap("gpt2", base=make_base("gpt2").bfloat16())
    linear = model.model.transformer.h[0].mlp.c_proj
    weight, bias = linear.weight.double().T, linear.bias.double()
    (intervention, _) = model.interventions.values()
    with torch.no_grad():
        double = intervention.double()
        edited = double(weight.T + bias) - double(bias)
    merge_and_unload(model)
    assert torch.equal(linear.weight, edited.to(torch.bfloat16))


def test_the_run_that_finds_the_linear_map_leaves_the_model_as_it_was():
    base = make_base("gpt2")
    base.transformer.h[1].train()
    model = get_reft_model(base, ReftConfig(positions="all", component="mlp_output", layers=[1]))
    modes = [module.training for module in base.modules()]
    hooks = sum(len(module._forward_hooks) for module in base.modules())
    with pytest.raises(ValueError, match="will not write"):
        export_lora(model, ".")
    assert [module.training for module in base.modules()] == modes
    assert sum(len(module._forward_hooks) for module in base.modules()) == hooks


def two_active(architecture="gpt2"):
    """Two adapters on the same linear maps and others, with weights."""
    model = wrap(architecture)
    model.add_adapter(
        "other",
        ReftConfig(positions="all", rank=2, component="mlp_output", layers=[1, 2], kind="nodireft"),
    )
    model.set_adapter(["default", "other"], [0.5, -2.0])
    for index, adapter in enumerate(model.adapters.values()):
        randomize(adapter, 0.3, seed=index)
    return model


def test_several_active_adapters_are_merged_with_their_weights():
    model = two_active()
    expected = logits(model)
    assert difference(expected, logits(make_base("gpt2"))) > 0.1
    assert difference(logits(model.merge_and_unload()), expected) <= 1e-4


# ---- PEFT's LoRA ----------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "component"), PLACES)
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed but the targeted layer")
def test_peft_computes_with_the_exported_lora_what_the_edited_model_does(
    architecture, component, tmp_path
):
    peft = pytest.importorskip("peft")
    model = wrap(architecture, component)
    export_lora(model, tmp_path / "lora")
    lora = peft.PeftModel.from_pretrained(make_base(architecture), tmp_path / "lora")
    expected = logits(model)
    assert difference(logits(make_base(architecture)), expected) > 0.01
    assert difference(logits(lora), expected) <= 1e-4


def test_ranks_may_differ_and_peft_merges_the_lora_as_well(tmp_path):
    peft = pytest.importorskip("peft")
    representations = [
        {"layer": layer, "component": "mlp_output", "low_rank_dimension": rank, "positions": "all"}
        for layer, rank in ((0, 2), (1, 5))
    ]
    config = ReftConfig(representations=representations)
    model = randomize(get_reft_model(make_base("gpt2"), config).eval(), 0.3)
    export_lora(model, tmp_path / "lora")
    lora = peft.PeftModel.from_pretrained(make_base("gpt2"), tmp_path / "lora")
    assert difference(logits(lora), logits(model)) <= 1e-4
    assert difference(logits(lora.merge_and_unload()), logits(model)) <= 1e-4


def test_several_active_adapters_are_exported_with_their_weights(tmp_path):
    peft = pytest.importorskip("peft")
    model = two_active()
    model.export_lora(tmp_path / "lora")
    lora = peft.PeftModel.from_pretrained(make_base("gpt2"), tmp_path / "lora")
    assert difference(logits(lora), logits(model)) <= 1e-4


def test_an_export_without_a_constant_part_has_no_bias(tmp_path):
    pytest.importorskip("peft")
    model = wrap()
    with torch.no_grad():
        for intervention in model.interventions.values():
            intervention.learned_source.bias.zero_()
    export_lora(model, tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["lora_bias"] is False and config["r"] == config["lora_alpha"] == 3


def test_an_export_writes_over_nothing(tmp_path):
    pytest.importorskip("peft")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(AdapterError, match="name a new directory"):
        export_lora(wrap(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_export_of_a_trained_head_is_refused(tmp_path):
    pytest.importorskip("peft")
    model = wrap(
        "bert", "bert.encoder.layer[1].output.dense.output", modules_to_save=["classifier"]
    )
    with pytest.raises(ValueError, match=r"classifier was trained .* use merge_and_unload"):
        export_lora(model, tmp_path / "lora")


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"positions": "f2+l1"}, "it edits PositionSpec"),
        ({"positions": "prompt"}, "it edits PositionSpec"),
        ({"act_fn": "relu"}, "its activation 'relu' is not linear"),
        ({"component": "block_output"}, "what LlamaDecoderLayer returns is not what a linear map"),
        ({"component": "mlp_activation"}, "what SiLUActivation returns is not|what SiLU returns"),
        ({"component": "mlp_input"}, "it edits an input"),
        ({"component": "head_attention_value_output", "heads": [1]}, "it edits only the heads"),
    ],
)
@pytest.mark.parametrize("convert", [merge_and_unload, lambda model: export_lora(model, "lora")])
def test_what_a_linear_map_cannot_take_up_is_refused_and_named(
    config, reason, convert, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = wrap(**{"component": "mlp_output"} | config)
    expected = logits(model)
    with pytest.raises(ValueError, match=f"intervention 0 .*, at .* cannot be merged: {reason}"):
        convert(model)
    assert torch.equal(logits(model), expected)
    assert not list(tmp_path.iterdir())


def test_a_residual_sum_and_norm_after_the_linear_map_are_seen():
    with pytest.raises(ValueError, match="what BertOutput returns is not what a linear map"):
        merge_and_unload(wrap("bert", "mlp_output"))


def test_weights_that_others_share_are_refused():
    with pytest.raises(ValueError, match=r"lm_head shares its weight with transformer\.wte"):
        merge_and_unload(wrap("gpt2", "lm_head.output"))


def test_weights_that_are_no_plain_numbers_are_refused():
    class Packed(torch.nn.Linear):
        """What quantised linear maps are to torch."""

    model = wrap()
    model.model.model.layers[2].mlp.down_proj.__class__ = Packed
    with pytest.raises(
        ValueError, match=r"intervention 1 of .* \(a Packed of torch.float32, quant"
    ):
        merge_and_unload(model)


def test_a_module_of_the_users_own_is_refused():
    class Mine(torch.nn.Module):
        def forward(self, hidden):
            return hidden + 1

    place = {"layer": 0, "component": "mlp_output", "positions": "all", "intervention": Mine()}
    model = get_reft_model(make_base("llama"), ReftConfig(representations=[place]))
    with pytest.raises(ValueError, match="what Mine computes is not known"):
        merge_and_unload(model)


def test_a_lora_that_is_there_must_be_merged_first():
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(make_base("llama"), peft.LoraConfig(target_modules=["down_proj"]))
    with pytest.raises(ValueError, match="PEFT wraps the base model"):
        merge_and_unload(wrap(base=lora))
