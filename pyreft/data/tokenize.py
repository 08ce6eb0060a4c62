"""prompt + completion -> ids and labels.

    text     "2 + 2 ="      " 4"   <eos>
    ids      17 10 17 28    604    2
    labels   -100 ... -100  604    2

The prompt is tokenized as `generate` will see it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyreft.annotations import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100


class NoRoomError(ValueError):
    """A prompt that leaves no room for a token of its completion."""


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    add_eos: bool = True,
    add_special_tokens: bool = True,
) -> tuple[list[int], int]:
    """Tokenize one example.

    If the tokens of prompt and completion together begin with the prompt's tokens, they are used.
    If a token spans the border, the two are tokenized separately, so that the prompt has the same
    tokens as in `generate`. Tokens that a tokenizer adds at the end of every text (such as an end
    token) are left out of the prompt, and should be left out in `generate`.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: The text before the border.
        completion: The text after it.
        add_eos: End with the end-of-sequence token.
        add_special_tokens: Let the tokenizer add the tokens that begin a text.

    Returns:
        The token ids, and the number of prompt tokens.

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
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, add_eos: bool = True
) -> tuple[list[int], list[int]]:
    """Tokenize prompt and completion separately, for a model whose encoder reads the prompt.

    Args:
        tokenizer: A transformers tokenizer.
        prompt, completion: The texts.
        add_eos: End the completion with the end-of-sequence token.

    Returns:
        The ids of the prompt, as in `generate`, and of the completion.

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


def apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[Example],
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as text, in the tokenizer's chat template."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert isinstance(text, str)
    return text


def _end(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token to end the completion with")
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str, add_special_tokens: bool = True
) -> tuple[list[int], int]:
    """Tokenize a prompt that a completion follows.

    Returns:
        The token ids, and the number of closing tokens that were left out.

    Raises:
        ValueError: If the prompt is not text, or has no token.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"the prompt must be text, got {prompt!r}")
    plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    ids = tokenizer(prompt)["input_ids"] if add_special_tokens else plain
    # Some tokenizers close every text; a prompt before a completion must not be closed.
    end = _end_of(plain, ids)
    if not prompt or not end:
        raise ValueError("the prompt is empty")
    return ids[:end], len(ids) - end


def fit(ids: list[int], prompt_length: int, max_length: int | None) -> list[int]:
    """Cut the end of the completion, never the prompt, so that `max_length` tokens remain.

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
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    completion: str,
    max_length: int | None,
    add_eos: bool = True,
) -> tuple[list[int], int, int]:
    """Tokenize one example, and cut the end of its completion to fit.

    Args:
        tokenizer, prompt, completion, add_eos: As for `tokenize_pair`.
        max_length: As for `fit`.

    Returns:
        The token ids, the number of prompt tokens, and the number of tokens that were cut.

    Raises:
        ValueError: As `tokenize_pair` and `fit`.
    """
    whole, prompt_length = tokenize_pair(tokenizer, prompt, completion, add_eos)
    ids = fit(whole, prompt_length, max_length)
    return ids, prompt_length, len(whole) - len(ids)


def with_labels(ids: list[int], prompt_length: int) -> dict[str, list[int]]:
    """The example, with labels on its completion alone."""
    return {"input_ids": ids, "labels": [IGNORE] * prompt_length + ids[prompt_length:]}


def room(tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> int | None:
    """`max_length`, else the tokenizer's own limit; a huge limit means none.

    Raises:
        TypeError: If the tokenizer is not callable.
        ValueError: If `max_length` leaves no room for a prompt and a completion.
    """
    if not callable(tokenizer):
        raise TypeError(
            f"the tokenizer is {tokenizer!r}: load it with AutoTokenizer.from_pretrained."
        )
    if max_length is not None:
        if not isinstance(max_length, int) or max_length < 2:
            raise ValueError(
                f"max_length is {max_length!r}: a prompt and a completion have at least two tokens."
            )
        return max_length
    limit = tokenizer.model_max_length
    return int(limit) if limit is not None and limit < 10**9 else None


def describe_cut(cut: list[int], limit: int | None, part: str = "completions") -> str:
    """The warning about texts that were cut.

    Args:
        cut: Number of tokens cut from each.
        limit: The largest number of tokens.
        part: What was cut; if completions, prompts are whole.
    """
    rows = [count for count in cut if count]
    whole = "; prompts, and so positions, are whole" if part == "completions" else ""
    return (
        f"the {part} of {len(rows)} of {len(cut)} examples were cut to fit max_length={limit}, by "
        f"{sum(rows)} tokens in all{whole}."
    )


def describe_left_out(rows: list[int], count: int, limit: int | None) -> str:
    """The warning about rows that were left out because their prompt alone fills the limit.

    Args:
        rows: The numbers of the rows.
        count: The number of all rows.
        limit: The largest number of tokens.

    Raises:
        NoRoomError: If no row remains.
    """
    said = (
        f"{len(rows)} of {count} prompts have max_length={limit} tokens or more, which leaves "
        "nothing of their completions to train on"
    )
    if len(rows) == count:
        raise NoRoomError(f"{said}: raise tokenizer.model_max_length, or shorten the prompts.")
    more = ", ..." if len(rows) > 5 else ""
    return f"{said}: they are left out (rows {', '.join(map(str, rows[:5]))}{more})."


def _end_of(part: list[int], whole: list[int]) -> int:
    """The index at which `part` ends in `whole`; the end of `whole` if it is not in there."""
    starts = range(len(whole) - len(part) + 1)
    return next((s + len(part) for s in starts if whole[s : s + len(part)] == part), len(whole))


def _tokenize_inside(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokenize the middle of a text; some tokenizers add a space at the beginning of a text."""
    before: list[int] = tokenizer("\n", add_special_tokens=False)["input_ids"]
    both: list[int] = tokenizer("\n" + text, add_special_tokens=False)["input_ids"]
    if both[: len(before)] == before:
        return both[len(before) :]
    alone: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return alone
