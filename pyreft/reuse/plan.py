"""Find the layers and tokens that are the same in every step, or the reason why there are none.

                 tokens before the first edited one       later tokens
layers >= S      keys and values are known                computed in each step
layers <  S      nothing is needed                        nothing: their output is known
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pyreft.adapters import EditedModel
from pyreft.base_model.components import Component
from pyreft.base_model.layout import ROWS_FIRST
from pyreft.base_model.running import running_model
from pyreft.base_model.stacks import find_layers, positions_depend_on_length, text_config
from pyreft.base_model.towers import TOWER, reads_no_text
from pyreft.installed.attention_functions import attention_of, captures_outputs, keeps_state
from pyreft.installed.caches import (
    CACHE_NAMES,
    cache_argument,
    cache_counts_tokens,
    cache_has_layers,
)
from pyreft.installed.modules import (
    any_is_compiled,
    dropout_rate,
    dropouts_have_a_base,
    hooks_of,
    is_own,
    modules_list_hooks,
    modules_say_if_compiled,
    tensors_count_writes,
)
from pyreft.installed.offloading import is_placed, placed_modules_have_a_hook

# Conditions under which only the layers themselves can change their output.
_NEEDED = (
    *(modules_list_hooks, modules_say_if_compiled, tensors_count_writes),
    *(dropouts_have_a_base, placed_modules_have_a_hook),
)


class NotReusableError(Exception):
    """Nothing can be reused; the message is a reason that continues "because ...".

    Args:
        reason: The message.
        lost: Whether reuse would be possible if the model were trained or run differently.
    """

    def __init__(self, reason: str, lost: bool = True) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True)
class Plan:
    """The layers and tokens of a model that are reused.

    Args:
        base: The transformers model, without wrappers.
        layers: All of its layers.
        skipped: S, the number of first layers that do not run again.
        no_tokens: Why all tokens are computed; None if only those from the first edited one on are.
        lost: Whether `no_tokens` has a reason that can be avoided for this model.
    """

    base: PreTrainedModel
    layers: tuple[nn.Module, ...]
    skipped: int
    no_tokens: str | None
    lost: bool = False


def plan_reuse(model: EditedModel) -> Plan:
    """Find what does not depend on trained parameters, in the present mode of the model.

    Raises:
        NotReusableError: If nothing is known to be independent of them.
    """
    base = running_model(model.model)
    _require_plain(model.model, base)
    try:
        layers = tuple(find_layers(base))
    except ValueError as error:
        raise NotReusableError(str(error)) from error
    if len({id(layer) for layer in layers}) < len(layers):
        raise NotReusableError("its layers share modules")
    inside = {id(m): i for i, layer in enumerate(layers) for m in layer.modules()}
    adapters = [model.adapter_set[name] for name in model.active_adapters]
    components = [target.component for adapter in adapters for target in adapter.targets]
    _require_text(base, components)
    skipped = min(_unchanged(component, layers, inside) for component in components)
    lost = None if next(_why_never_tokens(base), None) else next(_why_not_tokens(base), None)
    no_tokens = lost or next(_why_never_tokens(base), None)
    trained = _first_trained(base, layers)
    if trained is not None:
        skipped = min(skipped, trained)
        no_tokens = no_tokens or f"layer {trained} of the base model is trained"
    if not skipped and no_tokens:
        reason = f"the first layer is edited or trained, and {no_tokens}"
        raise NotReusableError(reason, lost is not None)
    return Plan(base, layers, skipped, no_tokens, lost is not None)


def _require_text(base: PreTrainedModel, components: Sequence[Component]) -> None:
    """Raise NotReusableError unless all that is edited are tokens of a text, in (B, T, D)."""
    if reads_no_text(base) or any(component.stack == TOWER for component in components):
        raise NotReusableError("a part that reads no text is edited", lost=False)
    if any(component.layout != ROWS_FIRST for component in components):
        raise NotReusableError("edited hidden states have other axes than (B, T, D)", lost=False)


def _unchanged(component: Component, layers: tuple[nn.Module, ...], inside: dict[int, int]) -> int:
    """The number of first layers whose output does not change with the edit of a component.

    If the output of a layer is edited, that layer counts: the hook on it edits after it ran.
    """
    index = inside.get(id(component.module))
    if index is None:
        return 0
    return index + (component.module is layers[index] and component.side == "output")


def _first_trained(base: PreTrainedModel, layers: tuple[nn.Module, ...]) -> int | None:
    """The first layer with a trained parameter; heads after the layers do not count."""
    of_backbone = {id(p) for p in base.base_model.parameters()}
    of_layers = {id(p): i for i, layer in enumerate(layers) for p in layer.parameters()}
    found = []
    for name, parameter in base.named_parameters():
        if not parameter.requires_grad or id(parameter) not in of_backbone:
            continue
        if id(parameter) not in of_layers:
            raise NotReusableError(f"{name} of the base model is trained")
        found.append(of_layers[id(parameter)])
    return min(found, default=None)


# ---- what prevents reuse -----------------------------------------------------------------------


def _require_plain(outer: nn.Module, base: PreTrainedModel) -> None:
    """Raise NotReusableError if more than its layers determines a model's forward pass."""
    never = next(_why_never(base), None)
    reason = next(_why_not(outer, base), None) if never is None else never
    if reason is not None:
        raise NotReusableError(reason, lost=never is None)


