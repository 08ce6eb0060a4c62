"""The answer in a generated text, by the rules of LLM-Adapters' evaluation.

choice   "the correct answer is answer2" -> "answer2"
number   "12 + 30 = 42 dogs. The answer is 42." -> 42; of AQuA, "The answer is (B)" -> "B"
"""

import re

# Two numbers this near to each other are the same.
NEAR = 1e-3


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
    return float(numbers[-1]) if numbers else None


def is_right(given: str | float | None, expected: str) -> bool:
    """Whether an extracted answer is the expected one."""
    if isinstance(given, float):
        number = as_number(expected)
        return number is not None and abs(number - given) <= NEAR
    return given is not None and given == expected.strip()


def as_number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        return float(text.strip().replace(",", ""))
    except ValueError:
        return None


def _choice(generated: str, expected: str) -> str | None:
    """The first choice in a text: of "answer2" any of answer1 ... answer9."""
    expected = expected.strip()
    if expected in ("true", "false"):
        return _first("true|false", generated)
    if expected[-1:].isdigit():
        return _first(re.escape(expected[:-1]) + "[1-9]", generated)
    # A data set of one's own: all that is generated, without an end of a sentence.
    return generated.strip().rstrip(".") or None


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text)
    return found.group() if found else None
