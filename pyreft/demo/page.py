"""The page: one tab compares adapters, the other trains one."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import gradio as gr

from pyreft.demo.compare_tab import add_compare_tab
from pyreft.demo.runs import Runs
from pyreft.demo.train_tab import add_train_tab
from pyreft.sharing import Adapter

# Fonts of the system: others would be loaded from elsewhere.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = ".problem {border-left: 4px solid #c0392b; padding: 8px 12px; overflow-wrap: anywhere}"


def make_page(runs: Runs, adapters: Mapping[str, Adapter], scratch: Path) -> gr.Blocks:
    """The page of a playground.

    Args:
        runs: The runs of the playground.
        adapters: Those that all users may choose, by name.
        scratch: For the files that are downloaded.
    """
    name = runs.playground.name
    page = gr.Blocks(title=f"pyreft: {name}", analytics_enabled=False)
    with page:
        gr.HTML(f"<h2>pyreft: adapters of {escape(name)}</h2>")
        own = gr.State({})
        # Outside the tabs, whose components are not there when the page is opened.
        mine = gr.BrowserState(None, storage_key="pyreft_run")
        with gr.Tab("Compare"):
            chooser = add_compare_tab(runs.playground, adapters, own)
        with gr.Tab("Train"):
            add_train_tab(page, runs, chooser, mine, scratch)
    return page