def _why_never(base: PreTrainedModel) -> Iterator[str]:
    """Reasons that hold for every model of this architecture."""
    config = text_config(base)
    if getattr(base.config, "is_encoder_decoder", False):
        yield "the model has an encoder and a decoder"
    if config is not base.config:
        yield "the model has several parts, of which the language model is one"
    if getattr(config, "num_kv_shared_layers", 0):
        yield "its layers share keys and values"


def _why_not(outer: nn.Module, base: PreTrainedModel) -> Iterator[str]:
    config = text_config(base)
    for needed in _NEEDED:
        if not needed.holds:
            yield f"it relies on this: {needed.explain()}"
    modules = [outer, *base.modules()]
    if any_is_compiled(modules):
        yield "the model is compiled"
    if any(is_placed(module) for module in modules):
        yield "parts of the model are on several devices, or offloaded"
    if base.training and any(getattr(m, "gradient_checkpointing", False) for m in modules):
        yield "gradient checkpointing is on, which reuse makes unnecessary"
    if (dropout := _active_dropout(base, config)) is not None:
        yield f"{dropout} is random while the base model is in training mode"
    if (hooked := _hooked(base)) is not None:
        yield f"there is a hook on {hooked}, which would not see every token"
    for name in ("output_hidden_states", "output_attentions", "output_router_logits"):
        if getattr(config, name, False):
            yield f"the model's config asks for {name}"
    if positions_depend_on_length(config):
        yield "its positions depend on the length of the batch"


def _active_dropout(base: PreTrainedModel, config: PreTrainedConfig) -> str | None:
    """The module or setting that draws random numbers in a forward pass, None if none does."""
    if not base.training:
        return None
    for name, module in base.named_modules():
        if module.training and dropout_rate(module) > 0:
            return str(name)
    # Models with dropout but no dropout module read its rate here. Heads have dropout modules.
    for name, rate in config.to_dict().items():
        random = "drop" in name or "jitter" in name
        if random and not name.startswith(("summary", "classifier")) and _is_rate(rate):
            return f"{name}={rate}"
    return None


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and value > 0


def _hooked(base: nn.Module) -> str | None:
    """The name of a module with a foreign hook, None if there is none."""
    for name, module in base.named_modules():
        for hook in hooks_of(module):
            # pyreft's hooks edit only the tokens that they are given.
            if not (is_own(hook) or captures_outputs(hook)):
                return name or "the model"
    return None


def counts_tokens(base: PreTrainedModel) -> bool:
    """Whether a model continues from a cache, at given positions."""
    return cache_argument(base) is not None and _continues(base)


def _continues(base: PreTrainedModel) -> bool:
    """Whether a model can continue from a cache, whatever the name of its argument."""
    takes = inspect.signature(base.forward).parameters.keys()
    scores = type(base).__name__.endswith("ForSequenceClassification")
    return "position_ids" in takes and (base.can_generate() or scores)


def _why_never_tokens(base: PreTrainedModel) -> Iterator[str]:
    """Why an architecture's later tokens depend on more than earlier keys and values."""
    config = text_config(base)
    bidirectional = getattr(config, "use_bidirectional_attention", False)
    modules = base.base_model.modules()
    if bidirectional or not all(getattr(m, "is_causal", True) for m in modules):
        yield "its tokens see later ones"
    if getattr(config, "is_causal", True) is False:
        yield "its tokens see later ones"
    kinds = set(getattr(config, "layer_types", None) or ())
    if keeps_state(base) or not kinds <= {"full_attention", "sliding_attention"}:
        yield "it has a state other than keys and values of tokens"
    if not _continues(base):
        yield f"{type(base).__name__} does not continue from a cache at given positions"


def _why_not_tokens(base: PreTrainedModel) -> Iterator[str]:
    """Why a model that continues from a cache cannot be passed one."""
    if cache_argument(base) is None or cache_argument(base.base_model) is None:
        yield (
            f"forward of {type(base).__name__} takes no cache by a known name, or takes "
            f"several: it should take one of {' and '.join(CACHE_NAMES)}"
        )
    for needed in (cache_has_layers, cache_counts_tokens):
        if not needed.holds:
            yield f"it relies on this: {needed.explain()}"
    attention = attention_of(text_config(base))
    if attention not in ("eager", "sdpa"):
        yield f"its attention is {attention}, not sdpa or eager"
