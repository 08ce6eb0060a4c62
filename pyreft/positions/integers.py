"""Upstream's positions: integers for one example."""

from __future__ import annotations

import re


def parse_positions(positions: str) -> tuple[int, int]:
    """ "f7+l7" -> (7, 7): how many tokens at the start and at the end of the prompt.

    Args:
        positions: "f<n>", "l<n>" or "f<n>+l<n>".

    Raises:
        ValueError: If the spec says anything else than f<n> and l<n>.
    """
    match = re.fullmatch(r"(?:f(\d+))?\+?(?:l(\d+))?", positions)
    if not positions or match is None:
        raise ValueError(f'positions are "f<n>", "l<n>" or "f<n>+l<n>", got {positions!r}.')
    return int(match[1] or 0), int(match[2] or 0)


def get_intervention_locations(
    *,
    last_position: int,
    num_interventions: int,
    positions: str | None = None,
    first_n: int | None = None,
    last_n: int | None = None,
    share_weights: bool = False,
    pad_mode: str = "first",
    **unused: object,
) -> list[list[int]]:
    """Upstream's integers for one example, short prompts and filling included.

    Our own data functions do not use it: on a prompt that is too short its filling is a position
    like any other, -1 or the first token of the answer, and it halves both sides alike where the
    paper gives the odd token to the suffix.

    Args:
        last_position: n, the number of tokens before the end of the prompt.
        num_interventions: How many lists to make. With f and l positions and weights that are
            not shared, the first half of them is at f, the second at l.
        positions: "f7+l7"; or `first_n` and `last_n` instead.
        share_weights: Whether all interventions edit all positions.
        pad_mode: "first" fills up with -1, "last" with n.

    Returns:
        `num_interventions` lists of positions.

    Raises:
        ValueError: If the positions are not given, or `num_interventions` is odd where two
            interventions make a pair (upstream drops one).
    """
    if positions is not None:
        first_n, last_n = parse_positions(positions)
    if first_n is None or last_n is None:
        raise ValueError('give positions="f1+l1", or both first_n and last_n.')
    half = last_position // 2
    first, last = min(half, first_n), min(half, last_n)
    fill = -1 if pad_mode == "first" else last_position
    prefix, suffix = list(range(first)), list(range(last_position - last, last_position))
    if share_weights or first == 0 or last == 0:
        missing = first_n + last_n - first - last
        return [prefix + suffix + [fill] * missing for _ in range(num_interventions)]
    if num_interventions % 2:
        raise ValueError(
            f"num_interventions is {num_interventions}: with positions at both ends and weights "
            "that are not shared there are two for each layer, so it is even."
        )
    width = max(first_n, last_n)
    pair = [side + [fill] * (width - len(side)) for side in (prefix, suffix)]
    return [list(side) for side in pair for _ in range(num_interventions // 2)]
