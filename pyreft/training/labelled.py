"""The loss of a causal language model, its output head run only where there is a label.

    hidden (B, T, D) --labelled--> (N, D) --head, chunk by chunk--> (n, V) --> the sum of the losses

A prompt has no labels, so most of the (B T, V) logits of a batch are not used; of those that are,
a chunk at a time exists. The base model runs as ever, and its own forward pass
returns the loss; only its head gets other tokens, and its loss function other logits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from pyreft.annotations import Inputs
from pyreft.base_model.running import running_model
from pyreft.installed.losses import (
    causal_loss,
    causal_loss_is_replaceable,
    names_loss,
    replaced_loss,
)
from pyreft.installed.modules import (
    any_is_compiled,
    any_is_hooked,
    modules_list_hooks,
    modules_say_if_compiled,
    others_see_outputs,
)
from pyreft.placement.boundary import shift_labels
from pyreft.training.chunks import chunked_loss, plain_chunked_loss

logger = logging.get_logger(__name__)

# How large the logits of a chunk are in float32. In training some three times as much exists at
# once: logits, their logarithms, their gradient.
CHUNK_BYTES = 2**26
# The tokens and words of a tile of logits on a CPU, where 2 MiB stay in its caches.
CPU_TILE = 512, 1024
# The number of tokens that a loss is divided by; None for those of the batch.
_Items: TypeAlias = Tensor | int | None
_NEEDED = (causal_loss_is_replaceable, modules_list_hooks, modules_say_if_compiled)


class UnknownLogitsError(Exception):
    """The model does something unknown to its logits; the next attempt leaves it to the model."""


class LabelledLoss:
    """How one base model computes its loss at labelled tokens alone.

    Losses and gradients are those of the base model's own loss, up to rounding. What a model does
    to its logits behind the head (a scale, a cap) is read from its config, and compared once with
    what the model did to those of one token. If it does something else, all labelled tokens go
    through its own head at once, which is as exact and takes the memory of their logits.

    Args:
        base: The base model; it may be wrapped by PEFT.
        model: What calls it: the model that is trained, or what wraps that.

    Attributes:
        base: The base model.
        reason: Why its loss cannot be computed so, or None.
        lost: Whether it could be, in a model of this kind that is run otherwise.
    """

    def __init__(self, base: PreTrainedModel, model: nn.Module) -> None:
        self.base = base
        self._base = running_model(base)
        find_head: Callable[[], nn.Module | None] = self._base.get_output_embeddings
        self._found_head = find_head()
        self._finish: Callable[[Tensor], Tensor] | None = _finish(self._base.config)
        self._untouched = not any(_changes(self._base.config))
        self._compared = False
        unknown = next((needed.explain() for needed in _NEEDED if not needed.holds), None)
        never = None if unknown else self._why_never()
        self.reason = never or unknown or self._why_not(model)
        self.lost = never is None and self.reason is not None

    @property
    def _head(self) -> nn.Module:
        assert self._found_head is not None
        return self._found_head

    def _why_never(self) -> str | None:
        """What is in the nature of the model."""
        name = type(self._base).__name__
        if self._found_head is None:
            return f"{name} has no output head of tokens"
        if not names_loss(type(self._base)) or self._base.loss_function is not causal_loss():
            return f"the loss of {name} is not transformers' loss of causal language models"
        if getattr(self._base.config, "z_loss_coefficient", 0):
            return f"the loss of {name} is one of all logits (z_loss_coefficient)"
        return None

    def _why_not(self, model: nn.Module) -> str | None:
        if any_is_compiled(model.modules()):
            return "the model is compiled"
        name = type(self._base).__name__
        return f"{name} or its head has hooks that see all logits" if self._watched() else None

    def _watched(self) -> bool:
        """Whether hooks of others see the logits, or gather a head that is sharded."""
        return any_is_hooked([self._head]) or others_see_outputs([self._base])

    @property
    def possible(self) -> bool:
        """Whether the next pass can compute its loss so: nobody else may want to see the logits."""
        return self.reason is None and not self._watched()

    @contextmanager
    def only_labelled(self, shifted: bool = False) -> Iterator[None]:
        """Compute the loss so in the forward passes of this thread inside the block, if possible.

        Their outputs have no logits to use.

        Args:
            shifted: Whether the label of a token is what it predicts, and not the token itself.

        Raises:
            UnknownLogitsError: In the first pass, if what the model does to its logits is unknown.
        """
        if not self.possible:
            yield
            return
        one = _Pass(self, shifted)
        handles = [
            self._base.register_forward_pre_hook(one.begin, with_kwargs=True),
            self._head.register_forward_pre_hook(one.take),
        ]
        try:
            with replaced_loss(self._base, one.loss):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _let_through(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The hidden states that the model itself turns into logits."""
        if self._finish is None:
            where = targets.flatten() != -100
            return hidden.flatten(0, 1)[where.to(hidden.device)][None]
        # Others than nn.Linear may not know what to do with no token.
        none = self._compared and type(self._head) is nn.Linear
        return hidden[:, :0] if none else hidden[:, -1:]

    def _loss(self, hidden: Tensor, logits: Tensor, targets: Tensor, items: _Items) -> Tensor:
        """The loss of hidden states (B, T, D), for the targets (B, T) of all tokens."""
        targets = targets.flatten()
        where = (targets != -100).nonzero().flatten()
        targets = targets[where].to(logits.device)
        if self._finish is None:
            scores = logits.flatten(0, 1).float()
            total = nn.functional.cross_entropy(scores, targets, reduction="sum")
        else:
            self._compare(hidden, logits)
            trained = [p for p in self._head.parameters() if p.requires_grad]
            chosen = hidden.flatten(0, 1).index_select(0, where.to(hidden.device))
            trains = torch.is_grad_enabled() and (chosen.requires_grad or bool(trained))
            rows = max(1, CHUNK_BYTES // (4 * logits.shape[-1]))
            if not (trains and trained) and self._is_plain(chosen):
                tile = CPU_TILE if chosen.device.type == "cpu" else (rows, logits.shape[-1])
                total = plain_chunked_loss(self._head.weight, trains, targets, *tile, chosen)
            else:
                total = chunked_loss(self._score, trains, targets, rows, chosen, *trained)
        items = targets.numel() if items is None else items
        return total / (items.to(total.device) if isinstance(items, Tensor) else items)

    def _is_plain(self, hidden: Tensor) -> bool:
        """Whether logits are one matmul in float32, and nothing else."""
        head = self._head
        if type(head) is not nn.Linear or "forward" in vars(head) or not self._untouched:
            return False
        # A quantized weight may be of another class, and say that it is float32.
        here = head.bias is None and head.weight.device == hidden.device
        here = here and type(head.weight) is nn.Parameter
        exact = hidden.dtype == torch.float32 == head.weight.dtype
        return here and exact and not torch.is_autocast_enabled(hidden.device.type)

    def _score(self, hidden: Tensor) -> Tensor:
        assert self._finish is not None
        return self._finish(self._head(hidden)).float()

    @torch.no_grad()
    def _compare(self, hidden: Tensor, logits: Tensor) -> None:
        """Raise UnknownLogitsError if the model's logits of its last tokens are not ours."""
        if self._compared:
            return
        assert self._finish is not None
        if not torch.equal(logits, self._finish(self._head(hidden[:, -1:]))):
            self._finish = None
            raise UnknownLogitsError
        self._compared = True


class _Pass:
    """The forward passes of one thread: what goes into the head, and what comes of it."""

    def __init__(self, of: LabelledLoss, shifted: bool) -> None:
        self._of, self._shifted = of, shifted
        self._thread = threading.get_ident()
        self._targets: Tensor | None = None
        self._hidden: Tensor | None = None

    def begin(self, module: nn.Module, args: tuple[object, ...], kwargs: Inputs) -> None:
        if threading.get_ident() == self._thread:
            labels, self._targets, self._hidden = kwargs.get("labels"), None, None
            if labels is not None and not kwargs.keys() & {"shift_labels", "ignore_index"}:
                self._targets = labels if self._shifted else shift_labels(labels)

    def take(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        targets, hidden = self._targets, args[0]
        if threading.get_ident() != self._thread or targets is None or self._hidden is not None:
            return None
        if hidden.shape[:-1] != targets.shape:
            return None
        self._hidden = hidden
        return (self._of._let_through(hidden, targets), *args[1:])

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: _Items = None,
        **kwargs: object,
    ) -> Tensor:
        """In the place of transformers' `ForCausalLMLoss`."""
        hidden = self._hidden if threading.get_ident() == self._thread else None
        if hidden is None:
            if self._shifted:
                kwargs["shift_labels"] = labels
            compute: Callable[..., Tensor] = causal_loss()
            return compute(logits, labels, vocab_size, num_items_in_batch, **kwargs)
        targets, self._targets = self._targets, None
        assert targets is not None
        return self._of._loss(hidden, logits, targets, num_items_in_batch)


def _finish(config: PreTrainedConfig) -> Callable[[Tensor], Tensor]:
    """What the model does to its logits, by its config: nothing, a scale, a cap."""
    factor, divisor, cap = _changes(config)

    def finish(logits: Tensor) -> Tensor:
        logits = logits if factor is None else logits * factor  # Cohere
        logits = logits if divisor is None else logits / divisor  # Granite
        return logits if cap is None else torch.tanh(logits / cap) * cap  # Gemma

    return finish


def _changes(config: PreTrainedConfig) -> list[float | None]:
    """The factor, the divisor and the cap of the logits of a model, by its config."""
    names: Sequence[str] = ("logit_scale", "logits_scaling", "final_logit_softcapping")
    return [getattr(config.get_text_config(), name, None) for name in names]
