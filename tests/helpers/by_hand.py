"""Edits made by hand: where a component is in each architecture, and a hook to put there."""

import torch

LAYERS_AT = {"llama": "model.layers", "gpt2": "transformer.h", "bert": "bert.encoder.layer"}
INNER = {
    "llama": {"block_output": "", "mlp_output": "mlp", "attention_output": "self_attn"},
    "gpt2": {"block_output": "", "mlp_output": "mlp", "attention_output": "attn"},
    "bert": {"block_output": "", "mlp_output": "output", "attention_output": "attention"},
}


def find_layers(base):
    return base.get_submodule(LAYERS_AT[base.config.model_type])


def find_component(base, layer, component):
    """The module that a component is the output of."""
    inner = INNER[base.config.model_type][component]
    return find_layers(base)[layer].get_submodule(inner)


def first_output(output):
    """The hidden state among what a module returns."""
    return output if isinstance(output, torch.Tensor) else output[0]


def on_output(edit):
    """A forward hook that puts edit(hidden) in the place of the hidden state a module returns."""

    def hook(module, args, output):
        edited = edit(first_output(output))
        if isinstance(output, torch.Tensor):
            return edited
        return type(output)([edited, *output[1:]])

    return hook
