"""Steps of a trainer that compute only what its adapter changes and its loss needs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.utils import logging

from pyreft.base_model.running import running_model
from pyreft.installed.modules import is_compiled
from pyreft.reuse import FrozenReuse
from pyreft.reuse.plan import counts_tokens
from pyreft.reuse.reuse import Cut
from pyreft.reuse.store import in_bytes
from pyreft.training.labelled import LabelledLoss, UnknownLogitsError

logger = logging.get_logger(__name__)

# How far two losses of one batch may be apart: by rounding, and by rounding to 8 or 11 bits.
_ROUNDING, _COARSE_ROUNDING = 1e-4, 3e-2


class ReuseMixin(Trainer):
    """The part of `ReftTrainer` that reuses what is the same in every step.

    Where nobody gets the logits, those without a label are not computed.
    """

    model: Any
    # Whether nobody looks at the outputs beside the loss, in an evaluation.
    _loss_only = False
    _labelled: LabelledLoss | None = None
    # What the plan was made for.
    _planned: tuple[int, bool] | None = None
    _compared = False

    def __init__(
        self,
        *args: Any,
        reuse_frozen: bool = True,
        reuse_memory: int | str | None = None,
        reuse_disk: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.reuse_frozen = reuse_frozen
        self._reuse_memory = None if reuse_memory is None else in_bytes(reuse_memory)
        self._reuse_disk = None if reuse_disk is None else os.fspath(reuse_disk)
        self.reuse: FrozenReuse | None = None
        super().__init__(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._planned = None
        return super()._inner_training_loop(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, for an evaluation in the middle of a run as well."""
        self._planned = None
        return super().evaluation_loop(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The Trainer's, on the part of the batch that must be computed."""
        inputs = self._count_tokens(inputs)
        if not self.reuse_frozen:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        looks = return_outputs and not self._loss_only
        labelled = None if looks or self._takes_labels else self._labelled_loss(model)
        cut = None
        # A loss of a trainer of classifiers reads scores of texts, which are there in a window.
        scores = self.model._get_name().endswith("ForSequenceClassification")
        if not looks or (scores and self.model.training):
            cut = self._plan(model).cut(inputs, shifted=labelled is not None)
        arguments = (inputs, num_items_in_batch, labelled)
        if cut is not None and not self._is_exact(cut, *arguments):
            cut = None
        found = self._loss(model, cut, *arguments, return_outputs)
        return (found[0], {"loss": found[0]}) if return_outputs and labelled else found

    @property
    def _takes_labels(self) -> bool:
        """Whether the Trainer keeps the labels to itself and computes the loss from the logits."""
        return self.label_smoother is not None or self.compute_loss_func is not None

    def _loss(
        self,
        model: Any,
        cut: Cut | None,
        inputs: dict[str, Any],
        items: Any,
        labelled: LabelledLoss | None,
        return_outputs: bool = False,
    ) -> Any:
        """The Trainer's loss of a batch, or of what it was cut down to."""
        with ExitStack() as stack:
            if cut is not None:
                assert self.reuse is not None
                inputs = stack.enter_context(self.reuse.running(cut))
            compute = partial(super().compute_loss, model, inputs, return_outputs, items)
            if labelled is None:
                return compute()
            stack.enter_context(labelled.only_labelled(shifted=cut is not None))
            try:
                return compute()
            except UnknownLogitsError:
                return compute()

    def _labelled_loss(self, model: Any) -> LabelledLoss | None:
        """What runs the output head only where there is a label, if that can be."""
        base = self.model.model
        if self._labelled is None or self._labelled.base is not base:
            self._labelled = LabelledLoss(base, model)
            reason = self._labelled.reason
            done = f"runs on every token: {reason}" if reason else "runs on labelled tokens alone"
            (logger.warning if self._labelled.lost else logger.info)(f"The output head {done}.")
        return self._labelled if self._labelled.possible else None

    def _count_tokens(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Tell a causal model the positions of a batch that is padded at the left.

        By itself it counts columns, so that a learned position would depend on the padding.
        """
        mask, base = inputs.get("attention_mask"), running_model(self.model.model)
        if not isinstance(mask, Tensor) or mask.dim() != 2 or bool(mask[:, 0].all()):
            return inputs
        if "position_ids" in inputs or self.model.config.is_encoder_decoder:
            return inputs
        if not counts_tokens(base):
            return inputs
        return {**inputs, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}

    def _plan(self, model: Any) -> FrozenReuse:
        """What is reused of the model, in its mode."""
        if self.reuse is None or self.reuse.model is not self.model:
            memory, disk = self._reuse_memory, self._reuse_disk
            autocast = self.accelerator.autocast
            self.reuse = FrozenReuse(self.model, memory, disk, autocast)
            self._planned, self._compared = None, False
        now = id(self.model), bool(self.model.model.training)
        if now != self._planned:
            self.reuse.begin(self._why_not(model))
            self._planned = now
        return self.reuse

    def _why_not(self, model: Any) -> str | None:
        """What of the trainer's makes reuse impossible, if anything."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return "the base model is sharded"
        if self.args.torch_compile or is_compiled(model):
            return "the model is compiled"
        if getattr(self.accelerator, "parallelism_config", None) is not None:
            return "one text is computed by several processes"
        if self.model.follows_upstream:
            return "the model's forward is one in upstream's convention"
        if self.compute_loss_func is not None and self.model.can_generate():
            return "compute_loss_func reads the logits of all tokens"
        return None

    def _is_exact(self, cut: Cut, *arguments: Any) -> bool:
        """Whether the loss of a run's first batch is the same without reuse."""
        if self._compared:
            return True
        assert self.reuse is not None
        device = self.args.device
        devices = [device] if device.type == "cuda" else []
        losses: list[Any] = []
        for part in (None, cut):
            # Not the model that others wrapped, which may wait for other processes.
            with torch.no_grad(), torch.random.fork_rng(devices):
                losses.append(self._loss(self.model, part, *arguments))
        self._compared = True
        whole, found = (float(loss.detach().mean()) for loss in losses)
        low = self.accelerator.mixed_precision != "no" or self.model.dtype != torch.float32
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
