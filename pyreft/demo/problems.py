"""Errors that users can fix, shown in the page."""

from __future__ import annotations

from html import escape

import gradio as gr


def show_problem(error: BaseException | None = None) -> gr.HTML:
    """An error, its untrusted text escaped; without one the page shows nothing."""
    said = "" if error is None else escape(str(error) or type(error).__name__)
    return gr.HTML(f'<div class="problem" role="alert">{said}</div>', visible=bool(said))
