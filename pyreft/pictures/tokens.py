"""The texts of tokens, as people read them."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# What a decoder puts in place of bytes that are no whole character.
_BROKEN = "\ufffd"
# The most tokens that one character is looked for in.
_LONGEST = 8


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text of each token, as it continues the tokens before it: spaces are where they belong.

    If a character is split between tokens, the first of them has it, and the text of the others is
    empty.
    """
    texts: list[str] = []
    while len(texts) < len(ids):
        start = len(texts)
        count = _tokens_of_character(tokenizer, ids[start : start + _LONGEST])
        here = list(ids[start : start + max(count, 1)])
        text = token_text(tokenizer, here[0]) if count < 2 else _decode(tokenizer, here)
        if start and count:
            before = _decode(tokenizer, [ids[start - 1]])
            both = _decode(tokenizer, [ids[start - 1], *here])
            if before and both.startswith(before) and len(both) > len(before):
                text = both[len(before) :]
        texts += [text, *[""] * (len(here) - 1)]
    return texts


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """The text of a token by itself; its bytes, "\\xf0\\x9f", if they are no whole character."""
    text = _decode(tokenizer, [token])
    if text and _BROKEN not in text:
        return text
    piece = str(tokenizer.convert_ids_to_tokens(token) or token)
    parts = [_BYTES.get(character) for character in piece]
    if all(part is not None for part in parts):
        return "".join(f"\\x{part:02x}" for part in parts)
    return piece


def _tokens_of_character(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """How many of the tokens it takes for a whole character; 0 if they never make one."""
    for count in range(1, len(ids) + 1):
        text = _decode(tokenizer, ids[:count])
        if text and _BROKEN not in text:
            return count
    return 0


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (GPT-2's encoding).

    Bytes that are printable in Latin-1 are written as themselves, the others in their order as the
    characters from 256.
    """
    themselves = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in themselves]
    known = {chr(byte): byte for byte in themselves}
    return known | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_characters()


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def visible(text: str, longest: int = 24) -> str:
    """The text of a token as one line: "␣" for a space at an end, "↵" for a new line.

    A token without a text, which continues the character of the token before it, is "…".
    """
    inner = text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")
    inner = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in inner)
    before, after = len(inner) - len(inner.lstrip(" ")), len(inner) - len(inner.rstrip(" "))
    if before == len(inner):
        after = 0
    inner = "␣" * before + inner.strip(" ") + "␣" * after
    inner = inner or "…"
    return inner if len(inner) <= longest else f"{inner[: longest - 1]}…"
