"""The stacks of layers of a model: one, or the encoder and the decoder of an encoder-decoder.

Llama, GPT-2, BERT    None                       model.layers, transformer.h, encoder.layer
T5, BART              "encoder", "decoder"       encoder.block, decoder.block
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pyreft.base_model.towers import reads_no_text
from pyreft.base_model.trace import trace_of
from pyreft.config import STACKS


def has_two_stacks(model: PreTrainedModel) -> bool:
    """Whether a model has an encoder, which reads the prompt, and a decoder, which continues."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return False
    # The encoder of T5, used alone to tag tokens, keeps the config of the whole model.
    encoder, decoder = model.get_encoder(), find_stack(model, "decoder")
    return all(encoder is not m for m in decoder.modules())


def find_stack(model: PreTrainedModel, stack: str) -> PreTrainedModel:
    """The encoder or the decoder."""
    encoder: PreTrainedModel = model.get_encoder()
    if stack == "encoder":
        return encoder
    found: PreTrainedModel = model.get_decoder()
    # Florence's decoder is a model with an encoder and a decoder.
    while any(encoder is m for m in found.modules()) and hasattr(found, "get_decoder"):
        inner = found.get_decoder()
        if inner is found:
            break
        found = inner
    return found


def stack_of(model: PreTrainedModel, module: nn.Module, path: str) -> str | None:
    """The stack that a module runs in; None if the model has only one.

    Raises:
        ValueError: If both stacks share the module, as a token embedding.
    """
    if not has_two_stacks(model):
        return None
    inside = [s for s in STACKS if any(m is module for m in find_stack(model, s).modules())]
    if len(inside) == 2 or (not inside and module is model.get_input_embeddings()):
        raise ValueError(
            f"{path!r} is shared by the encoder and the decoder of {type(model).__name__}, so the "
            "tokens it runs on are not known: name a module inside one of them."
        )
    # A module in neither stack is the head, which comes after the decoder.
    return inside[0] if inside else "decoder"


def text_config(model: PreTrainedModel, stack: str | None = None) -> PreTrainedConfig:
    """The config that describes the layers; a model of several parts has several configs."""
    config = model.config
    if stack is not None:
        # FSMT's stacks are plain modules, without a config of their own.
        config = getattr(find_stack(model, stack), "config", config)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(**{stack or "decoder": True})
    inner = getattr(config, "text_config", None)
    # T5Gemma 2's encoder has a config of its parts, none of which says that it is the text model.
    return config if inner is None or hasattr(config, "num_hidden_layers") else inner


def size_of(config: PreTrainedConfig, name: str) -> int | None:
    """A size in a config, None if it has none, or one for each part or layer."""
    try:
        size = getattr(config, name, None)
    except RuntimeError:
        # What transformers raises if the layers differ in it.
        return None
    return size if type(size) is int else None


def sizes_of(config: PreTrainedConfig, names: Iterable[str]) -> dict[str, int]:
    """Those of the named sizes that a config has."""
    sizes = ((name, size_of(config, name)) for name in names)
    return {name: size for name, size in sizes if size is not None}


def positions_depend_on_length(config: PreTrainedConfig) -> bool:
    """Whether the rotary frequencies depend on the longest text of a batch."""
    rope = str(getattr(config, "rope_parameters", None))
    return "dynamic" in rope or "longrope" in rope


def find_layers(model: PreTrainedModel, stack: str | None = None) -> list[nn.Module]:
    """The layers of a stack: `model.layers`, `transformer.h`, `encoder.layer`, ...

    They are the list of as many modules as the config has layers. In a model whose config does not
    count them (ConvNeXt has stages), and of several such lists in one that reads no text
    (wav2vec2 has convolutions), they are the list that holds most of its parameters. A module that
    runs for several layers (ALBERT) is there several times.

    Raises:
        ValueError: If there is no such list.
    """
    expected = size_of(text_config(model, stack), "num_hidden_layers")
    whole = model if stack is None else find_stack(model, stack)
    roots: list[nn.Module | None] = [whole]
    if stack is None and hasattr(model, "get_decoder"):
        # The text model first, because a vision tower may have the same number of layers.
        roots.insert(0, model.get_decoder())
    lists = [list(outer_lists(root)) if isinstance(root, nn.Module) else [] for root in roots]
    # Each list once: that of the text model comes first, and again in the whole model.
    once = {id(one): list(one) for several in lists for one in several}
    plain = list(once.values())
    flat = [_flattened(one) for one in plain]
    for every in (plain, flat):
        fit = [one for one in every if _are_layers(one) and expected in (None, len(one))]
        if len(fit) > 1 and expected is not None:
            fit = [layers for layers in fit if _runs(model, layers[0])] or fit
        if fit and expected is not None and not reads_no_text(whole):
            return fit[0]
        if fit:
            return max(fit, key=_count_parameters)
    # Those of HRM are in two lists, and run in cycles.
    for layers in (*flat, [layer for one in flat for layer in one]):
        if len(runs := _in_order_of_runs(model, layers)) == expected:
            return runs
    # LongCat counts two layers in each of its layers.
    if ran := [layers for layers in plain if _are_layers(layers) and _runs(model, layers[0])]:
        return max(ran, key=_count_parameters)
    where = f"the {stack} of {type(model).__name__}" if stack else type(model).__name__
    raise ValueError(
        f"{where} has no list of {'layers' if expected is None else f'{expected} layers'}: name "
        'the component by a path, such as "model.layers[3].output".'
    )


def _flattened(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules of a list, and of the lists in it: Funnel and PVT have blocks of layers."""
    found: list[nn.Module] = []
    for module in modules:
        found += _flattened(module) if isinstance(module, nn.ModuleList) else [module]
    return found


def _are_layers(modules: Sequence[nn.Module]) -> bool:
    """Whether modules can be layers: they have parts, which a list of embeddings or heads has not,
    and run by themselves, which a list of modules does not.
    """
    return bool(modules) and all(
        next(module.children(), None) is not None and not isinstance(module, nn.ModuleList)
        for module in modules
    )


def _runs(model: PreTrainedModel, module: nn.Module) -> bool:
    """Whether a module runs in a tiny forward pass."""
    names = [name for name, inside in model.named_modules() if inside is module]
    return any(trace_of(model).ran(name) for name in names)


def _in_order_of_runs(model: PreTrainedModel, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers as often as they run in a tiny forward pass: those of ALBERT share their weights."""
    names = {name: m for name, m in model.named_modules() if any(m is one for one in layers)}
    return [names[name] for name in trace_of(model).order if name in names]


def _count_parameters(layers: Sequence[nn.Module]) -> int:
    return sum(p.numel() for layer in layers for p in layer.parameters())


def outer_lists(root: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of modules in a model that are not inside another list, as lists of experts are."""
    for name, module in root.named_modules():
        inside = any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.ModuleList) and not inside:
            yield module
