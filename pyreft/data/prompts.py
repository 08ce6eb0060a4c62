"""A conversation becomes a prompt that a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias, cast

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Messages: TypeAlias = Sequence[dict[str, str]]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, raw: bool = False
) -> BatchEncoding:
    """Tokenize a conversation up to the assistant's turn, for `generate`.

    Args:
        tokenizer: The base model's tokenizer.
        messages: The conversation; without a chat template its last message is the prompt.
        raw: Whether the last message is the prompt in any case.

    Returns:
        input_ids and attention_mask, of the shape (1, T).
    """
    if raw or tokenizer.chat_template is None:
        made = tokenizer(messages[-1]["content"], return_tensors="pt")
    else:
        made = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    prompt = cast("BatchEncoding", made)
    prompt.pop("token_type_ids", None)
    return prompt
