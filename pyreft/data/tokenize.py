"""prompt + completion -> ids and labels.

    text     "2 + 2 ="      " 4"   <eos>
    ids      17 10 17 28    604    2
    labels   -100 ... -100  604    2

The prompt is tokenized as `generate` will see it.
"""

from __future__ import annotations

from typing import Any

IGNORE = -100


class NoRoomError(ValueError):
    """A prompt that leaves no room for a token of its completion."""


def tokenize_pair(
    tokenizer: Any,
    prompt: str,
    completion: str,
    add_eos: bool = True,
    add_special_tokens: bool = True,
) -> tuple[list[int], int]:
    """Tokenize one example.

    Where prompt and completion together give tokens that begin with the prompt's, those are
    taken; where a token would span the border, the two are tokenized apart, so that the prompt
    stays what it is in `generate`. What a tokenizer closes every text with (an end token, say) is
    left out of the prompt, and so should be in `generate`.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The text before the border.
        completion: The text after it.
        add_eos: End with the end-of-sequence token.
        add_special_tokens: Let the tokenizer add what it begins a text with.

    Returns:
        The token ids, and how many of them are the prompt.

    Raises:
        ValueError: If prompt or completion has no token, or there is no end token to add.
    """
    prompt_ids, closers = tokenize_prompt(tokenizer, prompt, add_special_tokens)
    if not isinstance(completion, str):
        raise ValueError(f"the completion must be text, got {completion!r}")
    both = tokenizer(prompt + completion, add_special_tokens=add_special_tokens)["input_ids"]
    both = both[: len(both) - closers]
    if both[: len(prompt_ids)] != prompt_ids:
        both = prompt_ids + _tokenize_inside(tokenizer, completion)
    if len(both) == len(prompt_ids):
        raise ValueError("the completion is empty")
    return _end(tokenizer, both) if add_eos else both, len(prompt_ids)


def tokenize_apart(
    tokenizer: Any, prompt: str, completion: str, add_eos: bool = True
) -> tuple[list[int], list[int]]:
    """Tokenize one example of a model whose encoder reads the prompt, each text by itself.

    Args:
        tokenizer: A transformers tokenizer.
        prompt, completion: The texts.
        add_eos: End the completion with the end-of-sequence token.

    Returns:
        The ids of the prompt, as `generate` will see it, and of the completion.

    Raises:
        ValueError: If prompt or completion has no token, or there is no end token to add.
    """
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str):
            raise ValueError(f"the {name} must be text, got {text!r}")
        if not tokenizer(text, add_special_tokens=False)["input_ids"]:
            raise ValueError(f"the {name} is empty")
    ids, target = tokenizer(prompt)["input_ids"], tokenizer(text_target=completion)["input_ids"]
    return ids, _end(tokenizer, target) if add_eos else target


def _end(tokenizer: Any, ids: list[int]) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token to end the completion with")
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def tokenize_prompt(
    tokenizer: Any, prompt: str, add_special_tokens: bool = True
) -> tuple[list[int], int]:
    """Tokenize a prompt that goes on.

    Returns:
        The token ids, and how many tokens that close a whole text were left out.

    Raises:
        ValueError: If the prompt is no text, or has no token.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text, got {prompt!r}")
    plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt)["input_ids"] if add_special_tokens else plain
    # Some tokenizers close every text they are given; a prompt that goes on is not closed.
    end = _end_of(plain, ids)
    if not prompt or not end:
        raise ValueError("the prompt is empty")
    return ids[:end], len(ids) - end


def fit(ids: list[int], prompt_length: int, max_length: int | None) -> list[int]:
    """Cut the end of the completion, never the prompt, so that `max_length` tokens are left.

    Raises:
        NoRoomError: If the prompt leaves no room for a single token of the completion.
    """
    if max_length is None or len(ids) <= max_length:
        return ids
    if prompt_length >= max_length:
        raise NoRoomError(
            f"the prompt has {prompt_length} tokens, which leaves nothing of max_length="
            f"{max_length} for the completion: raise max_length, or shorten the prompt"
        )
    return ids[:max_length]


def tokenize_fitting(
    tokenizer: Any, prompt: str, completion: str, max_length: int | None, add_eos: bool = True
) -> tuple[list[int], int, int]:
    """Tokenize one example, and cut the end of its completion to fit.

    Args:
        tokenizer, prompt, completion, add_eos: As for `tokenize_pair`.
        max_length: As for `fit`.

    Returns:
        The token ids, how many of them are the prompt, and how many were cut.

    Raises:
        ValueError: As `tokenize_pair` and `fit`.
    """
    whole, prompt_length = tokenize_pair(tokenizer, prompt, completion, add_eos)
    ids = fit(whole, prompt_length, max_length)
    return ids, prompt_length, len(whole) - len(ids)


def with_labels(ids: list[int], prompt_length: int) -> dict[str, list[int]]:
    """The example, with labels on its completion alone."""
    return {"input_ids": ids, "labels": [IGNORE] * prompt_length + ids[prompt_length:]}


def room(tokenizer: Any, max_length: int | None = None) -> int | None:
    """`max_length`, else the tokenizer's own limit; those that have none say a huge number.

    Raises:
        TypeError: If the tokenizer is none.
        ValueError: If it leaves no room for a prompt and a completion.
    """
    if not callable(tokenizer):
        raise TypeError(
            f"the tokenizer is {tokenizer!r}: load it with AutoTokenizer.from_pretrained."
        )
    if max_length is not None:
        if not isinstance(max_length, int) or max_length < 2:
            raise ValueError(
                f"max_length is {max_length!r}: a prompt and a completion have two tokens at least."
            )
        return max_length
    limit = tokenizer.model_max_length
    return int(limit) if limit is not None and limit < 10**9 else None


def describe_cut(cut: list[int], limit: int | None, part: str = "completions") -> str:
    """What was cut from the completions, given the number of tokens cut from each of them.

    Args:
        cut: Number of tokens cut from each.
        limit: The number of tokens that were let in.
        part: What was cut; completions leave prompts whole.
    """
    rows = [count for count in cut if count]
    whole = "; prompts, and so positions, are whole" if part == "completions" else ""
    return (
        f"the {part} of {len(rows)} of {len(cut)} examples were cut to fit max_length={limit}, by "
        f"{sum(rows)} tokens in all{whole}."
    )


def describe_left_out(rows: list[int], count: int, limit: int | None) -> str:
    """What was left out because its prompt alone fills the room there is.

    Args:
        rows: The numbers of the rows.
        count: How many rows there are.
        limit: The number of tokens that are let in.

    Raises:
        NoRoomError: If none is left.
    """
    said = (
        f"{len(rows)} of {count} prompts have max_length={limit} tokens or more, which leaves "
        "nothing of their completions to learn"
    )
    if len(rows) == count:
        raise NoRoomError(f"{said}: raise tokenizer.model_max_length, or shorten the prompts.")
    more = ", ..." if len(rows) > 5 else ""
    return f"{said}: they are left out (rows {', '.join(map(str, rows[:5]))}{more})."


def _end_of(part: list[int], whole: list[int]) -> int:
    """Where `part` ends in `whole`; the end of `whole` if it is not in there."""
    starts = range(len(whole) - len(part) + 1)
    return next((s + len(part) for s in starts if whole[s : s + len(part)] == part), len(whole))


def _tokenize_inside(tokenizer: Any, text: str) -> list[int]:
    """Tokenize what is not the beginning of a text, where some tokenizers put a space."""
    before = tokenizer("\n", add_special_tokens=False)["input_ids"]
    both = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    if both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer(text, add_special_tokens=False)["input_ids"]
