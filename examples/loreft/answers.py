"""The answer in a generated text, by the rules of LLM-Adapters' evaluation.

choice   "the correct answer is answer2" -> "answer2"
number   "12 + 30 = 42 dogs. The answer is 42." -> 42; of AQuA, "The answer is (B)" -> "B"
"""

import math
import re

# Two numbers this near to each other are the same.
NEAR = 1e-3
# The choices of the commonsense tasks, by the word in front of their number.
CHOICES = {"solution": "[12]", "option": "[12]", "ending": "[1-4]", "answer": "[1-5]"}


def extract(kind: str, generated: str, expected: str) -> str | float | None:
    """The answer that a text gives.

    Args:
        kind: "choice" or "number", as a task has it.
        generated: What the model generated after the prompt.
        expected: The right answer, whose form says what to look for.

    Returns:
        The answer, or None if the text has none of that form.
    """
    if kind == "choice":
        return _choice(generated, expected)
    if as_number(expected) is None:
        # Letters of AQuA. The first letter counts, in any word, which LLM-Adapters chose.
        return _first("[A-E]", generated)
    numbers = re.findall(r"-?\d+\.?\d*", generated.replace(",", ""))
    return as_number(numbers[-1]) if numbers else None


def is_right(given: str | float | None, expected: str) -> bool:
    """Whether an extracted answer is the expected one."""
    if isinstance(given, float):
        number = as_number(expected)
        return number is not None and abs(number - given) <= NEAR
    return given is not None and given == expected.strip()


def as_number(text: str) -> float | None:
    """The finite number that a text is, if it is one."""
    try:
        number = float(text.strip().replace(",", ""))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _choice(generated: str, expected: str) -> str | None:
    """The first choice in a text: of "answer2" any of answer1 ... answer5."""
    expected = expected.strip()
    if expected in ("true", "false"):
        return _first("true|false", generated)
    if expected[-1:].isdigit():
        word = expected[:-1]
        return _first(re.escape(word) + CHOICES.get(word, "[1-9]"), generated)
    # A data set of one's own: all that is generated, without an end of a sentence.
    return generated.strip().rstrip(".") or None


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group() if found else None
