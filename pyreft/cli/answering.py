"""Answers of an adapter and of its base model to prompts and chats."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TextStreamer

from pyreft.annotations import Arguments
from pyreft.cli.loading import load_model
from pyreft.compat.formats import FILE_PATTERNS
from pyreft.compat.model import ReftModel
from pyreft.data.prompts import Messages, encode_prompt
from pyreft.sharing import HubSource, find_adapter


@dataclass(frozen=True)
class Answers:
    """A model with an adapter, and how it answers.

    Args:
        model: The model.
        tokenizer: Of its base model.
        settings: Arguments of `generate`.
        raw: Whether a prompt is given as it is, without the chat template.
    """

    model: ReftModel
    tokenizer: PreTrainedTokenizerBase
    settings: Arguments
    raw: bool

    @classmethod
    def load(
        cls,
        adapter: str,
        base: str | None,
        revision: str | None,
        token: str | None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        raw: bool = False,
    ) -> Answers:
        """Load an adapter and its base model by name.

        Raises:
            AdapterError: If the adapter cannot be read, or does not fit.
            ValueError: If the model does not generate text, or the temperature is negative.
        """
        if temperature < 0:
            raise ValueError(f"the temperature is 0 or more, got {temperature}.")
        found = find_adapter(adapter, HubSource(revision=revision, token=token), FILE_PATTERNS)
        model = load_model(found, base, token).eval()
        if not model.can_generate() or model.config.is_encoder_decoder:
            raise ValueError(
                f"{type(model.model).__name__} is no causal language model: it has no answers."
            )
        name = base or model.config.name_or_path
        samples = {"do_sample": True, "temperature": temperature} if temperature else {}
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **samples}
        return cls(model, AutoTokenizer.from_pretrained(name, token=token), settings, raw)

    def require_chat(self) -> None:
        """Check that the tokenizer has a chat template.

        Raises:
            ValueError: If it has none.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the base model has no chat template: give it prompts with pyreft generate."
            )

    def answer(self, messages: Messages, edited: bool = True, show: bool = False) -> str:
        """The answer to a conversation, or to its last message.

        Args:
            messages: The conversation; without a chat template its last message is the prompt.
            edited: Whether the adapter is active.
            show: Whether the answer is printed while it is generated.
        """
        prompt = encode_prompt(self.tokenizer, messages, self.raw).to(self.model.device)
        settings = self.settings
        if show:
            shown = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            settings = {**settings, "streamer": shown}
        with torch.no_grad(), nullcontext() if edited else self.model.disable_adapter():
            ids = self.model.generate(**prompt, **settings)
        text = self.tokenizer.decode(
            ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert isinstance(text, str)
        return text
