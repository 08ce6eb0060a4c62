"""Select the adapters that edit in a call, and their rows.

active adapters        all rows; the edits of several are summed, each times its weight
adapter_names          one name for each row of the batch, "__base__" for none
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from pyreft.adapters.adapter_set import BASE, AdapterSet
from pyreft.adapters.attached import AttachedAdapter
from pyreft.annotations import Arguments
from pyreft.editing.pass_plan import Placed
from pyreft.installed.caches import UncountedStateError, cached_tokens
from pyreft.installed.modules import is_compiled
from pyreft.placement.arguments import EditArguments
from pyreft.placement.batch import Batch, read_batch
from pyreft.placement.targets import Target
from pyreft.positions import PositionSpec

logger = logging.get_logger(__name__)


class ActiveAdapter(NamedTuple):
    """An adapter in a call.

    Args:
        adapter: The adapter.
        rows: (b,), the rows it edits, or None for all.
        weight: The factor of its edits.
        positions: Positions of the interventions whose config leaves them to the batch.
    """

    adapter: AttachedAdapter
    rows: Tensor | None = None
    weight: float = 1.0
    positions: PositionSpec | None = None

    @property
    def targets(self) -> list[Target]:
        """The targets of its interventions, with the positions of the call."""
        targets = self.adapter.targets
        if self.positions is None:
            return targets
        return [t if t.positions else t.at(self.positions) for t in targets]


def find_active(adapters: AdapterSet, given: EditArguments) -> list[ActiveAdapter]:
    """The adapters that edit in a call: the active ones, or those of `adapter_names`.

    Args:
        adapters: All adapters of the model.
        given: The arguments of the call.

    Raises:
        TypeError: If `adapter_names` is not a list of names.
        ValueError: If a name is unknown, or an adapter needs heads that are not in the model now.
    """
    spec = None if given.positions is None else PositionSpec.parse(given.positions)
    names, active = given.adapter_names, adapters.active
    if names is None:
        return [ActiveAdapter(adapters[name], None, w, spec) for name, w in active.items()]
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"adapter_names is a list of one name for each row, got {names!r}.")
    known = dict(adapters)
    wanted: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name != BASE and name not in known:
            raise ValueError(
                f"adapter_names[{row}] is {name!r}; there are {', '.join(known)}, and "
                f"{BASE} for no adapter."
            )
        wanted.setdefault(name, []).append(row)
    for name, adapter in known.items():
        # A forward pass has one head, that of the active adapter.
        alone = name in active and set(wanted) <= {name}
        if adapter.trained.names and (name in active or name in wanted) and not alone:
            raise ValueError(
                f"the adapter {name!r} has trained {', '.join(adapter.trained.names)} of the base "
                "model, which all rows of a batch share: activate it with set_adapter, and run its "
                "rows by themselves."
            )
    return [
        ActiveAdapter(known[name], torch.tensor(rows), 1.0, spec)
        for name, rows in wanted.items()
        if name != BASE
    ]


def place_in_call(
    active: Sequence[ActiveAdapter], base: PreTrainedModel, inputs: Arguments, given: EditArguments
) -> list[Placed]:
    """Place adapters for a call of the base model.

    Args:
        active: The adapters.
        base: The base model.
        inputs: The arguments of the base model.
        given: The call's arguments for edits.
    """
    batch = read_batch(base, _targets(active), inputs, given)
    placed = place_in_batch(active, batch, given)
    kept = inputs.get("logits_to_keep")
    return placed if kept is None else [one.keep_logits(kept) for one in placed]


def place_in_batch(
    active: Sequence[ActiveAdapter], batch: Batch | None, given: EditArguments
) -> list[Placed]:
    """Place adapters in the tokens that the base model reads.

    Args:
        active: The adapters.
        batch: The tokens of a call or of a prompt; None if there are none.
        given: The call's arguments for edits.
    """
    _refuse_ambiguous(active, given)
    _warn_of_positions(active, given)
    if batch is None:
        return []
    _require_rows(given.adapter_names, batch.rows)
    shared = len(active) > 1 and all(one.rows is None for one in active)
    placed = []
    for one in active:
        targets, rows = one.targets, one.rows
        placement = (batch if rows is None else batch.of(rows)).place(targets, given)
        if placement is not None and rows is not None:
            placement = placement.in_rows(rows, batch.rows)
        if placement is not None:
            modules = list(one.adapter.interventions.values())
            placed.append(Placed(modules, targets, placement, one.weight, shared))
    return placed


def _targets(active: Sequence[ActiveAdapter]) -> list[Target]:
    """The targets of all their interventions."""
    return [target for one in active for target in one.targets]


def _require_rows(names: Sequence[str] | None, rows: int) -> None:
    """Raise ValueError unless there is a name for each row."""
    if names is not None and len(names) != rows:
        raise ValueError(
            f"adapter_names has {len(names)} names, the batch has {rows} rows: give one for each."
        )


def _refuse_ambiguous(active: Sequence[ActiveAdapter], given: EditArguments) -> None:
    """Raise ValueError for positions or directions if it is unclear which adapter they are for."""
    mixed = len(active) > 1 or any(one.rows is not None for one in active)
    if mixed and not (given.intervention_locations is None and given.subspaces is None):
        raise ValueError(
            "intervention_locations and subspaces are for the interventions of one adapter, and "
            "several are active in this call: give positions in the configs, or activate one "
            "adapter with set_adapter."
        )


def _warn_of_positions(active: Sequence[ActiveAdapter], given: EditArguments) -> None:
    """Warn if neither configs nor the call have positions, or the call's are not used."""
    targets = _targets(active)
    without = targets and all(target.positions is None for target in targets)
    if without and given.intervention_locations is None:
        logger.warning_once(
            "No intervention has positions, so this call runs the bare base model. Set positions "
            'in the config ("f7+l7"), or give intervention_locations with the batch.'
        )
    if given.positions is None:
        return
    own = [target.positions is not None for one in active for target in one.adapter.targets]
    if own and all(own):
        logger.warning_once(
            f"positions={given.positions!r} is not used in this call, because every intervention "
            "has positions in its config. Give intervention_locations to edit elsewhere."
        )


