"""The text of an answer, each time that it has grown."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

# What a decoder puts in place of bytes that are no whole character.
_BROKEN = "\ufffd"


class Text(BaseStreamer):
    """Calls a function with the whole text of an answer, each time that it has grown.

    Args:
        tokenizer: Of the model.
        show: What is called.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        self.text = ""
        self._tokenizer, self._show = tokenizer, show
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt, (1, T), and then each token, (1,)."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        # The next token may end a character that this one begins.
        self._take(self._decode().rstrip(_BROKEN))

    def end(self) -> None:
        """Take what is left: nothing comes after it."""
        self._take(self._decode())

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids or [], skip_special_tokens=True))

    def _take(self, text: str) -> None:
        if text != self.text:
            self.text = text
            self._show(text)


class Stop(StoppingCriteria):
    """Ends a generation once an event is set."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """Whether each of the B rows ends: (B,) bool."""
        ended = self._event.is_set()
        return torch.full((len(input_ids),), ended, dtype=torch.bool, device=input_ids.device)
