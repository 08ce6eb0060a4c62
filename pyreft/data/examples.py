"""A data set of prompts and completions, or of chats -> training examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset
from transformers.utils import logging

from pyreft.annotations import Arguments, Columns, Example
from pyreft.data.tokenize import (
    apply_template,
    describe_cut,
    fit,
    room,
    tokenize_apart,
    tokenize_pair,
    with_labels,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.get_logger(__name__)


def make_examples(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompt_column: str = "prompt",
    completion_column: str = "completion",
    messages_column: str = "messages",
    max_length: int | None = None,
    add_eos: bool = True,
    keep_columns: list[str] | None = None,
    num_proc: int | None = None,
    encoder_decoder: bool = False,
) -> Dataset | IterableDataset:
    """Convert a `datasets` data set to examples that train a `ReftModel`.

    Reads either a prompt and a completion (text, or lists of chat messages) or `messages`. A
    chat becomes one example for each turn of the assistant. Its prompt is all earlier turns in the
    tokenizer's chat template, which is what `generate` will get. Labels are on the completion
    alone. `datasets` shows a progress bar and caches the result.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset`.
        tokenizer: The base model's tokenizer.
        prompt_column, completion_column, messages_column: Names of the columns to read.
        max_length: Number of tokens to keep; the tokenizer's limit by default. The end of a
            completion is cut, and a warning counts the rows; a prompt is never cut.
        add_eos: End a plain completion with the end-of-sequence token; a template adds its own.
        keep_columns: Columns to keep beside the new ones, in every example of a row.
        num_proc: Number of processes.
        encoder_decoder: Make examples for a model whose encoder reads the prompt and whose
            decoder writes the completion (T5, BART): input_ids are the prompt alone, labels the
            completion alone, each tokenized by itself and of `max_length` tokens at most.

    Returns:
        A data set with the columns input_ids, labels, and `keep_columns`.

    Raises:
        TypeError: If the data set is not one of `datasets`.
        ValueError: If it is empty or columns are missing; or, with its row, if a prompt or
            completion is empty, a prompt leaves no room for its completion, or a chat has no
            assistant turn.
    """
    if not isinstance(dataset, (Dataset, IterableDataset)):
        splits = f"; choose one of {list(dataset)}" if isinstance(dataset, dict) else ""
        raise TypeError(
            f"make_examples reads a datasets.Dataset, got {type(dataset).__name__}{splits}. Make "
            "one of rows with datasets.Dataset.from_list."
        )
    streams = isinstance(dataset, IterableDataset)
    if not streams and len(dataset) == 0:
        raise ValueError("the data set is empty.")
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns:
        raise ValueError("the data set is empty.")
    kept = [keep_columns] if isinstance(keep_columns, str) else list(keep_columns or [])
    if made_here := {"input_ids", "labels", "cut"} & set(kept):
        raise ValueError(f"cannot keep {sorted(made_here)}: new columns have these names.")
    if missing := [name for name in kept if name not in columns]:
        raise ValueError(f"no column {missing[0]!r} to keep; the data set has {columns}.")
    limit = room(tokenizer, max_length)
    arguments = {
        "read": _columns_to_read(columns, [prompt_column, completion_column], messages_column),
        "kept": kept,
        "tokenizer": tokenizer,
        "max_length": limit,
        "add_eos": add_eos,
        "report": streams,
        "encoder_decoder": encoder_decoder,
    }
    options: Arguments = {
        "batched": True,
        "with_indices": True,
        "fn_kwargs": arguments,
        "remove_columns": columns,
    }
    if streams:
        return dataset.map(_tokenize_batch, **options).remove_columns("cut")
    made = dataset.map(_tokenize_batch, num_proc=num_proc, desc="Tokenizing", **options)
    if any(made["cut"]):
        logger.warning(describe_cut(list(made["cut"]), limit))
    return made.remove_columns("cut")


def _columns_to_read(columns: list[str], pair: list[str], messages: str) -> list[str]:
    """The columns of prompt and completion, if the data set has them, else that of the chat."""
    if set(pair) <= set(columns):
        return pair
    if messages in columns:
        return [messages]
    raise ValueError(
        f"the data set has the columns {columns}: it needs {pair[0]!r} and {pair[1]!r}, or "
        f"{messages!r}. Name them with prompt_column, completion_column or messages_column."
    )


def _tokenize_batch(
    batch: Columns,
    indices: list[int],
    read: list[str],
    kept: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    add_eos: bool,
    report: bool,
    encoder_decoder: bool,
) -> Columns:
    made: Columns = {name: [] for name in ("input_ids", "labels", "cut", *kept)}
    for number, index in enumerate(indices):
        row = [batch[name][number] for name in read]
        try:
            make = _examples_apart if encoder_decoder else _examples
            for example, cut in make(row, tokenizer, add_eos, max_length):
                made["input_ids"].append(example["input_ids"])
                made["labels"].append(example["labels"])
                made["cut"].append(cut)
                for name in kept:
                    made[name].append(batch[name][number])
        except ValueError as error:
            raise ValueError(f"row {index}: {error}.") from None
    if report and any(made["cut"]):
        logger.warning(describe_cut(made["cut"], max_length))
    return made


def _examples(
    row: list[Any], tokenizer: PreTrainedTokenizerBase, add_eos: bool, max_length: int | None
) -> Iterator[tuple[dict[str, list[int]], int]]:
    """The examples of a row, each with the number of tokens that were cut from it."""
    for ids, prompt_length in _pairs(row, tokenizer, add_eos):
        kept = fit(ids, prompt_length, max_length)
        yield with_labels(kept, prompt_length), len(ids) - len(kept)


def _examples_apart(
    row: list[Any], tokenizer: PreTrainedTokenizerBase, add_eos: bool, max_length: int | None
) -> Iterator[tuple[dict[str, list[int]], int]]:
    """The same for a model whose encoder reads the prompt."""
    if all(isinstance(part, list) for part in row):
        pairs = [(ids[:n], ids[n:]) for ids, n in _pairs(row, tokenizer, add_eos)]
    else:
        pairs = [tokenize_apart(tokenizer, row[0], row[-1], add_eos)]
    for prompt, completion in pairs:
        if max_length is not None and len(prompt) > max_length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, more than max_length={max_length}: raise "
                "max_length, or shorten the prompt"
            )
        kept = completion[:max_length]
        yield {"input_ids": prompt, "labels": kept}, len(completion) - len(kept)


def _pairs(
    row: list[Any], tokenizer: PreTrainedTokenizerBase, add_eos: bool
) -> list[tuple[list[int], int]]:
    """The (ids, prompt length) of each example of a row, a list of texts or of chats."""
    chat = all(isinstance(part, list) for part in row)
    if len(row) == 2 and not chat:
        return [tokenize_pair(tokenizer, row[0], row[1], add_eos)]
    if not chat or not all(_is_message(m) for part in row for m in part):
        raise ValueError(f"a chat is a list of messages with a role and content, got {row!r}")
    # In a data set every message has the fields of all messages. Empty ones are left out, because
    # a template reads a field if it exists.
    messages = [{n: v for n, v in m.items() if v is not None} for part in row for m in part]
    first = len(row[0]) if len(row) == 2 else 0
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
    if any(messages[turn].get("tool_calls") for turn in turns):
        raise ValueError("a turn of the assistant calls tools, which is not supported")
    if any(not messages[turn].get("content") for turn in turns):
        raise ValueError("the completion is empty: a turn of the assistant has no content")
    if any("content" not in m and not m.get("tool_calls") for m in messages):
        raise ValueError("a message has no content")
    if not turns:
        raise ValueError("the chat has no turn of the assistant to train on")
    return [_chat_pair(tokenizer, messages[:turn], messages[: turn + 1]) for turn in turns]


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str)


def _chat_pair(
    tokenizer: PreTrainedTokenizerBase, before: list[Example], through: list[Example]
) -> tuple[list[int], int]:
    if not before:
        raise ValueError("the chat begins with the assistant, so its prompt is empty")
    prompt = apply_template(tokenizer, before, add_generation_prompt=True)
    text = apply_template(tokenizer, through)
    if not text.startswith(prompt):
        raise ValueError(
            "the chat template renders an answer differently after its generation prompt, so the "
            "prompt in training would not be the one in generate; pass prompt and completion as "
            "text"
        )
    return tokenize_pair(
        tokenizer, prompt, text[len(prompt) :], add_eos=False, add_special_tokens=False
    )
