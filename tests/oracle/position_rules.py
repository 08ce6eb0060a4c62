"""Which tokens a position spec edits, in the oracle's own words, on one row without padding.

n tokens of prompt, t of text (n <= t): positions 0 ... n - 1 are the prompt.
"""

import re

import torch

# A token is edited if the one before it is at least this: a position function.
LARGE = 30
AFTER_LARGE = "after_large"


class RefusedError(ValueError):
    """pyreft must refuse this, with a ValueError."""


def after_large(tokens):
    """The position function given to pyreft, on (B, T) padded batches."""
    chosen = tokens.prompt.clone()
    chosen[:, 1:] &= (tokens.input_ids[:, :-1] >= LARGE) & tokens.prompt[:, :-1]
    chosen[:, 0] = False
    return chosen


def words(spec):
    return [str(index) for index in spec] if isinstance(spec, (list, tuple)) else spec.split("+")


def count(spec, letter):
    """The number of tokens that "f7" or "l7" in a spec says."""
    return sum(int(word[1:]) for word in words(spec) if re.fullmatch(rf"{letter}\d+", word))


def edits_completion(spec):
    return any(word in ("all", "completion") for word in words(spec))


def needs_prompt(spec):
    """Whether a spec is of the prompt, and so cannot be applied to an empty one."""
    return any(re.fullmatch(r"[fl]?-?\d+", word) for word in words(spec)) or words(spec) == [
        "prompt"
    ]


def columns(spec, beside, n, t, ids=None):
    """The set of positions that a spec edits.

    Args:
        spec: As in a config.
        beside: All specs of its adapter at the same place, itself included.
        n, t: The number of tokens of the prompt, and of all of the text.
        ids: (t,), of the text.

    Raises:
        RefusedError: If an explicit position is outside the prompt, or that is empty.
    """
    if n == 0 and needs_prompt(spec):
        raise RefusedError("empty prompt")
    first, last = count(spec, "f"), count(spec, "l")
    if n < max(count(one, "f") for one in beside) + max(count(one, "l") for one in beside):
        first, last = min(first, n // 2), min(last, n - n // 2)
    chosen = {*range(first), *range(n - last, n)}
    for word in words(spec):
        if word in ("prompt", "all"):
            chosen |= set(range(n))
        if word in ("completion", "all"):
            chosen |= set(range(n, t))
        if re.fullmatch(r"-?\d+", word):
            if not -n <= int(word) < n:
                raise RefusedError(f"{word} is outside {n} tokens")
            chosen.add(int(word) % n)
        if word == AFTER_LARGE:
            chosen |= {i for i in range(1, n) if ids is not None and int(ids[i - 1]) >= LARGE}
    return chosen


def split(spec):
    """The specs of a spec whose weights are not tied, in pyreft's documented order: first tokens,
    last tokens, regions, explicit positions in the order of a long prompt, functions."""
    order = [[], [], [], [], []]
    for word in words(spec):
        if word == "all":
            order[2] += ["completion", "prompt"]
        else:
            kind = 3 if re.fullmatch(r"-?\d+", word) else {"f": 0, "l": 1}.get(word[0], 2)
            order[4 if word == AFTER_LARGE else kind].append(word)
    order[3].sort(key=lambda word: (int(word) < 0, int(word)))
    order[2].sort()
    return [word for words in order for word in words]


def text(mask):
    """(T,) mask -> the columns of a row that are not padding."""
    return torch.as_tensor(mask).bool().nonzero().flatten()
