"""`mixer_output` is what mixes the tokens of a layer, and `mlp_output` is never that."""

import pytest
import transformers as hf
from architectures import make

import pyreft

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 20}
GROUPED = {**SIZES, "num_attention_heads": 2, "num_key_value_heads": 2}


def make_jamba():
    experts = {"num_experts": 2, "num_experts_per_tok": 1}
    config = hf.JambaConfig(**GROUPED, **experts, attn_layer_period=2, attn_layer_offset=1)
    return hf.JambaForCausalLM(config)


def make_mamba():
    return hf.MambaForCausalLM(hf.MambaConfig(**SIZES, state_size=4))


def make_recurrent_gemma():
    sizes = GROUPED | {"num_hidden_layers": 3, "lru_width": 16, "head_dim": 8}
    return hf.RecurrentGemmaForCausalLM(hf.RecurrentGemmaConfig(**sizes))


# The path from a layer to its mixer, for each layer; and to what its feed-forward part returns.
HYBRIDS = {
    "jamba": (make_jamba, ["mamba", "self_attn"], "feed_forward"),
    "mamba": (make_mamba, ["mixer", "mixer"], None),
    "recurrent gemma": (make_recurrent_gemma, ["temporal_block"] * 3, "mlp_block"),
    "mixtral": (lambda: make("mixtral"), ["self_attn"] * 3, "mlp"),
    "gpt2": (lambda: make("gpt2"), ["attn"] * 3, "mlp"),
}


def layers_of(model):
    return next(
        m for n, m in model.named_modules() if n.split(".")[-1] in ("layers", "h") and len(m)
    )


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_mixer_and_the_feed_forward_part_are_the_modules_of_the_layer(name):
    maker, mixers, feed_forward = HYBRIDS[name]
    model = maker()
    layers = layers_of(model)
    for component, paths in (("mixer_output", mixers), ("mlp_output", [feed_forward] * 3)):
        listed = {one.component: one for one in pyreft.list_components(model)}
        if paths[0] is None:
            assert component not in listed
            continue
        assert listed[component].layers == tuple(range(len(layers)))
        assert listed[component].width == model.config.hidden_size
        reft = pyreft.get_reft_model(model, pyreft.ReftConfig(component=component, rank=2))
        found = [target.component.module for target in reft.adapter_set["default"].targets]
        expected = [layer.get_submodule(p) for layer, p in zip(layers, paths, strict=False)]
        assert found == expected
        reft.unwrap()


def test_a_layer_of_a_state_space_model_has_no_feed_forward_part():
    with pytest.raises(ValueError, match="has no single feed-forward part among norm, mixer"):
        pyreft.get_reft_model(make_mamba(), pyreft.ReftConfig(component="mlp_output"))


def test_two_mixers_side_by_side_are_named_by_a_path():
    sizes = {"mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_ssm": 16, "mamba_d_state": 4}
    config = hf.FalconH1Config(**GROUPED, **sizes, mamba_n_groups=1, head_dim=8)
    with pytest.raises(ValueError, match=r"several parts that mix tokens among .*mamba, self_attn"):
        pyreft.get_reft_model(
            hf.FalconH1ForCausalLM(config), pyreft.ReftConfig(component="mixer_output")
        )
