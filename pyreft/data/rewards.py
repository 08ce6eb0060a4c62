"""Upstream's data set of a better and a worse answer, and its collator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DataCollatorWithPadding
from transformers.utils import logging

from pyreft.annotations import Arguments, Example, Inputs
from pyreft.data.collator import ReftDataCollator
from pyreft.data.dataset import ReftDataset
from pyreft.data.leading_pad import plain
from pyreft.data.locations import locate
from pyreft.data.tokenize import apply_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)

_SIDES = ("chosen", "rejected")
# The columns of each answer in an example.
_OF_ANSWER = ("output", "output_mask", "reward", "intervention_locations")
PAIR_COLUMNS = [f"{side}_{name}" for side in _SIDES for name in _OF_ANSWER]


class ReftRewardDataset(ReftDataset):
    """Pairs of a chosen and a rejected answer, each a whole text.

    Answers are conversations (lists of messages), or text that follows the prompt. Text becomes a
    conversation of user and assistant in the tokenizer's chat template, or, if it has none, prompt
    and answer are concatenated.

    Positions of each text are its own, and all of it is the prompt: "l1" is its last token, as in
    a call of the trained model. (Upstream's positions are in the common beginning of both texts,
    which cannot be found in a single text.) A text that is too long is cut at its end.

    Args:
        conv_A_field, conv_B_field: Columns of the two answers; A is the chosen one.
        prompt_field: Column of the prompt, if the answers are text.
        conv_A_reward_field, conv_B_reward_field: Columns of their rewards, numbers: the answer
            with the higher one is the chosen one. They are used only to order the pairs.
        Others: As for `ReftDataset`.

    Returns:
        Examples with chosen_output and rejected_output (token ids), chosen_output_mask and
        rejected_output_mask, id; chosen_reward and rejected_reward if the data has them; with a
        position, chosen_intervention_locations and rejected_intervention_locations.
        `ReftRewardCollator` collates them to batches.

    Raises:
        ValueError: As `ReftDataset`; or if two rewards are equal, or after cutting two texts.
    """

    conv_A_field: str
    conv_B_field: str
    prompt_field: str | None
    conv_A_reward_field: str | None
    conv_B_reward_field: str | None
    _cut_part = "texts"

    def preprocess(self, kwargs: Arguments) -> None:
        rewards = ("conv_A_reward_field", "conv_B_reward_field")
        optional = ("prompt_field", *rewards)
        self._take(kwargs, "conv_A_field", "conv_B_field", optional_columns=optional)
        if (self.conv_A_reward_field is None) != (self.conv_B_reward_field is None):
            raise TypeError("give both conv_A_reward_field and conv_B_reward_field, or neither.")

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        texts = [self._whole(data_item, data_item[self.conv_A_field])]
        texts += [self._whole(data_item, data_item[self.conv_B_field])]
        if texts[0] == texts[1]:
            raise ValueError(
                "both answers are the same, or differ only in what was cut, so neither is better"
            )
        example: Example = {}
        if self.conv_A_reward_field is not None and self.conv_B_reward_field is not None:
            rewards = [data_item[self.conv_A_reward_field], data_item[self.conv_B_reward_field]]
            if any(not isinstance(one, (int, float)) for one in rewards):
                raise ValueError(f"rewards are numbers, got {rewards}")
            if rewards[0] == rewards[1]:
                raise ValueError(
                    f"both answers have the reward {rewards[0]}, so neither is better: drop such "
                    "rows with dataset.filter"
                )
            if rewards[0] < rewards[1]:
                texts.reverse()
                rewards.reverse()
            example |= {"chosen_reward": float(rewards[0]), "rejected_reward": float(rewards[1])}
        for side, ids in zip(_SIDES, texts, strict=True):
            example[f"{side}_output"] = torch.tensor(ids)
            example[f"{side}_output_mask"] = torch.ones(len(ids), dtype=torch.long)
        return example, len(texts[0])

    def compute_intervention_and_subspaces(
        self,
        id: int,
        data_item: Example,
        result: Example,
        last_position: int,
        **_: object,
    ) -> Example:
        for side in _SIDES:
            ids = result[f"{side}_output"]
            locations = self.get_intervention_locations(last_position=len(ids), input_ids=ids)
            if locations is not None:
                result[f"{side}_intervention_locations"] = locations
        return {"id": id, **result, **self._subspaces(data_item)}

    def _whole(self, row: Example, answer: object) -> list[int]:
        """Token ids of prompt and answer."""
        prompt = None if self.prompt_field is None else row[self.prompt_field]
        for name, text in (("prompt", prompt), ("answer", answer)):
            if self.prompt_field is not None and (not isinstance(text, str) or not text):
                raise ValueError(f"the {name} must be text and not empty, got {text!r}")
        if self.tokenizer.chat_template is None:
            if not isinstance(answer, str):
                raise ValueError("the tokenizer has no chat_template, so answers must be text")
            return self._tokenize_text((prompt or "") + answer)["input_ids"]
        if isinstance(answer, str) and prompt is not None:
            answer = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
        if not isinstance(answer, list) or not answer:
            raise ValueError(
                f"an answer is a list of messages, got {answer!r}; if it is text, name the column "
                "of its prompt with prompt_field"
            )
        text = apply_template(self.tokenizer, answer)
        # The template adds the special tokens.
        ids = self._tokenize_text(text, add_special_tokens=False)["input_ids"]
        if ids[-1] == self.tokenizer.pad_token_id:
            logger.warning_once(
                "texts end in the pad token. A classifier on a decoder takes that for padding, and "
                "reads its score one token earlier, so an edit of the last token has no effect: "
                "set another pad token in the tokenizer and the model's config."
            )
        return ids

    def _has_positions_of_specs(self, example: Example) -> bool:
        for side in _SIDES if self._specs else ():
            ids = example[f"{side}_output"]
            found = plain(example.get(f"{side}_intervention_locations"))
            if found != locate(self._specs, ids, len(ids)):
                return False
        return True


@dataclass
class ReftRewardCollator:
    """Collate B pairs to a batch of 2B rows: chosen, rejected, chosen, rejected, ...

    Args:
        tokenizer: Its padding side is used.
        padding, max_length, pad_to_multiple_of, return_tensors: As for the tokenizer's `pad`.

    Returns:
        input_ids and attention_mask (2B, T); reward (2B,), 1 and 0 if the data has none;
        labels (B,), the difference of the two rewards; intervention_locations
        (2B, I, P), subspaces (2B, I, S) and id (2B,), if the examples have any.

    Raises:
        ValueError: If the examples differ in their columns, or are not of a `ReftRewardDataset`.
    """

    tokenizer: PreTrainedTokenizerBase
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        pad = DataCollatorWithPadding(
            self.tokenizer,
            self.padding,
            self.max_length,
            self.pad_to_multiple_of,
            self.return_tensors,
        )
        self._collate = ReftDataCollator(pad, tokenizer=self.tokenizer)

    def __call__(self, features: Sequence[Example]) -> Inputs:
        rows = [_row(pair, side) for pair in features for side in _SIDES]
        batch = self._collate(rows)
        rewards = batch["reward"].view(-1, 2)
        return {**batch, "labels": rewards[:, 0] - rewards[:, 1]}


def _row(pair: Example, side: str) -> Example:
    if f"{side}_output" not in pair:
        raise ValueError(
            f"an example has no {side}_output, but {', '.join(pair) or 'no column'}: "
            "ReftRewardCollator takes the examples of a ReftRewardDataset. A trainer other than "
            "ReftTrainerForRewardModeling keeps them with remove_unused_columns=False."
        )
    row = {
        "input_ids": pair[f"{side}_output"],
        "attention_mask": pair[f"{side}_output_mask"],
        "reward": pair.get(f"{side}_reward", float(side == "chosen")),
    }
    if f"{side}_intervention_locations" in pair:
        row["intervention_locations"] = pair[f"{side}_intervention_locations"]
    return row | {name: pair[name] for name in ("subspaces", "id") if name in pair}
