"""Upstream's calling convention of a `ReftModel`: the batch as a dict, `unit_locations`, a pair.

    _, outputs = model(batch, unit_locations={"sources->base": (None, [[[7]]])}, labels=...)
    _, ids = model.generate(prompt, unit_locations=..., intervene_on_prompt=True, ...)

It returns the pair (outputs of the bare base model or None, edited outputs). Interventions without
positions in config and call edit every token. Deviation: a unit location is the index of a token in
its sequence without padding, but upstream's is a column of the padded batch; `read_locations`
decides which one a script means with left padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from pyreft.adapters.model import EditedModel
from pyreft.annotations import Arguments, Inputs
from pyreft.compat.columns import read_locations
from pyreft.compat.locations import locations_tensor
from pyreft.placement.arguments import NAMES
from pyreft.positions.counted_pad import without_leading_pad


def call_upstream(
    model: EditedModel,
    base: Arguments,
    sources: object = None,
    unit_locations: object = None,
    source_representations: object = None,
    subspaces: object = None,
    labels: Tensor | None = None,
    output_original_output: bool = False,
    return_dict: bool | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Run a model on a batch, with upstream's arguments."""
    _refuse_sources(sources, source_representations)
    extra = {"labels": labels, "use_cache": use_cache, "subspaces": subspaces, **kwargs}
    inputs = dict(base) | {name: v for name, v in extra.items() if v is not None}
    explicit = inputs.get("intervention_locations")
    placed = _unit_locations(model, base, unit_locations, explicit, labels=labels)
    inputs = {"positions": "all", **inputs} if placed is None else inputs | placed
    inputs["in_order"] = True
    original = None
    if output_original_output:
        with model.disable_adapter():
            original = model.edited_calls.run(model, model.model, dict(inputs))
    edited = model.edited_calls.run(model, model.model, inputs)
    return UpstreamOutput(original, edited) if return_dict else (original, edited)


def generate_upstream(
    model: EditedModel,
    base: Arguments,
    sources: object = None,
    unit_locations: object = None,
    source_representations: object = None,
    intervene_on_prompt: bool = False,
    subspaces: object = None,
    output_original_output: bool = False,
    positions: object = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Generate from a batch of prompts, with upstream's arguments."""
    _refuse_sources(sources, source_representations)
    if unit_locations is not None and not intervene_on_prompt:
        raise ValueError(
            "unit_locations are positions of the prompt: they need intervene_on_prompt=True. "
            'To edit every generated token, give the intervention the positions "completion".'
        )
    # None is a value of the arguments of transformers, and none of those for edits.
    given = {n: value for n, value in kwargs.items() if value is not None or n not in NAMES}
    inputs: Inputs = dict(base) | given
    refuse_upstream_arguments(inputs)
    copies = inputs.get("num_beams") or 1
    explicit = inputs.get("intervention_locations")
    placed = _unit_locations(model, base, unit_locations, explicit, copies)
    if placed is not None:
        inputs |= placed
    elif positions is None:
        positions = "all" if intervene_on_prompt else "completion"
    edits = {"positions": positions, "subspaces": subspaces}
    inputs |= {name: value for name, value in edits.items() if value is not None}
    original = None
    if output_original_output:
        with model.disable_adapter():
            original = model.edited_calls.generate(model, dict(inputs))
    return original, model.edited_calls.generate(model, inputs, in_order=True)


def call_subclass(call: Callable[..., Any], arguments: Arguments) -> Any:
    """Call a subclass's `forward` in upstream's convention, as upstream's trainer does.

    Args:
        call: The function that runs it.
        arguments: The arguments in transformers' convention.
    """
    inputs = without_leading_pad(arguments)
    named = {n: v for n, v in inputs.items() if n in ("labels", "use_cache")}
    locations, subspaces = (inputs.get(n) for n in ("intervention_locations", "subspaces"))
    if locations is not None:
        listed = locations.permute(1, 0, 2).tolist()
        named["unit_locations"] = {"sources->base": (None, listed)}
    if subspaces is not None:
        named["subspaces"] = subspaces
    apart = ("intervention_locations", "subspaces", *named)
    found = call({n: v for n, v in inputs.items() if n not in apart}, **named)
    return found[1] if isinstance(found, tuple) and len(found) == 2 else found


def _unit_locations(
    model: EditedModel,
    base: Arguments,
    given: object,
    explicit: object,
    copies: int = 1,
    labels: Tensor | None = None,
) -> Inputs | None:
    """The arguments that specify where to edit, None without `unit_locations`."""
    locations = locations_tensor(given, len(model.interventions), _rows(base), copies)
    if locations is None:
        return None
    if explicit is not None:
        raise TypeError(
            "give positions only once, as unit_locations, which may be columns as in upstream, "
            "or as intervention_locations, which are tokens of each row."
        )
    specs = [config.positions for config in model.reft_config.representations]
    # A leading pad token is already accounted for.
    found = read_locations(locations, base, specs, labels)
    return {"intervention_locations": found, "leading_pad": 0}


@dataclass
class UpstreamOutput(ModelOutput):
    """The result of a call in upstream's convention with `return_dict=True`.

    Args:
        original_outputs: The output of the bare base model, if it was requested.
        intervened_outputs: The output of the edited model.
        collected_activations: None; pyvene's collecting interventions are not part of ReFT.
    """

    original_outputs: Any = None
    intervened_outputs: Any = None
    collected_activations: Any = None


def refuse_upstream_arguments(arguments: Arguments) -> None:
    """Raise TypeError for arguments of upstream's convention in a call of transformers'."""
    for name in ("unit_locations", "sources", "source_representations", "intervene_on_prompt"):
        if name in arguments:
            raise TypeError(
                f"{name} belongs to upstream's convention, model({{...}}, {name}=...), with the "
                "batch as a dict; here positions are intervention_locations."
            )


def _rows(base: Arguments) -> int:
    tensors = [value for value in base.values() if isinstance(value, Tensor)]
    if not tensors:
        raise TypeError(
            f"a batch is a dict of tensors with input_ids; got {dict(base)!r}. A tokenizer "
            'makes one with return_tensors="pt".'
        )
    return tensors[0].shape[0]


def _refuse_sources(sources: Any, source_representations: Any) -> None:
    if any(source is not None for source in (sources, source_representations)):
        raise ValueError("ReFT interventions have no sources; give None for them.")
