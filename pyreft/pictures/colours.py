"""Colours that colour-blind people can tell apart: one scale for HTML and for figures.

The scale is one hue from light to dark, so that its order is also seen in grey.
"""

from __future__ import annotations

import math
from html import escape

# From nothing to the most.
SCALE = ("#d6e6f4", "#a6cce4", "#5aa2cf", "#1f6bae", "#08306b")
# What has no value.
NONE = "#f4f4f4"


def colour_of(fraction: float) -> str:
    """The colour of a value between 0 and 1, "#rrggbb"; beyond them, that of the nearer end."""
    at = 0.0 if math.isnan(fraction) else min(max(fraction, 0.0), 1.0) * (len(SCALE) - 1)
    below = min(int(at), len(SCALE) - 2)
    ends = zip(_channels(SCALE[below]), _channels(SCALE[below + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - below)):02x}" for a, b in ends)


def ink_on(colour: str) -> str:
    """Black or white, whichever has the higher contrast on a colour (WCAG 2, section 1.4.3)."""
    linear = [_linear(channel / 255) for channel in _channels(colour)]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000000" if (luminance + 0.05) ** 2 > 0.05 * 1.05 else "#ffffff"


def chip(text: str, fraction: float, title: str = "", padding: int = 0) -> str:
    """A text as HTML on the colour of a value between 0 and 1; readable on light and dark pages.

    Args:
        text: The text, not escaped yet.
        fraction: The value.
        title: What is shown while the pointer is on it, not escaped yet.
        padding: Pixels of the colour at both sides of the text; with any, it is not wrapped.
    """
    colour = colour_of(fraction)
    style = f"background:{colour};color:{ink_on(colour)};border-radius:3px"
    # The line shows where the lightest colour is, on a white page.
    style += ";outline:1px solid rgba(128,128,128,.4)"
    if padding:
        style += f";padding:0 {padding}px;margin:1px;display:inline-block;white-space:pre"
    said = f' title="{escape(title)}"' if title else ""
    return f'<span style="{style}"{said}>{escape(text)}</span>'


def _channels(colour: str) -> list[int]:
    return [int(colour[index : index + 2], 16) for index in (1, 3, 5)]


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)
