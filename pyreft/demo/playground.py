"""What is asked of the model: two answers and the edited tokens. No web code is here."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Event, Thread

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pyreft.compat.formats import FILE_PATTERNS, read_any
from pyreft.data.prompts import encode_prompt
from pyreft.demo.asking import Answers, Request
from pyreft.demo.choice import Choice, edited
from pyreft.demo.turn import Turn
from pyreft.sharing import Adapter, AdapterError, HubSource, find_adapter

# Errors that users can fix. Any other is a defect of pyreft.
FIXABLE = (ValueError, TypeError, OSError, ArithmeticError)
# Answers of the base model that are kept.
_KEPT = 64


class Playground:
    """A base model that answers with any adapter, for several users.

    No adapter stays on the base model between two requests, so that none sees what another
    chose.

    Args:
        base: A causal language model.
        tokenizer: Its tokenizer.
        max_prompt: The most tokens of a prompt.

    Attributes:
        turn: Held by what runs the model.
        bare_answers: Answers of the base model, by prompt and number of tokens: most requests
            change the adapter alone.
    """

    def __init__(
        self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_prompt: int = 2048
    ) -> None:
        self.base, self.tokenizer, self.max_prompt = base.eval(), tokenizer, max_prompt
        self.base.requires_grad_(False)
        self.turn = Turn()
        self.bare_answers: dict[tuple[str, int], str] = {}

    @classmethod
    def load(cls, name: str, token: str | None = None, max_prompt: int = 2048) -> Playground:
        """Load a base model and its tokenizer, on the GPU if there is one.

        Args:
            name: A directory, or a repository on the Hub.
            token: Of the Hub.
            max_prompt: The most tokens of a prompt.

        Raises:
            ValueError: If it is no causal language model.
        """
        if AutoConfig.from_pretrained(name, token=token).is_encoder_decoder:
            raise ValueError(
                f"{name} has an encoder and a decoder: pyreft demo shows causal language models."
            )
        gpu = torch.cuda.is_available()
        base: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            name,
            token=token,
            dtype="auto" if gpu else torch.float32,
            device_map="cuda" if gpu else "cpu",
        )
        tokenizer = AutoTokenizer.from_pretrained(name, token=token)
        return cls(base, tokenizer, max_prompt)

    @property
    def name(self) -> str:
        """The name of the base model; of a directory the last part alone."""
        return os.path.basename(str(self.base.config.name_or_path).rstrip("/")) or "base model"

    def find(self, adapter: str, token: str | None = None) -> Adapter:
        """Read an adapter by the name of its directory or repository, see `read`."""
        return self.read(find_adapter(adapter, HubSource(token=token), FILE_PATTERNS))

    def read(self, directory: str | os.PathLike[str]) -> Adapter:
        """Read an adapter, and check that it fits the base model. Nothing in it is run.

        Raises:
            AdapterError: If it is damaged, hostile or for another model, or cannot be used here.
        """
        adapter = read_any(directory)
        if adapter.lora is not None:
            raise AdapterError(
                f"{adapter.origin} has PEFT's LoRA, which needs a base model of its own: use "
                "pyreft chat."
            )
        if any(entry.positions is None for entry in adapter.config.representations):
            raise AdapterError(
                f"{adapter.origin} does not say which positions it edits: write it again with "
                "pyreft convert --to pyreft --positions SPEC."
            )
        with self.turn, edited(self.base, Choice(adapter)):
            return adapter

    def ask(self, prompt: str, choice: Choice | None, new_tokens: int) -> Iterator[Answers]:
        """Answer a prompt without and with an adapter, and mark the tokens that it edits.

        Requests wait for each other. A request ends if the iterator is closed.

        Args:
            prompt: Of the user.
            choice: What edits; None asks the base model alone.
            new_tokens: The most tokens of an answer.

        Returns:
            What is known so far, each time that there is more.

        Raises:
            ValueError: If the prompt is empty or too long, or the strength is no finite number.
        """
        found: SimpleQueue[Answers | BaseException | None] = SimpleQueue()
        stop = Event()
        request = Request(self, prompt, choice, new_tokens, found.put, stop)
        Thread(target=request.run, daemon=True).start()
        try:
            while (step := found.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            stop.set()

    def encode(self, prompt: str, new_tokens: int) -> BatchEncoding:
        """A prompt as the user's turn, (1, T).

        Raises:
            ValueError: If it is empty or too long.
        """
        if not prompt.strip():
            raise ValueError("the prompt is empty: type one.")
        inputs = encode_prompt(self.tokenizer, [{"role": "user", "content": prompt}])
        count = inputs["input_ids"].shape[1]
        context = getattr(self.base.config.get_text_config(), "max_position_embeddings", None)
        most = min(self.max_prompt, (context or math.inf) - new_tokens)
        if count > most:
            raise ValueError(
                f"the prompt has {count:,} tokens, and at most {most:,} are answered here: make it "
                "shorter, or start pyreft demo with a larger --max-prompt, as far as the model "
                "goes."
            )
        return inputs.to(self.base.device)

    def keep_bare(self, key: tuple[str, int], answer: str) -> None:
        """Keep an answer of the base model; the oldest one is dropped."""
        self.bare_answers[key] = answer
        if len(self.bare_answers) > _KEPT:
            del self.bare_answers[next(iter(self.bare_answers))]
