"""The prompt of a generation -> the edits of each of its steps.

A step is a forward pass of the base model, or of a model inside it by which it generates: BLIP-2
computes the embeddings of the prompt, and leaves the rest to its language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from pyreft.annotations import Arguments
from pyreft.base_model.stacks import has_two_stacks
from pyreft.editing.pass_edits import Edits
from pyreft.editing.pass_plan import Placed, plan_pass
from pyreft.interventions import StackedInterventions
from pyreft.placement.steps import Steps, refuse_inside, step_window


def modules_that_generate(base: PreTrainedModel) -> list[nn.Module]:
    """The base model, and the models inside it by which it may generate."""
    parts = (one for one in base.modules() if isinstance(one, PreTrainedModel))
    inside = [one for one in parts if one.can_generate() and one is not base]
    # A decoder may generate by itself as well.
    return [base, *inside] if inside and not has_two_stacks(base) else [base]


class GeneratedFrom:
    """The prompt of a generation, during which the weights of interventions do not change.

    Args:
        base: The base model.
        placed: The adapters, placed on the prompt.
        cached: The number of tokens of the prompt in a cache before the first step.
    """

    def __init__(self, base: nn.Module, placed: Sequence[Placed], cached: int) -> None:
        self._base, self._placed = base, placed
        # An adapter that edits no text may generate from any.
        lengths = [one.placement.length for one in placed if one.placement.masks]
        self.steps = Steps(lengths[0], cached) if lengths else None
        self._stacks: dict[tuple[object, ...], StackedInterventions] = {}
        # The module whose forward passes are the steps: that which is called first.
        self._stepping: nn.Module | None = None

    def steps_in(self, module: nn.Module) -> bool:
        """Whether a forward pass of this module is a step.

        Raises:
            ValueError: If it is in a module inside the base model, and edits are outside of it.
        """
        if self._stepping is None:
            self._stepping = module
            inside = set(module.modules())
            targets = [target for one in self._placed for target in one.targets]
            if any(target.component.module not in inside for target in targets):
                refuse_inside()
        return self._stepping is module

    def plan_step(self, args: tuple[object, ...], kwargs: Arguments) -> Edits | None:
        """The edits of the part of the prompt that a step sees."""
        if self.steps is None:
            return plan_pass(self._placed)
        step = self.steps.read(args, kwargs, whole=self._stepping is not self._base)
        windows = ((one, step_window(one.placement, step)) for one in self._placed)
        placed = [replace(one, placement=window) for one, window in windows if window is not None]
        if not placed:
            return None
        placed = [one.keep_logits(kwargs.get("logits_to_keep")) for one in placed]
        return plan_pass(placed, None if torch.is_grad_enabled() else self._stacks)
