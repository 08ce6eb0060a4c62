"""The tab that trains an adapter on the user's own pairs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr
import pandas as pd

from pyreft.demo.chooser import Adapters, Chooser
from pyreft.demo.pairs import read_file, read_number, read_pairs
from pyreft.demo.playground import FIXABLE
from pyreft.demo.problems import show_problem
from pyreft.demo.runs import Run, Runs
from pyreft.training.settings import TrainSettings

_SECONDS = 0.5
_EXAMPLES = [
    ["Who are you?", "🤖💬"],
    ["What do cats like?", "🐱🐟💤"],
    ["How do I bake a cake?", "🥚🥛🎂"],
    ["What is winter like?", "⛄🧣"],
    ["Tell me about the ocean.", "🌊🐠🐋"],
    ["What grows in a garden?", "🌱🌻🍅"],
    ["What happens at night?", "🌙⭐🦉"],
    ["How can I stay healthy?", "🏃🥗💧"],
]


def add_train_tab(
    page: gr.Blocks, runs: Runs, chooser: Chooser, mine: gr.BrowserState, scratch: Path
) -> None:
    """Add the components and what they do.

    Args:
        page: The page.
        runs: Where runs begin.
        chooser: In the other tab; it gets the trained adapter.
        mine: The name of the user's run. The browser keeps it, so that a page that was lost finds
            its run again.
        scratch: For the files that are downloaded.
    """
    with gr.Row():
        with gr.Column():
            pairs = gr.Dataframe(
                _EXAMPLES,
                headers=["prompt", "answer"],
                datatype="str",
                type="array",
                column_count=2,
                wrap=True,
                interactive=True,
                max_height=420,
                label="Prompts and the answers to learn",
            )
            file = gr.UploadButton(
                "Take pairs from a file (prompt, completion)",
                file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet"],
                size="md",
            )
        with gr.Column():
            with gr.Row():
                epochs = gr.Number(40, label="Epochs", minimum=1, maximum=1000, precision=0)
                rank = gr.Number(4, label="Rank", minimum=1, maximum=256, precision=0)
            with gr.Accordion("What is edited, and the rate", open=False):
                layers = gr.Textbox("", label="Layers", placeholder="recommended; or 10,12,14")
                positions = gr.Textbox("", label="Positions", placeholder="recommended; or f3+l3")
                rate = gr.Textbox("", label="Learning rate", placeholder="recommended; or 4e-3")
            with gr.Row():
                train = gr.Button("Train", variant="primary")
                stop = gr.Button("Stop the run")
            problem = show_problem()
            status = gr.Textbox(label="Run", interactive=False, lines=2)
            curve = gr.LinePlot(
                x="step",
                y="loss",
                height=250,
                title="Loss of each step",
                # A label would take its height from the plot, whose numbers of steps are cut.
                show_label=False,
            )
            download = gr.DownloadButton("Download the adapter", interactive=False)

    def begin(
        rows: Sequence[Sequence[object]],
        epochs: float | None,
        rank: float | None,
        layers: str,
        positions: str,
        rate: str,
    ) -> list[object]:
        try:
            settings = TrainSettings(
                layers=layers.strip() or None,
                positions=positions.strip() or None,
                rank=None if rank is None else int(rank),
                epochs=epochs or TrainSettings.epochs,
                learning_rate=read_number(rate),
            )
            run = runs.start(read_pairs(rows), settings)
        except FIXABLE as error:
            return [gr.skip(), show_problem(error)]
        return [run.directory.name, show_problem()]

    def follow(name: str | None, own: Adapters) -> Iterator[list[object]]:
        run = runs.get(name)
        nothing = [gr.skip()] * (2 + len(chooser.outputs))
        if run is None:
            # Components that are given nothing at all are emptied.
            yield [gr.skip(), gr.skip(), *nothing]
            return
        before = None
        while True:
            now = run.state, len(run.losses)
            if now != before:
                before = now
                yield [_describe(run), _curve(run), *nothing]
            if run.ended:
                break
            time.sleep(_SECONDS)
        if run.adapter is None:
            yield [_describe(run), _curve(run), show_problem(run.error), *nothing[1:]]
            return
        file = gr.DownloadButton(value=str(run.pack(scratch)), interactive=True)
        added = chooser.add_own(own, f"trained {run.directory.name}", run.adapter)
        yield [_describe(run), _curve(run), show_problem(), file, *added]

    def end(name: str | None) -> None:
        if (run := runs.get(name)) is not None:
            run.stop()

    def fill(path: str) -> list[object]:
        try:
            return [read_file(path), show_problem()]
        except FIXABLE as error:
            return [gr.skip(), show_problem(error)]

    begun = train.click(
        begin, [pairs, epochs, rank, layers, positions, rate], [mine, problem], api_name="train"
    )
    # Also when a page is opened: its user may have a run.
    for event in (begun.success, page.load):
        event(
            follow,
            [mine, chooser.own],
            [status, curve, problem, download, *chooser.outputs],
            concurrency_limit=None,
            show_progress="hidden",
            api_name="follow",
        )
    stop.click(end, mine, None, api_visibility="private")
    file.upload(fill, file, [pairs, problem], api_visibility="private")


def _describe(run: Run) -> str:
    step = f"step {len(run.losses)} of {run.steps}"
    if run.losses:
        step += f", loss {run.losses[-1]:.4f}"
    if run.state == "waiting":
        return "Waiting for another run to end."
    if run.state == "running":
        return f"Training: {step}."
    if run.state == "finished":
        return f"Finished: {step}. It is chosen in the other tab, and saved in {run.directory}."
    goes_on = run.command()
    return f"{run.state.capitalize()} at {step}." + (f" To go on: {goes_on}" if goes_on else "")


def _curve(run: Run) -> pd.DataFrame:
    losses = run.losses.copy()
    return pd.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})
