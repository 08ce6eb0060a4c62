"""Paths into a decoder that attends to an encoder: what runs on the encoder's tokens is refused."""

import pytest
import torch
import transformers as hf
from encoder_decoder_models import TOKENS, make
from encoder_decoders import batch, logits, wrap
from peft import LoraConfig, get_peft_model

from conftest import VOCAB, WIDTH
from pyreft import ReftConfig, get_reft_model

# PEFT uses names that transformers has changed.
pytestmark = pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "vocab_size": VOCAB}
BERT = hf.BertConfig(**SIZES)
BERT_DECODER = hf.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB}
GPT2_DECODER = hf.GPT2Config(**GPT2, add_cross_attention=True, bos_token_id=1, eos_token_id=1)
T5GEMMA = {**SIZES, "head_dim": 8, "num_key_value_heads": 2}


def make_pair(decoder):
    heads = {hf.BertConfig: hf.BertLMHeadModel, hf.GPT2Config: hf.GPT2LMHeadModel}
    model = hf.EncoderDecoderModel(
        encoder=hf.BertModel(BERT), decoder=heads[type(decoder)](decoder)
    )
    for name in ("decoder_start_token_id", "pad_token_id"):
        setattr(model.config, name, TOKENS[name])
    return model


def make_t5gemma():
    config = hf.T5GemmaConfig(encoder=T5GEMMA, decoder=T5GEMMA, vocab_size=VOCAB)
    return hf.T5GemmaForConditionalGeneration(config)


MAKERS = {
    "t5": lambda: make("t5"),
    "bart": lambda: make("bart"),
    "t5gemma": make_t5gemma,
    "bert and bert": lambda: make_pair(BERT_DECODER),
    "bert and gpt2": lambda: make_pair(GPT2_DECODER),
    "gpt2": lambda: hf.GPT2LMHeadModel(GPT2_DECODER),
}
# The attention of a decoder layer to the encoder, its maps of the encoder's tokens, and others.
CROSS = {
    "t5": ("decoder.block[1].layer[1].EncDecAttention", ["k", "v"], ["q", "o"]),
    "bart": ("model.decoder.layers[1].encoder_attn", ["k_proj", "v_proj"], ["q_proj", "out_proj"]),
    "t5gemma": ("model.decoder.layers[1].cross_attn", ["k_proj", "v_proj"], ["q_proj", "o_proj"]),
    "bert and bert": (
        "decoder.bert.encoder.layer[1].crossattention",
        ["self.key", "self.value"],
        ["self.query", "output.dense"],
    ),
    "bert and gpt2": ("decoder.transformer.h[1].crossattention", ["c_attn"], ["q_attn", "c_proj"]),
    "gpt2": ("transformer.h[1].crossattention", ["c_attn"], ["q_attn", "c_proj"]),
}


def attach(base, path):
    arguments = {"low_rank_dimension": 2}
    return get_reft_model(base, ReftConfig(component=path, positions="l1", arguments=arguments))


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("architecture", MAKERS)
def test_keys_and_values_of_the_encoder_are_no_component_of_the_decoder(architecture, side):
    base = MAKERS[architecture]()
    attention, of_encoder, of_decoder = CROSS[architecture]
    for name in of_encoder:
        with pytest.raises(ValueError, match=rf"{name}.{side}' computes keys or values"):
            attach(base, f"{attention}.{name}.{side}")
    for name in of_decoder:
        attach(base, f"{attention}.{name}.{side}").unwrap()


def test_nor_are_they_with_a_lora():
    base = get_peft_model(make("t5"), LoraConfig(target_modules=["k"]))
    attention, *_ = CROSS["t5"]
    for inside in ("", ".base_layer", ".lora_A.default"):
        with pytest.raises(ValueError, match="computes keys or values from the encoder's output"):
            attach(base, f"{attention}.k{inside}.output")


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_keys_of_a_stacks_own_tokens_are_edited_there(stack):
    path = f"{stack}.block[0].layer[0].SelfAttention.k.output"
    model = wrap(make("t5"), component=path)
    found, base = logits(model, batch()), logits(make("t5"), batch())
    assert not torch.equal(found, base)
