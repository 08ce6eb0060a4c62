"""Reuse of frozen computation in the steps of a run, and a report of the savings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.annotations import Arguments, Inputs
from pyreft.base_model.running import running_model
from pyreft.installed.caches import cache_argument
from pyreft.memory import share_of_memory
from pyreft.reuse.attention import attending
from pyreft.reuse.plan import NotReusableError, Plan, plan_reuse
from pyreft.reuse.states import collate_hidden, collate_prefix, compute_states, skipping
from pyreft.reuse.store import State, Store, contents, store_of, versions
from pyreft.reuse.watch import Watch
from pyreft.reuse.window import Window, cut

logger = logging.get_logger(__name__)

# A smaller share of a step is not worth the memory, and may not save time.
_WORTHWHILE = 0.05


@dataclass
class Report:
    """The work that was done, in tokens times layers, including padding.

    Attributes:
        batches: The number of batches that were cut down.
        hits, misses: The number of examples with and without known states.
        without: The work of these batches without reuse.
        windows: The work done for their windows.
        states: The work done for states, without gradient.
        held, on_disk: The number of states in memory and on disk.
        bytes: The size of those in memory.
    """

    batches: int = 0
    hits: int = 0
    misses: int = 0
    without: int = 0
    windows: int = 0
    states: int = 0
    held: int = 0
    on_disk: int = 0
    bytes: int = 0


class Cut(NamedTuple):
    """A batch that is cut down, and the known states of the rest."""

    window: Window
    states: list[State]


class FrozenReuse:
    """The reuse of one trainer and its model.

    A batch is cut down to its window, whose forward pass then starts from known states:

        cut = reuse.cut(inputs, shifted=False)
        if cut is not None:
            with reuse.running(cut) as inputs:
                loss = model(**inputs).loss

    Args:
        model: The model.
        memory: Bytes of memory that states may take; by default a share of free memory.
        disk: A directory for states that do not fit in memory, or None.
        autocast: Returns the context that the model runs in.

    Attributes:
        reason: Why nothing is reused, or None.
        report: The work that was done.
    """

    def __init__(
        self,
        model: EditedModel,
        memory: int | None,
        disk: str | None,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.model = model
        self.reason: str | None = None
        self.report = Report()
        self._memory, self._disk = memory, disk
        self._autocast = autocast
        self._plan: Plan | None = None
        self._store: Store | None = None
        self._contents: Hashable = None
        self._watch: Watch | None = None
        self._distrusted: str | None = None
        self._logged: set[str] = set()

    def begin(self, reason: str | None = None) -> None:
        """Plan again: read the model, how it is trained, and whether it changed.

        Args:
            reason: Why nothing may be reused, if that is known.
        """
        base = running_model(self.model.model)
        self.reason, self._plan, self._watch = None, None, Watch(self.model)
        try:
            if reason := self._distrusted or reason:
                raise NotReusableError(reason)
            self._plan = plan_reuse(self.model)
        except NotReusableError as error:
            self.decline(str(error), error.lost)
            return
        self._contents = contents(base)
        self._store = store_of(base)
        if self._memory is None:
            self._memory = share_of_memory(self._store.size)
        self._store.limit(self._memory, self._disk)

    def expire(self) -> None:
        """Be outdated, whatever the model is."""
        self._watch = None

    def outdated(self) -> bool:
        """Whether the plan may not hold: the model changed since `begin`, or there is none yet."""
        return self._watch is None or self._watch.changed()

    def decline(self, reason: str, lost: bool = True) -> None:
        """Reuse nothing until `begin`.

        Args:
            reason: Why.
            lost: Whether the model could otherwise reuse: then a warning is logged.
        """
        self._plan, self.reason = None, reason
        self._log_once(f"No frozen computation is reused, because {reason}.", lost)

    def distrust(self, reason: str) -> None:
        """Reuse nothing any more, because a reused result was wrong."""
        self._distrusted = reason
        self.decline(reason)

    def cut(self, inputs: Arguments, shifted: bool) -> Cut | None:
        """Cut a batch down to what must be computed, or return None if it is left whole.

        Args:
            inputs: The arguments of `ReftModel`.
            shifted: Whether to shift labels in the window to the tokens that predict them.
        """
        plan, given = self._plan, dict(inputs)
        if plan is None:
            return None
        if given.get("adapter_names") is not None:
            self._log_once("A batch is computed whole, because it names the adapters of its rows.")
            return None
        placed = self.model.edited_calls.place(self.model, given)
        try:
            window = cut(given, placed, plan.no_tokens is None, self._pad(), shifted)
        except NotReusableError as error:
            self._log_once(f"A batch is computed whole, because {error}.", lost=True)
            return None
        if _saved(plan, window) < _WORTHWHILE:
            self._log_once("A batch is computed whole, because hardly anything of it is frozen.")
            return None
        try:
            found = Cut(window, self._states(plan, window))
        except NotReusableError as error:
            self.decline(str(error))
            return None
        self._count(plan, window)
        return found

    @contextmanager
    def running(self, cut: Cut) -> Iterator[Inputs]:
        """Run the model on a window inside the block; yields the arguments for the call."""
        plan, store, (window, states) = self._plan, self._store, cut
        assert plan is not None and store is not None
        inputs: Inputs = dict(window.inputs)
        ids = inputs["input_ids"]
        prefix = collate_prefix(plan, states, window.length, ids.device)
        if prefix is not None:
            inputs[str(cache_argument(plan.base))] = prefix
        hidden = collate_hidden(states, ids.shape[1], ids.device)
        with ExitStack() as stack:
            stack.enter_context(self.model.edited_calls.placed(window.placed))
            stack.enter_context(skipping(plan, store.output, hidden))
            if prefix is not None:
                stack.enter_context(attending(plan.base))
            yield inputs

    # ---- known states -------------------------------------------------------------------

    def _states(self, plan: Plan, window: Window) -> list[State]:
        """The states of the rows of a window; those that are not known are computed."""
        store = self._store
        assert store is not None
        with self._autocast():
            device = window.inputs["input_ids"].device.type
            low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            store.require((self._contents, versions(plan.base)))
            keys: list[Hashable] = [
                (_digest(row), start, plan.skipped, low)
                for row, start in zip(window.rows, window.starts, strict=True)
            ]
            found = ((key, store.get(key)) for key in keys)
            states: dict[Hashable, State] = {k: state for k, state in found if state is not None}
            self.report.hits += sum(key in states for key in keys)
            missing: dict[tuple[int, int], dict[Hashable, Tensor]] = {}
            for key, row, start in zip(keys, window.rows, window.starts, strict=True):
                if key not in states:
                    missing.setdefault((len(row), start), {})[key] = row
            for (length, start), rows in missing.items():
                ids = torch.stack(list(rows.values()))
                made = compute_states(plan, store.output, ids, start)
                running = len(plan.layers) - plan.skipped
                self.report.misses += len(rows)
                self.report.states += len(rows) * (plan.skipped * length + running * start)
                for key, state in zip(rows, made, strict=True):
                    store.put(key, state)
                    states[key] = state
        return [states[key] for key in keys]

    def _pad(self) -> int | None:
        pad: int | None = self.model.config.get_text_config().pad_token_id
        return pad

    # ---- reports -----------------------------------------------------------------------

    def _count(self, plan: Plan, window: Window) -> None:
        report, store, layers = self.report, self._store, len(plan.layers)
        assert store is not None
        report.batches += 1
        report.without += layers * _size(window.size)
        report.windows += (layers - plan.skipped) * window.inputs["input_ids"].numel()
        report.on_disk, report.bytes = store.on_disk, store.size
        report.held = len(store) - report.on_disk
        self._log_plan(plan, window)

    def _log_plan(self, plan: Plan, window: Window) -> None:
        whole, width = window.size[1], window.inputs["input_ids"].shape[1]
        tokens = (
            f"all tokens are computed, because {plan.no_tokens}"
            if plan.no_tokens
            else f"of {whole} tokens in a row of the first batch, {width} are computed"
        )
        self._log_once(
            f"Frozen computation is reused: {plan.skipped} of {len(plan.layers)} layers run once "
            f"for an example, and not in every step; {tokens}.",
            plan.lost,
        )

    def _log_once(self, text: str, lost: bool = False) -> None:
        """Log a text once, compared up to its first colon; as a warning if reuse is lost."""
        kind = text.partition(":")[0]
        if kind not in self._logged:
            self._logged.add(kind)
            (logger.warning if lost else logger.info)(text)


def _size(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1]


def _saved(plan: Plan, window: Window) -> float:
    """The share of forward and backward work that a window with known states saves."""
    layers = len(plan.layers)
    running = layers - plan.skipped
    whole = (layers + running) * _size(window.size)
    return 1 - 2 * running * window.inputs["input_ids"].numel() / whole


def _digest(row: Tensor) -> bytes:
    return hashlib.blake2b(row.cpu().numpy().tobytes(), digest_size=16).digest()
