"""What a model generates when it is evaluated: prompts of a batch -> generated tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)

from pyreft.adapters import EditedModel
from pyreft.annotations import Arguments, Inputs
from pyreft.placement.boundary import find_tokens


def generates(args: TrainingArguments) -> TypeGuard[Seq2SeqTrainingArguments]:
    """Whether an evaluation generates, `Seq2SeqTrainingArguments(predict_with_generate=True)`."""
    return bool(getattr(args, "predict_with_generate", False))


class GeneratedPredictions:
    """Generates the predictions of an evaluation.

    As in transformers' Seq2SeqTrainer, but for causal language models as well: their prompts are
    cut out of the batch. Predictions are the generated tokens, filled up with the pad token inside
    a batch and with -100 beyond. `generation_max_length` counts generated tokens;
    `generation_num_beams` and `generation_config` are read as well, and arguments of `evaluate`
    and `predict` win.
    """

    def __init__(self) -> None:
        self._arguments: Inputs = {}
        self._config: GenerationConfig | None = None

    @contextmanager
    def with_arguments(self, arguments: Inputs) -> Iterator[None]:
        """Pass these to `generate` inside the block; if there are none, those of an outer one.

        Several data sets are evaluated by calls inside a call, without its arguments.
        """
        outer = self._arguments
        self._arguments = arguments or outer
        try:
            yield
        finally:
            self._arguments = outer

    @torch.no_grad()
    def generate(
        self, model: EditedModel, inputs: Arguments, args: Seq2SeqTrainingArguments
    ) -> Tensor:
        """The tokens that the model generates after the prompts of a batch, (B, at most so many).

        Args:
            model: One that generates.
            inputs: The batch, on the device of the model.
            args: The arguments of the run.
        """
        arguments = self._all_arguments(args)
        for name in ("intervention_locations", "leading_pad", "subspaces"):
            if inputs.get(name) is not None:
                arguments[name] = inputs[name]
        # Scores and hidden states of each step are no predictions.
        arguments["return_dict_in_generate"] = False
        written: Tensor
        if model.config.is_encoder_decoder:
            arguments |= {n: inputs[n] for n in ("input_ids", "attention_mask") if n in inputs}
            written = model.generate(**arguments)
            return written
        prompts = take_prompts(inputs, _pad_token(model.generation_config))
        written = model.generate(**arguments | prompts)
        return written[:, prompts["input_ids"].shape[1] :]

    def _all_arguments(self, args: Seq2SeqTrainingArguments) -> Inputs:
        given = dict(self._arguments)
        limited = {"max_length", "max_new_tokens"} & given.keys()
        if args.generation_max_length is not None and not limited:
            given["max_new_tokens"] = args.generation_max_length
        if args.generation_num_beams is not None:
            given.setdefault("num_beams", args.generation_num_beams)
        if args.generation_config is not None:
            if self._config is None:
                # Read once, not for every batch.
                source = args.generation_config
                named = os.fspath(source) if isinstance(source, Path) else source
                self._config = Seq2SeqTrainer.load_generation_config(named)
            given.setdefault("generation_config", self._config)
        return given


def require_generation(model: EditedModel) -> None:
    """Raise ValueError for a model that does not generate."""
    if not model.can_generate():
        raise ValueError(f"{model._get_name()} does not generate: leave out predict_with_generate.")


def take_prompts(inputs: Arguments, pad_token_id: int) -> dict[str, Tensor]:
    """The prompts of a batch of prompts and completions, padded at the left.

    Args:
        inputs: input_ids, attention_mask and labels or completion_mask, each (B, T).
        pad_token_id: What to pad with.

    Returns:
        input_ids and attention_mask, each (B, length of the longest prompt).
    """
    ids = inputs["input_ids"]
    prompt = find_tokens(
        (ids.shape[0], ids.shape[1]),
        ids.device,
        input_ids=ids,
        attention_mask=inputs.get("attention_mask"),
        labels=inputs.get("labels"),
        completion_mask=inputs.get("completion_mask"),
    ).prompt
    longest = int(prompt.sum(1).max())
    # Prompts last, in their order: false sorts before true.
    order = prompt.int().argsort(dim=1, stable=True)[:, -longest:]
    mask = prompt.gather(1, order)
    return {
        "input_ids": ids.gather(1, order).masked_fill(~mask, pad_token_id),
        "attention_mask": mask.long(),
    }


def _pad_token(config: GenerationConfig) -> int:
    """What prompts are padded with: the pad token, or else the first that ends a text."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = config.pad_token_id if config.pad_token_id is not None else ends[0]
    return 0 if pad is None else int(pad)
