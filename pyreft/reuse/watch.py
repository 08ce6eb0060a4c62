"""Whether a model is still what a plan of reuse was made for."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain

from pyreft.adapters import EditedModel
from pyreft.base_model.running import running_model
from pyreft.installed.modules import hook_tables
from pyreft.installed.tuners import is_tuner, tuner_settings


class Watch:
    """What callbacks change in the middle of a run: what is edited, trained, hooked, and LoRA.

    Fast enough to ask in every step. What is looked for anew at the beginning of a run alone is in
    docs/reuse.md.

    Args:
        model: The model.
    """

    def __init__(self, model: EditedModel) -> None:
        base = running_model(model.model)
        modules = list(base.modules())
        self._model, self._parameters = model, list(base.parameters())
        self._hooks = [table for module in modules for table in hook_tables(module)]
        self._tuners = [module for module in modules if is_tuner(module)]
        self._before = self._now()

    def changed(self) -> bool:
        """Whether something is other than it was when this was made."""
        return self._now() != self._before

    def _now(self) -> Hashable:
        adapters = self._model.adapter_set
        return (
            self._model.model.training,
            id(self._model.model),
            tuple(id(adapters[name]) for name in adapters.active),
            tuple(parameter.requires_grad for parameter in self._parameters),
            tuple(chain.from_iterable(self._hooks)),
            tuple(map(tuner_settings, self._tuners)),
        )
