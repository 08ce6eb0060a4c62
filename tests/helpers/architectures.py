"""Tiny models of many architectures, and where each has its components."""

import torch
import transformers as hf

from conftest import LAYERS, VOCAB, WIDTH, enlarge, make_base

HEADS, INNER = 4, 48

# layer, then inside it: attention, its output projection, map up, activation, map down. Written
# down by hand from the source of each architecture.
LLAMA = "self_attn self_attn.o_proj mlp mlp.act_fn.output mlp"
BERT = (
    "attention attention.output.dense intermediate intermediate.intermediate_act_fn.output output"
)
FUSED = "self_attention self_attention.dense mlp"
PARTS = {
    "llama": f"model.layers.1 {LLAMA}",
    "gpt2": "transformer.h.1 attn attn.c_proj mlp mlp.act.output mlp",
    "bert": f"bert.encoder.layer.1 {BERT}",
    "mistral": f"model.layers.1 {LLAMA}",
    "qwen3": f"model.layers.1 {LLAMA}",
    "gemma3_text": f"model.layers.1 {LLAMA}",
    "phi": "model.layers.1 self_attn self_attn.dense mlp mlp.activation_fn.output mlp",
    "phi3": "model.layers.1 self_attn self_attn.o_proj mlp mlp.activation_fn.output mlp",
    "gpt_neox": "gpt_neox.layers.1 attention attention.dense mlp mlp.act.output mlp",
    "opt": "model.decoder.layers.1 self_attn self_attn.out_proj fc1 fc2.input fc2",
    "falcon": f"transformer.h.1 {FUSED} mlp.act.output mlp",
    "bloom": f"transformer.h.1 {FUSED} mlp.dense_4h_to_h.input mlp",
    "mpt": "transformer.blocks.1 attn attn.out_proj ffn ffn.act.output ffn",
    "openai-gpt": "transformer.h.1 attn attn.c_proj mlp mlp.c_proj.input mlp",
    "roberta": f"roberta.encoder.layer.1 {BERT}",
    "distilbert": (
        "distilbert.transformer.layer.1 attention attention.out_lin ffn ffn.activation.output ffn"
    ),
}
VALUE_WIDTH = {"qwen3": 64, "gemma3_text": 64}
INNER_WIDTH = dict.fromkeys(["gpt2", "falcon", "bloom", "mpt", "openai-gpt"], 4 * WIDTH)
COMPONENTS = [
    *("block_input", "attention_input", "attention_value_output", "attention_output"),
    *("mlp_input", "mlp_activation", "mlp_output", "block_output"),
]


def place(architecture, component):
    """(path, side, width) of a component."""
    layer, attention, projection, up, activation, down = PARTS[architecture].split()
    activation, _, side = activation.rpartition(".")
    path, side, width = {
        "block_input": ("", "input", WIDTH),
        "attention_input": (attention, "input", WIDTH),
        "attention_value_output": (projection, "input", VALUE_WIDTH.get(architecture, WIDTH)),
        "attention_output": (attention, "output", WIDTH),
        "mlp_input": (up, "input", WIDTH),
        "mlp_activation": (activation, side, INNER_WIDTH.get(architecture, INNER)),
        "mlp_output": (down, "output", WIDTH),
        "block_output": ("", "output", WIDTH),
    }[component]
    return f"{layer}.{path}".rstrip("."), side, width


SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
SIZES |= {"vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SIZES_INNER = {**SIZES, "intermediate_size": INNER}
GROUPED = {**SIZES_INNER, "num_key_value_heads": 2}
# As many layers as the language model has, as in InternVL3-1B.
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
MAKERS = {
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=2)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=16)),
    "gemma3_text": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GROUPED, head_dim=16)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES_INNER)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZES_INNER)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES_INNER)),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**SIZES, ffn_dim=INNER, word_embed_proj_dim=WIDTH)
    ),
    "falcon": lambda: hf.FalconForCausalLM(hf.FalconConfig(**SIZES)),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(**SIZES)),
    "mpt": lambda: hf.MptForCausalLM(
        hf.MptConfig(d_model=WIDTH, n_layers=LAYERS, n_heads=HEADS, vocab_size=VOCAB)
    ),
    "openai-gpt": lambda: hf.OpenAIGPTLMHeadModel(
        hf.OpenAIGPTConfig(n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, vocab_size=VOCAB)
    ),
    "xlnet": lambda: hf.XLNetLMHeadModel(
        hf.XLNetConfig(d_model=WIDTH, n_layer=LAYERS, n_head=HEADS, d_inner=48, vocab_size=VOCAB)
    ),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES_INNER)),
    "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**SIZES_INNER, embedding_size=16)),
    "mobilebert": lambda: hf.MobileBertForMaskedLM(
        hf.MobileBertConfig(
            **{**SIZES_INNER, "bos_token_id": None, "eos_token_id": None},
            embedding_size=16,
            intra_bottleneck_size=16,
        )
    ),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(
            dim=WIDTH, hidden_dim=INNER, n_layers=LAYERS, n_heads=HEADS, vocab_size=VOCAB
        )
    ),
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**VISION),
            text_config=hf.LlamaConfig(**GROUPED),
            image_token_index=VOCAB - 1,
        )
    ),
}


def make(architecture):
    """A tiny model in evaluation mode, the same one at each call."""
    if architecture not in MAKERS:
        return make_base(architecture)
    torch.manual_seed(0)
    return enlarge(MAKERS[architecture]().eval())
