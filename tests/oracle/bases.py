"""Tiny base models in float64, and where each has its components, written down by hand."""

import contextlib
import functools
import inspect
import sys

import torch
import transformers as hf
from torch import nn

VOCAB, WIDTH, LAYERS, HEADS, INNER, LABELS = 61, 16, 3, 2, 24, 3
PAD, START = 0, 2
# Never generated, so that texts end by their length alone.
NO_END = VOCAB

_TOKENS = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": 1, "bos_token_id": START}
_UNTIED = {**_TOKENS, "tie_word_embeddings": False}
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_SIZES |= {"intermediate_size": INNER, "max_position_embeddings": 128}
_GROUPED = {**_SIZES, "num_key_value_heads": 1}
_GEMMA = {**_GROUPED, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
_GEMMA |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER, "n_positions": 128}
_GPT2 |= dict.fromkeys(["resid_pdrop", "embd_pdrop", "attn_pdrop"], 0.0)
_OPT = {**_SIZES, "ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "dropout": 0.0}
del _OPT["intermediate_size"]
_BERT = {**_SIZES, "num_labels": LABELS, "classifier_dropout": 0.0, "hidden_dropout_prob": 0.0}
_BERT |= {"attention_probs_dropout_prob": 0.0}
_T5 = {"d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_heads": HEADS, "num_layers": LAYERS}
_T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": START}
_BART = {"d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "dropout": 0.0}
_BART |= {"encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS}
_BART |= {"encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "max_position_embeddings": 128}
_BART |= {"decoder_start_token_id": START, "forced_eos_token_id": None}

_MAKERS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_GROUPED, **_UNTIED)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2, **_UNTIED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_GROUPED, **_UNTIED, head_dim=16)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**_GEMMA, **_UNTIED)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_SIZES, **_UNTIED)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**_OPT, **_UNTIED)),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**_BERT, **_TOKENS)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_T5, **_UNTIED)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_BART, **_UNTIED)),
}
CAUSAL = ["llama", "gpt2", "qwen3", "gemma3", "gpt_neox", "opt"]
ENCODER_DECODER = ["t5", "bart"]

# The list of layers, then inside a layer, with the side of the module: attention, what it gathered,
# map up, activation, map down. "-" is nothing that an intervention can edit: OPT flattens it.
_LLAMA = "self_attn self_attn.o_proj mlp mlp.act_fn.output mlp"
_PARTS = {
    "llama": f"model.layers {_LLAMA}",
    "qwen3": f"model.layers {_LLAMA}",
    "gemma3": f"model.layers {_LLAMA}",
    "gpt2": "transformer.h attn attn.c_proj mlp mlp.act.output mlp",
    "gpt_neox": "gpt_neox.layers attention attention.dense mlp mlp.act.output mlp",
    "opt": "model.decoder.layers self_attn self_attn.out_proj - - -",
    "bert": "bert.encoder.layer attention attention.output.dense intermediate "
    "intermediate.intermediate_act_fn.output output",
    "bart": "model.{}.layers self_attn self_attn.out_proj fc1 fc2.input fc2",
    "t5": "{}.block layer.0.SelfAttention layer.0.SelfAttention.o layer.{}.DenseReluDense "
    "layer.{}.DenseReluDense.act.output layer.{}.DenseReluDense",
}
_CROSS = {
    "bart": "encoder_attn encoder_attn.out_proj",
    "t5": "layer.1.EncDecAttention layer.1.EncDecAttention.o",
}
_VALUE_WIDTH = {"qwen3": HEADS * 16, "gemma3": HEADS * 16}
COMPONENTS = [
    *("block_output", "block_input", "attention_input", "attention_value_output"),
    *("head_attention_value_output", "attention_output", "mlp_input", "mlp_activation"),
    "mlp_output",
]
CROSS = [f"cross_{name}" for name in COMPONENTS if name.startswith("attention")]
# What is the output of a linear map, and so can be merged: a component, or what is after a layer.
LINEAR = {
    "llama": ["mlp_output", "attention_output", "mlp.up_proj", "self_attn.q_proj"],
    "gpt2": ["mlp_output", "attention_output", "mlp.c_fc"],
    "qwen3": ["mlp_output", "attention_output", "self_attn.v_proj"],
    "gpt_neox": ["mlp_output", "attention_output", "attention.query_key_value"],
    "bert": ["output.dense", "intermediate.dense"],
}
# Linear maps that PEFT's LoRA can lie on; the last two are modules that components are named by.
LORA = {
    "llama": ["q_proj", "v_proj", "up_proj", "o_proj", "down_proj"],
    "qwen3": ["q_proj", "k_proj", "up_proj", "o_proj", "down_proj"],
    "gemma3": ["q_proj", "v_proj", "gate_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h", "dense", "dense_4h_to_h"],
    "opt": ["q_proj", "v_proj", "out_proj"],
    "bert": ["query", "value"],
    "t5": ["q", "v", "o", "wo"],
    "bart": ["q_proj", "v_proj", "out_proj", "fc2"],
}