def say_nothing_is_edited(
    base: PreTrainedModel, inputs: Arguments, without_text: bool = False
) -> None:
    """Report that no token of a call is edited: an error in training, else a warning.

    Args:
        base: The base model.
        inputs: Its arguments.
        without_text: Whether interventions are in a part that reads no text.

    Raises:
        ValueError: If the model is being trained.
    """
    with suppress(UncountedStateError):
        if not cached_tokens(inputs):
            _report(base, list(inputs), without_text)


def refuse_unreached(base: PreTrainedModel, placed: Sequence[Placed]) -> None:
    """Raise ValueError if no module that is edited ran in a call, unless the code is compiled."""
    if torch.compiler.is_compiling() or any(is_compiled(module) for module in base.modules()):
        return
    targets = [one.targets[index] for one in placed for index in one.placement.masks]
    at = sorted({f"{t.config.place} ({type(t.component.module).__name__})" for t in targets})
    raise ValueError(
        f"nothing is edited in this call, because no module of the adapter's components runs in it "
        f"as a module: {', '.join(at[:3])}{', ...' if len(at) > 3 else ''}. Some models call "
        "`forward` of their layers directly. Name other components, or a path to a module inside."
    )


def require_gradient(interventions: nn.Module, outputs: Sequence[Tensor]) -> None:
    """Raise ValueError if no gradient of what a model in training returned can reach them.

    Args:
        interventions: The interventions, which have edited.
        outputs: The tensors that the model returned.
    """
    trained = any(parameter.requires_grad for parameter in interventions.parameters())
    if trained and outputs and not any(tensor.requires_grad for tensor in outputs):
        raise ValueError(
            "no gradient reaches the interventions, because the model computes its layers without "
            "one: reversible layers (Reformer) do, and gradient checkpointing with "
            "use_reentrant=True, unless model.enable_input_require_grads() is called. Such a model "
            "is edited in evaluation mode, and cannot be trained."
        )


def _report(base: PreTrainedModel, names: Sequence[str], without_text: bool) -> None:
    texts = [name for name in names if name.endswith(("input_ids", "inputs_embeds"))]
    if without_text:
        why = f"no position of the adapter is among the tokens that {', '.join(names)} become"
    elif texts:
        why = f"no position of the adapter is among the tokens of {', '.join(texts)}"
    else:
        why = f"the call has no text tokens, but {', '.join(names) or 'nothing'}"
    message = f"Nothing is edited in this call: {why}."
    if base.training and torch.is_grad_enabled():
        raise ValueError(f"{message} So nothing would be learned from it.")
    logger.warning_once(f"{message} It runs the bare base model.")
