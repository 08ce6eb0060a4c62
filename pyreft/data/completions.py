"""Upstream's data sets of prompts and completions."""

from __future__ import annotations

import torch
from datasets import Dataset as Rows
from transformers.utils import logging

from pyreft.annotations import Arguments, Example
from pyreft.data.dataset import ReftDataset
from pyreft.data.tokenize import IGNORE, tokenize_fitting, tokenize_prompt, with_labels

logger = logging.get_logger(__name__)

# The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca), as upstream writes them.
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."
_WITHOUT_INPUT = f"{_TASK}. {_REQUEST}\n\n### Instruction:\n%s\n\n### Response:\n"
_WITH_INPUT = (
    f"{_TASK}, paired with an input that provides further context. {_REQUEST}\n\n"
    "### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n"
)


class _CompletionDataset(ReftDataset):
    """A data set with a prompt and a completion in each row."""

    def _example(self, prompt: str, completion: str, add_eos: bool = True) -> tuple[Example, int]:
        ids, prompt_length = self._pair(prompt, completion, add_eos)
        example = with_labels(ids, prompt_length)
        return {name: torch.tensor(values) for name, values in example.items()}, prompt_length

    def _pair(self, prompt: str, completion: str, add_eos: bool = True) -> tuple[list[int], int]:
        """Ids of both, and the number of prompt tokens; the end of the completion is cut to fit."""
        ids, prompt_length, cut = tokenize_fitting(
            self.tokenizer, prompt, completion, self._limit, add_eos
        )
        self._cut.append(cut)
        return ids, prompt_length

    def _prompt(self, prompt: str) -> tuple[Example, int]:
        """A prompt alone, to generate from."""
        ids, _ = tokenize_prompt(self.tokenizer, prompt)
        return {"input_ids": torch.tensor(ids)}, len(ids)


class ReftGenerationDataset(_CompletionDataset):
    """A prompt and its completion; positions are in the prompt.

    Args:
        prompt_field, completion_field: The columns to read.
        Others: As for `ReftDataset`.

    Returns:
        Examples with input_ids, attention_mask, labels (-100 on the prompt), id, and, with a
        position, intervention_locations.

    Raises:
        ValueError: As for `ReftDataset`.
        TypeError: As for `ReftDataset`.
    """

    prompt_field: str
    completion_field: str

    def preprocess(self, kwargs: Arguments) -> None:
        self._take(kwargs, "prompt_field", "completion_field")

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        return self._example(data_item[self.prompt_field], data_item[self.completion_field])


class ReftRawDataset(_CompletionDataset):
    """The columns "instruction" and "output" as they are, without a template.

    `data_path` may be the name of a data set on the Hub. A split other than "train" has prompts
    alone, to generate from.

    Args: see `ReftDataset`.

    Returns:
        As `ReftGenerationDataset`; no labels in a split other than "train".

    Raises:
        ValueError: As for `ReftDataset`.
        TypeError: As for `ReftDataset`.
    """

    def preprocess(self, kwargs: Arguments) -> None:
        self._take(kwargs)
        self._columns += ["instruction"] + ["output"] * (self.data_split == "train")
        if self.data_path is not None and self.dataset is None:
            self.task, self.data_path = str(self.data_path), None

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        if self.data_split != "train":
            return self._prompt(data_item["instruction"])
        return self._example(data_item["instruction"], data_item["output"])


class _AlpacaDataset(_CompletionDataset):
    """A data set with Alpaca's prompts, which contain an instruction and perhaps an input."""

    instruction_field: str
    input_field: str | None

    def _alpaca(self, row: Example) -> str:
        instruction = row[self.instruction_field]
        if not isinstance(instruction, str) or not instruction:
            raise ValueError(f"the instruction must be text, got {instruction!r}")
        given = None if self.input_field is None else row.get(self.input_field)
        if self.input_field is not None and self.input_field not in row:
            logger.warning_once(
                f"the data set has no column {self.input_field!r}: prompts are made without input."
            )
        return _WITH_INPUT % (instruction, given) if given else _WITHOUT_INPUT % instruction


class ReftSupervisedDataset(_AlpacaDataset):
    """An instruction, perhaps an input, and an output, in Alpaca's prompt.

    Args:
        instruction_field, output_field: The columns to read.
        input_field: Column of the input; if it is empty or missing, the prompt is the one without
            an input.
        no_stop: Leave out the end-of-sequence token.
        Others: As for `ReftDataset`.

    Returns:
        As `ReftGenerationDataset`.

    Raises:
        ValueError: As for `ReftDataset`.
        TypeError: As for `ReftDataset`.
    """

    output_field: str
    no_stop: bool

    def preprocess(self, kwargs: Arguments) -> None:
        self._take(kwargs, "instruction_field", "output_field", input_field=None, no_stop=False)

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        prompt = self._alpaca(data_item)
        return self._example(prompt, data_item[self.output_field], add_eos=not self.no_stop)


class ReftPreferenceDataset(_AlpacaDataset):
    """Upstream's pairs: the input is the rejected output, the labels are the chosen output.

    The label of token t of the answer is token t of the chosen output; its input is the prompt and
    t tokens of the rejected output. This is not a preference loss, and in `generate` the model
    reads its own tokens, not a rejected output. The class exists for scripts that rely on it. To
    train on preferences pass `pairs()` to TRL's DPOTrainer, or train a reward model with
    `ReftRewardDataset`.

    A chosen output that is longer than the rejected one has tokens without an input. They have no
    labels, and a warning counts them; upstream trains on them at padding.

    Args:
        instruction_field, chosen_output_field, rejected_output_field: The columns to read.
        input_field: As for `ReftSupervisedDataset`.
        Others: As for `ReftDataset`.

    Returns:
        Examples with input_ids (prompt and rejected output), labels (chosen output, -100 on the
        prompt and after its end) and the rest as of `ReftGenerationDataset`; no labels, and
        prompts alone, in a split other than "train".

    Raises:
        ValueError: As for `ReftDataset`.
        TypeError: As for `ReftDataset`.
    """

    chosen_output_field: str
    rejected_output_field: str

    def preprocess(self, kwargs: Arguments) -> None:
        outputs = ("chosen_output_field", "rejected_output_field")
        self._without_input: list[int] = []
        self._take(kwargs, "instruction_field", *outputs, input_field=None)

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        prompt = self._alpaca(data_item)
        if self.data_split != "train":
            return self._prompt(prompt)
        ids, prompt_length = self._pair(prompt, data_item[self.rejected_output_field])
        chosen, _ = self._pair(prompt, data_item[self.chosen_output_field])
        labels = [IGNORE] * prompt_length + chosen[prompt_length : len(ids)]
        labels += [IGNORE] * (len(ids) - len(labels))
        self._without_input.append(max(0, len(chosen) - len(ids)))
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}, prompt_length

    def _tokenize_all(self, kwargs: Arguments) -> None:
        super()._tokenize_all(kwargs)
        if longer := [count for count in self._without_input if count]:
            logger.warning(
                f"{len(longer)} of {len(self)} chosen outputs are longer than the rejected ones: "
                f"their last tokens, {sum(longer)} in all, have no labels."
            )

    def pairs(self) -> Rows:
        """The rows with the columns prompt, chosen and rejected, as TRL's trainers read them."""
        columns: dict[str, list[str]] = {
            "prompt": [self._alpaca(row) for row in self.task_dataset],
            "chosen": [row[self.chosen_output_field] for row in self.task_dataset],
            "rejected": [row[self.rejected_output_field] for row in self.task_dataset],
        }
        return Rows.from_dict(columns)
