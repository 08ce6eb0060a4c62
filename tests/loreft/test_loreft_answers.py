"""Answers in generated texts, by LLM-Adapters' rules, on cases made by hand."""

import pytest

from answers import extract, is_right


@pytest.mark.parametrize(
    ("kind", "generated", "expected", "answer"),
    [
        ("choice", "the correct answer is true", "true", "true"),
        ("choice", "It is false, not true.", "true", "false"),
        ("choice", "the correct answer is answer2", "answer4", "answer2"),
        ("choice", "the correct answer is Answer2", "answer2", None),
        ("choice", "solution1 and solution2", "solution2", "solution1"),
        ("choice", "option3, so option1", "option1", "option1"),
        ("choice", "answer6 or answer5", "answer1", "answer5"),
        ("choice", "ending4 because", "ending1", "ending4"),
        ("choice", "option", "option1", None),
        ("choice", " yes. ", "yes", "yes"),
        ("choice", "", "yes", None),
        ("number", "12 + 30 = 42 dogs. The answer is 42.", "42.0", 42.0),
        ("number", "It costs $1,250.50", "1250.5", 1250.5),
        ("number", "-3 degrees", "-3", -3.0),
        ("number", "none at all", "7", None),
        ("number", "9" * 400, "7", None),
        ("number", "The answer is (B).", "B", "B"),
        # The first letter, in any word: their rule.
        ("number", "As above, C", "C", "A"),
        ("number", "the answer", "C", None),
    ],
)
def test_an_answer_is_found_or_none(kind, generated, expected, answer):
    assert extract(kind, generated, expected) == answer
    assert is_right(answer, expected) == (answer in (expected, _number(expected)))


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def test_numbers_are_right_to_a_thousandth():
    assert is_right(0.3334, "0.333")
    assert not is_right(0.335, "0.333")
    assert not is_right(1.0, "A")
