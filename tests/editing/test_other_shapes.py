"""Texts whose hidden states are not (B, T, D): edited at their tokens, or refused with a reason."""

import pytest
import torch
import transformers as hf
from torch import nn

import pyreft
from pyreft.base_model.outputs import hidden_of
from pyreft.installed import UnsupportedReleaseError

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
SIZES |= {"vocab_size": 40, "pad_token_id": 0}
IDS = torch.arange(3, 15).repeat(2, 1)
MASK = torch.ones_like(IDS)
MASK[1, 8:] = 0


def make_squeezebert():
    groups = dict.fromkeys(["q_groups", "k_groups", "v_groups", "post_attention_groups"], 1)
    groups |= {"intermediate_groups": 1, "output_groups": 1, "embedding_size": 16}
    config = hf.SqueezeBertConfig(**SIZES, **groups, num_hidden_layers=2)
    return hf.SqueezeBertForMaskedLM(config).eval()


def make_prophetnet():
    sizes = {"hidden_size": 16, "vocab_size": 40, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    sizes |= {"num_encoder_layers": 2, "num_decoder_layers": 2, "pad_token_id": 0, "ngram": 2}
    sizes |= {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    return hf.ProphetNetForConditionalGeneration(hf.ProphetNetConfig(**sizes)).eval()


def make_canine():
    config = hf.CanineConfig(**SIZES, num_hidden_layers=2)
    return hf.CanineForSequenceClassification(config).eval()


def make_funnel():
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "vocab_size": 40}
    config = hf.FunnelConfig(**sizes, block_sizes=[1, 1], num_decoder_layers=1)
    return hf.FunnelForMaskedLM(config).eval()


def wrap(base, **config):
    torch.manual_seed(0)
    config = pyreft.ReftConfig(**{"positions": "f1+l1", "rank": 2} | config)
    model = pyreft.get_reft_model(base, config).eval()
    for module in model.interventions.values():
        nn.init.normal_(module.learned_source.weight)
    return model


def changes(model, inputs):
    """Where an edit changes what its module returns, and whether it changes what the model does."""
    (target,) = model.adapter_set["default"].targets
    outputs = []
    hook = target.component.module.register_forward_hook(
        lambda module, args, output: outputs.append(hidden_of(output).clone())
    )
    with torch.no_grad():
        edited = model(**inputs)[0]
        with model.disable_adapter():
            bare = model(**inputs)[0]
    hook.remove()
    return outputs[0] != outputs[1], not torch.equal(edited, bare)


def test_layers_that_are_called_by_their_forward_are_edited_in_the_part_that_returns_for_them():
    model = wrap(make_squeezebert(), layers=[1])
    changed, reaches = changes(model, {"input_ids": IDS, "attention_mask": MASK})
    assert reaches
    # (B, D, T)
    assert changed.any(1).nonzero().tolist() == [[0, 0], [0, 11], [1, 0], [1, 7]]


@pytest.mark.parametrize("layer", [0, 1])
def test_all_streams_of_a_token_are_edited(layer):
    model = wrap(make_prophetnet(), component="decoder_block_output", layers=[layer])
    changed, reaches = changes(model, {"input_ids": IDS, "decoder_input_ids": IDS[:, :6]})
    assert reaches
    # The tokens, and the two streams that predict: 3 x 6.
    assert changed.any(-1)[0].nonzero().flatten().tolist() == [0, 5, 6, 11, 12, 17]
    (shape,) = {
        one.shape
        for one in pyreft.list_components(model.unwrap())
        if one.component == "decoder_block_output"
    }
    assert shape == "(B, S * T, D)"


def test_a_layer_of_fewer_tokens_counts_its_own():
    model = wrap(make_canine(), layers=[0])
    changed, reaches = changes(model, {"input_ids": IDS, "attention_mask": MASK})
    assert reaches
    # Four characters each: the second text has two.
    assert changed.any(-1).nonzero().tolist() == [[0, 0], [0, 2], [1, 0], [1, 1]]


def test_a_layer_of_fewer_tokens_without_a_mask_takes_no_padding():
    model = wrap(make_funnel(), layers=[1])
    changed, reaches = changes(model, {"input_ids": IDS})
    assert reaches
    assert changed.any(-1)[0].nonzero().flatten().tolist() == [0, changed.shape[1] - 1]
    with pytest.raises(ValueError, match="does not say which of them are padding"):
        model(input_ids=IDS, attention_mask=MASK)
    whole = wrap(model.unwrap(), layers=[0])
    changed, reaches = changes(whole, {"input_ids": IDS, "attention_mask": MASK})
    assert changed.any(-1).nonzero().tolist() == [[0, 0], [0, 11], [1, 0], [1, 7]] and reaches


def make_dia():
    part = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 8}
    part |= {"num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 40}
    cross = {"cross_num_attention_heads": 2, "cross_head_dim": 8, "cross_hidden_size": 16}
    decoder = {**part, **cross, "cross_num_key_value_heads": 2, "num_channels": 3}
    config = hf.DiaConfig(
        encoder_config=part,
        decoder_config=decoder,
        delay_pattern=[0, 1, 2],
        pad_token_id=37,
        eos_token_id=36,
        bos_token_id=38,
    )
    return hf.DiaForConditionalGeneration(config).eval()


def test_a_decoder_of_several_channels_edits_the_prompt_in_every_step():
    torch.manual_seed(0)
    model = wrap(make_dia(), component="decoder_block_output")
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    settings |= {"return_dict_in_generate": True, "output_logits": True}
    found = []
    for use_cache in (True, False):
        try:
            made = model.generate(IDS, attention_mask=MASK, use_cache=use_cache, **settings)
        except UnsupportedReleaseError:
            pytest.skip("Dia of this release gives its decoder the last token, and no cache")
        found.append(torch.stack(made.logits))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def make_musicgen():
    """A row of ids for each of two codebooks of a text."""
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = hf.MusicgenDecoderConfig(**sizes, vocab_size=40, num_codebooks=2)
    config.pad_token_id, config.bos_token_id = 0, 1
    return hf.MusicgenForCausalLM(config).eval()


def test_lists_of_embeddings_and_heads_are_no_layers():
    # As many of them as there are layers, and the embeddings come first.
    model = wrap(make_musicgen())
    found = [one.component.module for one in model.adapter_set.first.targets]
    assert found == list(model.model.model.decoder.layers)


def edited_of(model, **inputs):
    """Which tokens of the last layer's hidden state are changed."""
    seen = []
    layer = model.model.model.decoder.layers[-1]
    hook = layer.register_forward_hook(lambda m, args, output: seen.append(hidden_of(output)))
    with torch.no_grad():
        model(**inputs)
        with model.disable_adapter():
            model(**inputs)
    hook.remove()
    return (seen[0] != seen[1]).any(-1).int().tolist()


def test_several_rows_of_ids_for_a_text_are_edited_as_one():
    model, ids = wrap(make_musicgen(), layers=[1]), torch.arange(3, 27).view(4, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    found = edited_of(model, input_ids=ids, attention_mask=mask)
    assert found == [[1, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1]]
    labels = ids.view(2, 2, 6).transpose(1, 2).contiguous()
    labels[:, :3] = -100
    assert edited_of(model, input_ids=ids, labels=labels) == [[1, 0, 1, 0, 0, 0]] * 2
    locations = torch.tensor([[[1]], [[2]]])
    found = edited_of(model, input_ids=ids, intervention_locations=locations)
    assert found == [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]
    with pytest.raises(ValueError, match="a text has several rows of ids"):
        model.generate(input_ids=ids, max_new_tokens=2)
