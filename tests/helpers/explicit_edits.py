"""Edits of a bare model by explicit matrices in float64, which pictures are compared with."""

from contextlib import ExitStack, contextmanager

import torch
from by_hand import first_output, on_output

from conftest import make_base
from pyreft.interventions.forms import read_form

LAYERS_AT = {"llama": "model.layers", "gemma3_text": "model.layers", "gpt2": "transformer.h"}
LAYERS_AT |= {"bert": "bert.encoder.layer"}
MLP = {"bert": "output"}


def make_double(architecture):
    """A tiny model in float64, in evaluation mode; the same one at each call."""
    if architecture == "gemma3_text":
        from architectures import make

        return make(architecture).double()
    return make_base(architecture).double()


def formula(intervention, weight=1.0):
    """The edit of a low-rank intervention, as matrix products: (..., D) -> (..., D)."""
    form = read_form(intervention)

    def edit(hidden):
        source = torch.zeros_like(hidden @ form.basis.T) + form.bias
        if form.weight is not None:
            source = hidden @ form.weight.T + form.bias
        if form.replaces:
            source = source - hidden @ form.basis.T
            source = source if form.shift is None else source - form.shift
        return weight * (source @ form.basis)

    return edit


def module_of(base, layer, component="block_output"):
    kind = base.config.model_type
    block = base.get_submodule(LAYERS_AT[kind])[layer]
    return block if component == "block_output" else block.get_submodule(MLP.get(kind, "mlp"))


@contextmanager
def edited_by_hand(base, edits):
    """Edit a bare model inside the block.

    Args:
        base: The model.
        edits: A list of (layer, component, columns, function); the functions of one layer and
            component are given the hidden state without the edits of the others.

    Yields:
        For (layer, component) the hidden states (B, T, D) before and after, once the model ran.
    """
    seen, places = {}, dict.fromkeys((layer, component) for layer, component, *_ in edits)

    def hook_for(place):
        def change(hidden):
            after = hidden.clone()
            for *where, columns, edit in edits:
                if tuple(where) == place:
                    after[:, columns] += edit(hidden[:, columns])
            seen[place] = (hidden.clone(), after)
            return after

        return on_output(change)

    with ExitStack() as stack:
        for place in places:
            handle = module_of(base, *place).register_forward_hook(hook_for(place))
            stack.callback(handle.remove)
        yield seen


def leaving(base, layer, seen):
    """A hook that stores what leaves a layer."""

    def hook(module, args, output):
        seen[layer] = first_output(output).clone()

    return module_of(base, layer).register_forward_hook(hook)
