"""prompt + completion -> ids and labels.

    text     "2 + 2 ="      " 4"   <eos>
    ids      17 10 17 28    604    2
    labels   -100 ... -100  604    2

The prompt is tokenized exactly as `generate` will see it.
"""

from __future__ import annotations

from typing import Any

IGNORE = -100


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
    stays what it is in `generate`.

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
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str):
            raise ValueError(f"the {name} must be text, got {text!r}")
    ids = tokenizer(prompt, add_special_tokens=add_special_tokens)["input_ids"]
    # Some tokenizers close every text they are given; a prompt is not closed.
    closed = bool(ids) and add_special_tokens and ids[-1] in _closers(tokenizer)
    prompt_ids = ids[:-1] if closed and not prompt.endswith(tokenizer.decode(ids[-1:])) else ids
    both = tokenizer(prompt + completion, add_special_tokens=add_special_tokens)["input_ids"]
    if len(prompt_ids) < len(ids):
        both = both[:-1]
    if both[: len(prompt_ids)] != prompt_ids:
        both = prompt_ids + tokenizer(completion, add_special_tokens=False)["input_ids"]
    if not prompt or not prompt_ids:
        raise ValueError("the prompt is empty")
    if len(both) == len(prompt_ids):
        raise ValueError("the completion is empty")
    if add_eos:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no eos_token to end the completion with")
        both = [*both, tokenizer.eos_token_id]
    return both, len(prompt_ids)


def fit(ids: list[int], prompt_length: int, max_length: int | None) -> list[int]:
    """Cut the end of the completion, never the prompt, so that `max_length` tokens are left.

    Raises:
        ValueError: If the prompt leaves no room for a single token of the completion.
    """
    if max_length is None or len(ids) <= max_length:
        return ids
    if prompt_length >= max_length:
        raise ValueError(
            f"the prompt has {prompt_length} tokens, which leaves nothing of max_length="
            f"{max_length} for the completion: raise max_length, or shorten the prompt"
        )
    return ids[:max_length]


def with_labels(ids: list[int], prompt_length: int) -> dict[str, list[int]]:
    """The example, with labels on its completion alone."""
    return {"input_ids": ids, "labels": [IGNORE] * prompt_length + ids[prompt_length:]}


def room(tokenizer: Any, max_length: int | None = None) -> int | None:
    """`max_length`, else the tokenizer's own limit; those that have none say a huge number.

    Raises:
        ValueError: If it leaves no room for a prompt and a completion.
    """
    if max_length is not None:
        if not isinstance(max_length, int) or max_length < 2:
            raise ValueError(
                f"max_length is {max_length!r}: a prompt and a completion have two tokens at least."
            )
        return max_length
    limit = tokenizer.model_max_length
    return int(limit) if limit is not None and limit < 10**9 else None


def describe_cut(cut: list[int], limit: int | None) -> str:
    """What was cut from the completions, given the number of tokens cut from each example."""
    rows = [count for count in cut if count]
    return (
        f"the completions of {len(rows)} of {len(cut)} examples were cut to fit max_length={limit}"
        f", by {sum(rows)} tokens in all; prompts, and so positions, are whole."
    )


def _closers(tokenizer: Any) -> set[int | None]:
    return {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
