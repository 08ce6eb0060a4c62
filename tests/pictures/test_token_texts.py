"""The texts of tokens: spaces, characters of several tokens, and bytes that are none."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pyreft.pictures.colours import chip, colour_of, ink_on
from pyreft.pictures.tokens import token_text, token_texts, visible
from test_docs import bytes_tokenizer


def word_pieces():
    pieces = ["[UNK]", "who", "are", "you", "##rs", "?"]
    fast = Tokenizer(models.WordPiece({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=fast)


def texts(tokenizer, text):
    return token_texts(tokenizer, tokenizer(text)["input_ids"])


def test_spaces_are_where_the_text_has_them():
    assert texts(word_pieces(), "who are yours?") == ["who", " are", " you", "rs", "?"]
    assert texts(bytes_tokenizer(), "a b\n") == ["a", " ", "b", "\n"]


def test_the_first_token_of_a_character_has_it():
    tokenizer = bytes_tokenizer()
    assert texts(tokenizer, "né 🐟!") == ["n", "é", "", " ", "🐟", "", "", "", "!"]
    cut = tokenizer("é🐟")["input_ids"][:-1]
    assert token_texts(tokenizer, cut) == ["é", "", r"\xf0", r"\x9f", r"\x90"]
    assert token_text(tokenizer, cut[0]) == r"\xc3"
    # The character that decoders put in place of others.
    assert "".join(texts(tokenizer, "a\ufffdb")) == r"a\xef\xbf\xbdb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" dogs", "␣dogs"),
        ("a b ", "a b␣"),
        ("  ", "␣␣"),
        ("\n", "↵"),
        ("x\t", "x⇥"),
        ("", "…"),
        ("\x1b[31m", "U+001B[31m"),
        ("y" * 40, "y" * 23 + "…"),
    ],
)
def test_tokens_are_visible_on_one_line(text, expected):
    assert visible(text) == expected


def contrast(one, other):
    def luminance(colour):
        channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_text_is_readable_on_every_colour_and_the_scale_has_an_order_in_grey():
    colours = [colour_of(n / 100) for n in range(101)]
    assert min(contrast(colour, ink_on(colour)) for colour in colours) > 4.5  # WCAG 2, AA
    on_black = [contrast(colour, "#000000") for colour in colours]
    assert on_black == sorted(on_black, reverse=True) and len(set(on_black)) == 101
    assert colour_of(float("nan")) == colour_of(-1) == colours[0]
    assert colour_of(float("inf")) == colours[-1]


def test_a_chip_is_escaped():
    html = chip("<b>", 0.5, '">')
    assert "<b>" not in html and '">"' not in html and "&quot;&gt;" in html
