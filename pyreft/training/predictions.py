"""What a model writes when it is evaluated: prompts of a batch -> generated tokens."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, Seq2SeqTrainer, Trainer

from pyreft.placement.boundary import find_tokens


class GeneratedPredictionsMixin(Trainer):
    """Stands before a Trainer class: `compute_metrics` gets what the model writes.

    It does with `Seq2SeqTrainingArguments(predict_with_generate=True)`, as in transformers'
    Seq2SeqTrainer, but for causal language models as well: their prompts are cut out of the batch.
    Predictions are the generated tokens, filled up with the pad token inside a batch and with -100
    beyond; labels are those of the batch. `generation_max_length` counts generated tokens;
    `generation_num_beams` and `generation_config` are read as well, and arguments of `evaluate`
    and `predict` win.
    """

    model: Any
    _generation_arguments: dict[str, Any] | None = None

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **generation_arguments: Any,
    ) -> dict[str, float]:
        """Evaluate as the Trainer does; further arguments are for `generate`."""
        outer = self._generation_arguments
        # Several data sets are evaluated by calls of this method, without the arguments.
        self._generation_arguments = generation_arguments or outer
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._generation_arguments = outer

    def predict(
        self,
        test_dataset: Any,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **generation_arguments: Any,
    ) -> Any:
        """Predict as the Trainer does; further arguments are for `generate`."""
        self._generation_arguments = generation_arguments
        try:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._generation_arguments = None

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """The Trainer's, or with `predict_with_generate` the loss and what the model writes."""
        if prediction_loss_only or not getattr(self.args, "predict_with_generate", False):
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        reft_model: Any = self.model
        if not reft_model.can_generate():
            raise ValueError(
                f"{reft_model._get_name()} does not generate: leave out predict_with_generate."
            )
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        loss = super().prediction_step(model, inputs, True)[0] if labels is not None else None
        # Accelerate casts in `forward` of the ReftModel, which generation does not go through.
        with torch.no_grad(), self.accelerator.autocast():
            written = _generate(reft_model, inputs, self._arguments())
        return loss, written, labels

    def _arguments(self) -> dict[str, Any]:
        args: Any = self.args
        given = dict(self._generation_arguments or {})
        limited = {"max_length", "max_new_tokens"} & given.keys()
        if args.generation_max_length is not None and not limited:
            given["max_new_tokens"] = args.generation_max_length
        if args.generation_num_beams is not None:
            given.setdefault("num_beams", args.generation_num_beams)
        if args.generation_config is not None:
            given.setdefault("generation_config", self._generation_config)
        return given

    @cached_property
    def _generation_config(self) -> GenerationConfig:
        """The one that the arguments name: read once, not for every batch."""
        args: Any = self.args
        return Seq2SeqTrainer.load_generation_config(args.generation_config)


def take_prompts(inputs: Mapping[str, Any], pad_token_id: int) -> dict[str, Tensor]:
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


def _generate(model: Any, inputs: Mapping[str, Any], arguments: dict[str, Any]) -> Tensor:
    """The tokens that the model writes, (B, at most so many as asked for)."""
    for name in ("intervention_locations", "leading_pad", "subspaces"):
        if inputs.get(name) is not None:
            arguments[name] = inputs[name]
    # Scores and hidden states of each step have no place among predictions.
    arguments["return_dict_in_generate"] = False
    if model.config.is_encoder_decoder:
        prompts = {n: inputs[n] for n in ("input_ids", "attention_mask") if n in inputs}
        return model.generate(**prompts, **arguments)
    config = model.generation_config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = config.pad_token_id if config.pad_token_id is not None else ends[0]
    prompts = take_prompts(inputs, 0 if pad is None else pad)
    written = model.generate(**prompts, **arguments)
    return written[:, prompts["input_ids"].shape[1] :]
