"""Tiny encoder-decoder models, with random weights."""

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import VOCAB, WIDTH, enlarge

# Of different depth, so that no layer of one is taken for one of the other.
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
LAYERS_OF = {"encoder": ENCODER_LAYERS, "decoder": DECODER_LAYERS}
START, PAD, EOS = 2, 0, 1
TOKENS = {"decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": EOS}
TOKENS |= {"vocab_size": VOCAB, "tie_word_embeddings": False}
BART = {"d_model": WIDTH, "encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48}
BART |= {"decoder_ffn_dim": 48, "max_position_embeddings": 64, "forced_eos_token_id": None}


def make_t5(**changes):
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    sizes |= {"num_layers": ENCODER_LAYERS, "num_decoder_layers": DECODER_LAYERS}
    return T5ForConditionalGeneration(T5Config(**sizes | TOKENS | changes))


def make_bart(**changes):
    return BartForConditionalGeneration(BartConfig(**BART | TOKENS | changes))


MAKERS = {"t5": make_t5, "bart": make_bart}


def make(architecture, seed=0, **changes):
    """A model in evaluation mode that generates no end token, the same one for the same seed."""
    torch.manual_seed(seed)
    model = enlarge(MAKERS[architecture](**changes).eval())
    if architecture == "t5":
        # Its weights begin larger than those of other models.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(0.3)
    model.generation_config.eos_token_id = VOCAB
    return model


def make_generator(architecture, seed=0):
    """The same with stacks of one depth: transformers makes T5's cache as deep as its encoder."""
    same_depth = {"t5": {"num_decoder_layers": ENCODER_LAYERS}, "bart": {}}
    return make(architecture, seed, **same_depth[architecture])
