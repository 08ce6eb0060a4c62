"""The tab that shows a base model beside one of its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import gradio as gr

from pyreft.demo.chooser import Adapters, Chooser
from pyreft.demo.playground import FIXABLE, Playground
from pyreft.demo.problems import show_problem
from pyreft.demo.uploads import read_upload
from pyreft.sharing import Adapter


def add_compare_tab(
    playground: Playground, shared: Mapping[str, Adapter], own: gr.State
) -> Chooser:
    """Add the components and what they do.

    Args:
        playground: What is asked.
        shared: The adapters of the command line, by name.
        own: The adapters of one user, by name.
    """
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            chooser = Chooser.add(shared, own)
            strength = gr.Slider(
                0, 2, 1, step=0.05, label="Strength", info="The factor of the adapter's edits."
            )
            new_tokens = gr.Slider(1, 512, 64, step=1, label="New tokens, at most")
            files = gr.UploadButton(
                "Load an adapter from a directory", file_count="directory", size="md"
            )
        with gr.Column(scale=3):
            prompt = gr.Textbox("", label="Prompt", lines=2, max_lines=12)
            with gr.Row():
                ask = gr.Button("Answer", variant="primary")
                stop = gr.Button("Stop")
            problem = show_problem()
            marked = gr.HTML()
            with gr.Row():
                bare = gr.Textbox(label="Base model", lines=8, interactive=False)
                changed = gr.Textbox(label="With the adapter", lines=8, interactive=False)

    def answer(
        prompt: str, name: str, strength: float, edited: Sequence[str], count: float, own: Adapters
    ) -> Iterator[list[object]]:
        yield [show_problem(), "", "", ""]
        try:
            choice = chooser.choice(name, strength, edited, own)
            for found in playground.ask(prompt, choice, int(count)):
                shown = "" if found.marked is None else found.marked._repr_html_()
                yield [gr.skip(), shown, found.base, found.adapter]
        except FIXABLE as error:
            yield [show_problem(error), gr.skip(), gr.skip(), gr.skip()]

    def upload(files: Sequence[str] | None, own: Adapters) -> list[object]:
        try:
            read = read_upload(playground, files or ())
        except FIXABLE as error:
            return [show_problem(error), *[gr.skip()] * len(chooser.outputs)]
        return [show_problem(), *chooser.add_own(own, f"upload {len(own) + 1}", read)]

    # One request at a time: the others see their place in the queue.
    running = gr.on(
        [ask.click, prompt.submit],
        answer,
        [prompt, chooser.adapter, strength, chooser.layers, new_tokens, own],
        [problem, marked, bare, changed],
        concurrency_limit=1,
        show_progress="minimal",
        api_name="answer",
    )
    stop.click(None, cancels=running)
    files.upload(upload, [files, own], [problem, *chooser.outputs], api_name="upload")
    return chooser
