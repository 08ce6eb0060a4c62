"""The commands that run a model: train, eval, generate, chat, serve, demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pyreft.cli.options import Base, Data, Revision, Source, Token

NewTokens = Annotated[int, typer.Option(help="Of an answer, at most.", metavar="N")]
Temperature = Annotated[
    float, typer.Option(help="Of sampling; 0 takes the likeliest token.", metavar="T")
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Give the prompt as it is, without the chat template.")
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of an example, at most.", metavar="N")]


def train(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A causal language model.")],
    data: Data,
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="For the adapter.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML with these options by name.", metavar="FILE")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="The paper's settings: commonsense, math, instruct.", metavar="NAME"),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="all, or indices such as 10,12,14.", metavar="LAYERS")
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Such as l1 or f7+l7.", metavar="SPEC")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of the edit.", metavar="R")] = None,
    kind: Annotated[str | None, typer.Option(help="Of intervention.", metavar="NAME")] = None,
    tied: Annotated[
        bool | None, typer.Option("--tied/--untied", help="Same weights at all positions or not.")
    ] = None,
    dropout: Annotated[float | None, typer.Option(help="Of the edit.", metavar="P")] = None,
    epochs: Annotated[float | None, typer.Option(help="3 by default.", metavar="N")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The recommended one by default.", metavar="RATE")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="8 by default.", metavar="N")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches of a step, 1 by default.", metavar="N")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the rate, linear by default.", metavar="NAME")
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(help="Part of all steps, 0 by default.", metavar="P")
    ] = None,
    max_length: MaxLength = None,
    seed: Annotated[int | None, typer.Option(help="42 by default.", metavar="N")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in DIRECTORY.")
    ] = False,
) -> None:
    """Train an adapter on prompts and completions, or chats.

    What is not given is what `pyreft.recommended` returns for the model, or what --preset has.
    Options override --config, which overrides --preset. Every epoch ends with a checkpoint.

    Example: pyreft train HuggingFaceTB/SmolLM2-135M-Instruct rows.jsonl adapter --epochs 10
    """
    from pyreft.cli.training import read_settings, train_adapter

    train_adapter(model, data, directory, read_settings(config, context.params), resume)
    typer.echo(f'The adapter is in {directory}. Try it: pyreft generate {directory} "..."')


def evaluate(
    adapter: Source,
    data: Data,
    base: Base = None,
    revision: Revision = None,
    token: Token = None,
    max_length: MaxLength = None,
    batch_size: Annotated[int, typer.Option(help="Rows at once.", metavar="N")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Compare the loss on completions with and without an adapter.

    Example: pyreft eval adapter held_out.jsonl
    """
    from pyreft.cli.answering import Answers
    from pyreft.cli.evaluation import completion_losses

    answers = Answers.load(adapter, base, revision, token)
    found = completion_losses(answers, data, max_length, batch_size)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name in ("base model", "adapter"):
        loss, perplexity = found[name]["loss"], found[name]["perplexity"]
        typer.echo(f"{name:12}loss {loss:.4f}, perplexity {perplexity:.4g}")
    typer.echo(f"on {found['tokens']:,} tokens of {found['rows']:,} completions")


def generate(
    adapter: Source,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Of the user.")],
    base: Base = None,
    revision: Revision = None,
    token: Token = None,
    max_new_tokens: NewTokens = 128,
    temperature: Temperature = 0.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what the base model answers as well.")
    ] = False,
    raw: Raw = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Answer prompts with an adapter.

    Example: pyreft generate adapter "What do cats like?" --compare
    """
    from pyreft.cli.answering import Answers

    answers = Answers.load(adapter, base, revision, token, max_new_tokens, temperature, raw)
    found = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        one = {"prompt": prompt, "answer": answers.answer(messages)}
        if compare:
            one["base model"] = answers.answer(messages, edited=False)
        found.append(one)
        if not as_json:
            typer.echo("\n".join(f"{name}: {text}" for name, text in one.items()) + "\n")
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))


def chat(
    adapter: Source,
    base: Base = None,
    revision: Revision = None,
    token: Token = None,
    max_new_tokens: NewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Talk with an adapter. An empty line begins a new conversation, Ctrl-D ends.

    Example: pyreft chat adapter
    """
    from pyreft.cli.answering import Answers

    answers = Answers.load(adapter, base, revision, token, max_new_tokens, temperature)
    answers.require_chat()
    messages: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            messages = []
            typer.echo("(a new conversation)")
            continue
        messages.append({"role": "user", "content": text})
        reply = answers.answer(messages, show=True)
        messages.append({"role": "assistant", "content": reply})


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A causal language model.")],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=ADAPTER]...", help="A directory, or owner/name."),
    ] = None,
    in_step: Annotated[int, typer.Option(help="Adapters in one step.", metavar="N")] = 64,
    in_memory: Annotated[int, typer.Option(help="Adapters in memory.", metavar="N")] = 512,
    load: Annotated[
        bool, typer.Option("--load", help="Let clients load adapters while it runs.")
    ] = False,
) -> None:
    """Serve a model and any number of adapters by vLLM, with its OpenAI API.

    A request names an adapter as its model. Several adapters with weights are one as well:
    mix=cats*0.5+dogs. Options of `vllm serve` come after the adapters. A server that dies is
    started again, with the adapters that it had loaded.

    Example: pyreft serve HuggingFaceTB/SmolLM2-135M-Instruct cats=adapter --port 8000
    """
    from pyreft.cli.serving import run_server

    raise typer.Exit(
        run_server(model, [*(adapters or []), *context.args], (in_step, in_memory), load)
    )


def demo(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A causal language model.")],
    adapters: Annotated[
        list[str] | None, typer.Argument(metavar="[ADAPTER]...", help="Directories, or owner/name.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 lets other machines reach the page.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="The first free one from 7860 by default.", metavar="N")
    ] = None,
    runs: Annotated[
        Path, typer.Option(help="For adapters that are trained in the page.", metavar="DIRECTORY")
    ] = Path("demo_runs"),
    max_prompt: Annotated[int, typer.Option(help="Tokens, at most.", metavar="N")] = 2048,
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    token: Token = None,
) -> None:
    """Compare adapters with their base model in a page of the browser, and train one there.

    The page is on this machine alone, and nothing is sent anywhere. Ctrl-C ends.

    Example: pyreft demo HuggingFaceTB/SmolLM2-135M-Instruct adapter
    """
    from pyreft.demo.address import serve

    serve(
        model,
        adapters or (),
        runs,
        host=host,
        port=port,
        browser=browser,
        token=token,
        max_prompt=max_prompt,
    )
