"""A position word is one class: what parses, overlaps, draws and documents asks the class."""

import re
from pathlib import Path

import pytest
import torch

from conftest import LAYERS, make_base
from pyreft import PositionSpec, ReftConfig, Tokens, get_reft_model
from pyreft.config.picture import draw
from pyreft.positions import functions, kinds, words


@pytest.fixture
def middle(monkeypatch):
    """The word m<n>, the n tokens in the middle of the prompt."""
    monkeypatch.setattr(words, "WORDS", known := list(words.WORDS))
    for module in ("spec", "functions"):
        monkeypatch.setattr(f"pyreft.positions.{module}.WORDS", known)

    class Middle(words._Counted):
        syntax, meaning, letter = "m<n>", "the n tokens in the middle", "m"

        def select(self, tokens, ends):
            before = (tokens.prompt_length - self.count).clamp(min=0) // 2
            inside = (tokens.index >= before) & (tokens.index < before + self.count)
            return tokens.prompt & inside

        def spans(self):
            return (words.Span("middle", -(self.count // 2), (self.count + 1) // 2),)

    return Middle


def tokens_of(n):
    prompt = torch.ones(1, n, dtype=torch.bool)
    return Tokens(prompt, ~prompt)


@pytest.mark.parametrize(("n", "expected"), [(9, [3, 4, 5]), (4, [0, 1, 2]), (2, [0, 1])])
def test_a_word_parses_prints_and_selects(middle, n, expected):
    spec = PositionSpec.parse(" m3 ")
    assert str(spec) == "m3" and spec == PositionSpec.parse("m3") != PositionSpec.parse("m2")
    assert spec.select(tokens_of(n))[0].nonzero().flatten().tolist() == expected
    assert str(PositionSpec.parse("l1+m3+f1")) == "f1+l1+m3"
    for wrong, message in (("m0", "selects nothing"), ("m1+m2", "given twice"), ("m", "m<n>")):
        with pytest.raises(ValueError, match=message):
            PositionSpec.parse(wrong)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        ("m1", True),
        ("prompt", True),
        ("all", True),
        ("f1+m2", True),
        ("f3", False),
        ("-1", False),
        ("completion", False),
    ],
)
def test_a_word_says_what_it_may_meet(middle, other, shared):
    one, other = PositionSpec.parse("m3"), PositionSpec.parse(other)
    assert one.overlaps(other) == other.overlaps(one) == shared


def test_two_on_one_token_are_refused_by_any_word(middle):
    entries = [{"layer": 1, "low_rank_dimension": 2, "positions": p} for p in ("m3", "m1")]
    with pytest.raises(ValueError, match="two interventions edit one token"):
        get_reft_model(make_base("llama"), ReftConfig(representations=entries))


def test_a_word_is_in_the_picture_and_in_what_errors_say(middle):
    model = get_reft_model(make_base("llama"), ReftConfig(positions="f1+m3", rank=2, tied=False))
    shown = draw(model.reft_config.representations, LAYERS).splitlines()
    assert [line for line in shown if "m3" in line] == ["  chosen by  m3        bbb"]
    with pytest.raises(ValueError, match=r"m<n> \(the n tokens in the middle\)"):
        PositionSpec.parse("x")
    with pytest.raises(ValueError, match="cannot name"):
        functions.register_position("m4", lambda tokens: tokens.prompt)


def test_the_documentation_has_every_word():
    page = (Path(__file__).parents[1] / "docs" / "positions.md").read_text()
    table = page[page.index("| spec | edits |") : page.index("```python")]
    written = " ".join(re.findall(r'"([^"]+)"', table))
    for cls in words.WORDS:
        if cls is functions.Chosen:
            assert "registered name" in table
        elif cls is words.At:
            assert "-1" in written
        else:
            syntax = cls.syntax.replace("<kind>", "|".join(kinds.KINDS))
            assert re.search(re.sub("<[a-z]>", r"\\d+", syntax), written), cls.syntax