def components(architecture, stack=None):
    """The names of what can be edited in a layer, without the stack before them."""
    names = [name for name in COMPONENTS if architecture != "opt" or not name.startswith("mlp")]
    return names + (CROSS if stack == "decoder" else [])


def place(architecture, layer, component):
    """(module path, side, width, heads, stack) of a component, by name or "<path>.<side>"."""
    stack, name = None, component
    if architecture in ENCODER_DECODER:
        stack = "decoder" if component.startswith("decoder_") else "encoder"
        name = component.removeprefix("decoder_")
    if "." in component:
        path, _, side = component.replace("[", ".").replace("]", "").rpartition(".")
        return path, side, width_of(architecture, path), None, stack
    last = 2 if stack == "decoder" else 1
    parts = _PARTS[architecture].replace("{}", stack or "", 1).replace("{}", str(last)).split()
    layers, attention, projection, up, activation, down = parts
    if "cross_" in name:
        attention, projection = _CROSS[architecture].split()
        name = name.replace("cross_", "")
    activation, _, side = activation.rpartition(".")
    wide = _VALUE_WIDTH.get(architecture, WIDTH)
    inner, side, width, heads = {
        "block_input": ("", "input", WIDTH, None),
        "attention_input": (attention, "input", WIDTH, None),
        "attention_value_output": (projection, "input", wide, None),
        "head_attention_value_output": (projection, "input", wide // HEADS, HEADS),
        "attention_output": (attention, "output", WIDTH, None),
        "mlp_input": (up, "input", WIDTH, None),
        "mlp_activation": (activation, side, INNER, None),
        "mlp_output": (down, "output", WIDTH, None),
        "block_output": ("", "output", WIDTH, None),
    }[name]
    return f"{layers}.{layer}.{inner}".rstrip("."), side, width, heads, stack


def width_of(architecture, path):
    """The output width of a linear map."""
    module = make(architecture).get_submodule(path)
    return module.nf if hasattr(module, "nf") else module.out_features


@functools.cache
def make(architecture, weights=0):
    """A model in evaluation mode, the same one at each call: copy it."""
    torch.manual_seed(weights)
    model = _MAKERS[architecture]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                # Large enough that an edit shows in every logit; T5's begin large.
                parameter.mul_(1.5 if architecture == "t5" else 5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
            assert parameter.isfinite().all(), name
    if model.can_generate():
        model.generation_config.eos_token_id = NO_END
    model.double().requires_grad_(False)
    for name, buffer in model.named_buffers():
        if "inv_freq" in name:
            buffer.data = buffer.data.float()
    return model


def with_lora(base, architecture, targets, seed):
    """Put PEFT's LoRA on a model, all of it random."""
    from peft import LoraConfig, get_peft_model

    conv1d = architecture == "gpt2"
    config = LoraConfig(r=2, lora_alpha=3, target_modules=list(targets), fan_in_fan_out=conv1d)
    model = get_peft_model(base, config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                random = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.data = 0.3 * random
    return model


def bare(model) -> nn.Module:
    """The transformers model inside what PEFT put around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cache_name(model):
    """What `forward` calls its cache: "cache" from transformers 5.24 on."""
    takes = inspect.signature(bare(model).forward).parameters
    return "cache" if "cache" in takes else "past_key_values"


@contextlib.contextmanager
def in_double():
    """Parts that transformers computes in float32 whatever the model's type stay in float64.

    Norms, some softmaxes and losses are such parts; their rounding would hide what is compared.
    Casts that others make are left alone.
    """
    to, softmax = torch.Tensor.to, nn.functional.softmax

    def is_cast(tensor):
        caller = sys._getframe(2).f_globals["__name__"]
        return tensor.dtype is torch.float64 and caller.startswith("transformers.")

    def cast_to(tensor, *args, **kwargs):
        to_single = torch.float32 in args or kwargs.get("dtype") is torch.float32
        return tensor if to_single and is_cast(tensor) else to(tensor, *args, **kwargs)

    def cast_float(tensor, *args, **kwargs):
        return tensor if is_cast(tensor) else to(tensor, torch.float32)

    def cast_softmax(tensor, *args, **kwargs):
        if kwargs.get("dtype") is torch.float32 and is_cast(tensor):
            kwargs["dtype"] = torch.float64
        return softmax(tensor, *args, **kwargs)

    torch.Tensor.to, torch.Tensor.float = cast_to, cast_float
    nn.functional.softmax = cast_softmax
    try:
        yield
    finally:
        # torch has both in a base class of Tensor.
        del torch.Tensor.to, torch.Tensor.float
        nn.functional.softmax = softmax
