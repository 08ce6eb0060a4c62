"""The loss of a batch, computed on what its adapter changes and its loss needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, replace
from typing import Protocol, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.annotations import Inputs
from pyreft.installed.modules import is_compiled
from pyreft.memory import in_bytes
from pyreft.reuse import FrozenReuse
from pyreft.reuse.reuse import Cut
from pyreft.training.labelled import LabelledLoss, UnknownLogitsError

logger = logging.get_logger(__name__)

# How far two losses of one batch may be apart: by rounding, and by rounding to 8 or 11 bits.
_ROUNDING, _COARSE_ROUNDING = 1e-4, 3e-2

# A loss; if outputs were asked for, with them.
Loss: TypeAlias = Tensor | tuple[Tensor, Mapping[str, Tensor]]


class ComputeLoss(Protocol):
    """How the Trainer computes a loss."""

    def __call__(
        self,
        model: nn.Module,
        inputs: Inputs,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Loss: ...


def reuse_limits(
    memory: int | str | None, disk: str | os.PathLike[str] | None
) -> tuple[int | None, str | None]:
    """The limits of a `ReusingLoss`: `memory` and `disk`, as `ReftTrainer` takes them.

    Raises:
        ValueError: If the memory is no size.
    """
    in_memory = None if memory is None else in_bytes(memory)
    return in_memory, None if disk is None else os.fspath(disk)


@dataclass(frozen=True)
class Step:
    """The Trainer's computation of the loss of one batch.

    Args:
        compute: How the loss is computed.
        model: What is called: the model, or what wraps it.
        inputs: The batch.
        return_outputs: Whether outputs are returned with the loss.
        items: The number of tokens in the step, if the loss is divided by that.
    """

    compute: ComputeLoss
    model: nn.Module
    inputs: Inputs
    _: KW_ONLY
    return_outputs: bool
    items: Tensor | int | None


class ReusingLoss:
    """Computes the losses of one model, and reuses what is the same in every step.

    If nobody reads the logits, those without a label are not computed.

    Args:
        model: The model.
        accelerator: What it runs with.
        args: The arguments of the run.
        sharded: Whether the base model is sharded.
        limits: Memory and disk, see `FrozenReuse`.

    Attributes:
        model: The model.
        reuse: After the first step, what is reused, or why nothing is, and a report.
    """

    def __init__(
        self,
        model: EditedModel,
        accelerator: Accelerator,
        args: TrainingArguments,
        *,
        sharded: bool,
        limits: tuple[int | None, str | None],
    ) -> None:
        self.model = model
        self.reuse: FrozenReuse | None = None
        self._accelerator, self._args, self._sharded = accelerator, args, sharded
        self._memory, self._disk = limits
        self._labelled: LabelledLoss | None = None
        self._compared = False

    def begin(self) -> None:
        """Look at the model anew in the next step: a run begins."""
        if self.reuse is not None:
            self.reuse.expire()

    def compute(
        self, step: Step, *, reads_outputs: bool, keeps_labels: bool, own_loss: bool
    ) -> Loss:
        """The Trainer's loss, of the part of the batch that must be computed.

        Args:
            step: Its computation.
            reads_outputs: Whether the caller reads outputs, and not the loss alone.
            keeps_labels: Whether the Trainer computes the loss from the logits of all tokens.
            own_loss: Whether it does with a loss function of the user's.
        """
        labelled = None
        if not (reads_outputs or keeps_labels):
            labelled = self._labelled_loss(step.model)
        cut = None
        # A loss of a trainer of classifiers reads scores of texts, which are there in a window.
        if not reads_outputs or (
            self.model.training and self.model._get_name().endswith("ForSequenceClassification")
        ):
            reuse = self._frozen_reuse(step.model, own_loss=own_loss)
            cut = reuse.cut(step.inputs, shifted=labelled is not None)
        if cut is not None and not self._is_exact(step, cut, labelled):
            cut = None
        found = self._loss(step, cut, labelled)
        return (found[0], {"loss": found[0]}) if step.return_outputs and labelled else found

    def _loss(self, step: Step, cut: Cut | None, labelled: LabelledLoss | None) -> Loss:
        """The Trainer's loss of a batch, or of what it was cut down to."""
        with ExitStack() as stack:
            inputs = step.inputs
            if cut is not None:
                assert self.reuse is not None
                inputs = stack.enter_context(self.reuse.running(cut))
            arguments = (step.model, inputs, step.return_outputs, step.items)
            if labelled is None:
                return step.compute(*arguments)
            stack.enter_context(labelled.only_labelled(shifted=cut is not None))
            try:
                return step.compute(*arguments)
            except UnknownLogitsError:
                return step.compute(*arguments)

    def _labelled_loss(self, model: nn.Module) -> LabelledLoss | None:
        """What runs the output head on labelled tokens alone, if that is possible."""
        base = self.model.model
        if self._labelled is None or self._labelled.base is not base:
            self._labelled = LabelledLoss(base, model)
            reason = self._labelled.reason
            done = f"runs on every token: {reason}" if reason else "runs on labelled tokens alone"
            (logger.warning if self._labelled.lost else logger.info)(f"The output head {done}.")
        return self._labelled if self._labelled.possible else None

    def _frozen_reuse(self, called: nn.Module, *, own_loss: bool) -> FrozenReuse:
        """What is reused of the model, as it is now."""
        if self.reuse is None:
            self.reuse = FrozenReuse(
                self.model, self._memory, self._disk, self._accelerator.autocast
            )
        if self.reuse.outdated():
            self.reuse.begin(self._why_not(called, own_loss=own_loss))
        return self.reuse

    def _why_not(self, called: nn.Module, *, own_loss: bool) -> str | None:
        """What makes reuse impossible, beside the model itself, if anything."""
        if self._sharded:
            return "the base model is sharded"
        if self._args.torch_compile or is_compiled(called):
            return "the model is compiled"
        if getattr(self._accelerator, "parallelism_config", None) is not None:
            return "one text is computed by several processes"
        if self.model.follows_upstream:
            return "the model's forward is one in upstream's convention"
        if own_loss and self.model.can_generate():
            return "compute_loss_func reads the logits of all tokens"
        return None

    def _is_exact(self, step: Step, cut: Cut, labelled: LabelledLoss | None) -> bool:
        """Whether the loss of a run's first batch is the same without reuse."""
        if self._compared:
            return True
        assert self.reuse is not None
        device = self._args.device
        devices = [device] if device.type == "cuda" else []
        # Not the model that others wrapped, which may wait for other processes.
        alone = replace(step, model=self.model, return_outputs=False)
        losses: list[float] = []
        for part in (None, cut):
            with torch.no_grad(), torch.random.fork_rng(devices):
                loss = self._loss(alone, part, labelled)
            assert isinstance(loss, Tensor)
            losses.append(float(loss.mean()))
        self._compared = True
        whole, found = losses
        low = self._accelerator.mixed_precision != "no" or self.model.dtype != torch.float32
        allowed = (_COARSE_ROUNDING if low else _ROUNDING) * max(1.0, abs(whole))
        # A non-finite loss is for others to see.
        if abs(whole - found) > allowed:
            self.reuse.distrust(
                f"the loss of the first batch is {found} with it, and {whole} without"
            )
            logger.warning(
                f"Frozen computation of {type(self.model.model).__name__} cannot be reused: "
                f"{self.reuse.reason}. Training goes on without."
            )
            return False
        return True
