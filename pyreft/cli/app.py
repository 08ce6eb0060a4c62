"""The commands, their arguments and their errors.

Nothing heavy is imported before a command runs, so that `pyreft --help` comes at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import pyreft
from pyreft.cli import model_commands
from pyreft.cli.options import Activation, Base, Positions, Revision, Source, Target, Token

app = typer.Typer(
    name="pyreft",
    help="Train ReFT adapters, use them, look into them, convert, merge and share them.",
    epilog="Every command has a --help of its own. Nothing that an adapter holds is ever run.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class Format(str, Enum):
    """Formats that an adapter is written in."""

    pyreft = "pyreft"
    upstream = "upstream"
    peft = "peft"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 on success, 1 on an error, 2 on wrong arguments.

    Args:
        arguments: The arguments after `pyreft`; those of this process by default.
    """
    try:
        app(args=None if arguments is None else list(arguments), prog_name="pyreft")
    except (ValueError, TypeError, OSError, ImportError) as error:
        # Errors that users can fix; any other is a defect of pyreft, and has a traceback.
        print(f"pyreft: {_in_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _in_one_line(error: Exception) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    text = " ".join(line for line in lines if line) or type(error).__name__
    return "".join(character if character.isprintable() else "?" for character in text)


def _find(adapter: str, revision: str | None, token: str | None) -> Path:
    """The directory of an adapter of any format, downloaded if necessary."""
    from pyreft.compat.formats import FILE_PATTERNS
    from pyreft.sharing import HubSource, find_adapter

    return find_adapter(adapter, HubSource(revision=revision, token=token), FILE_PATTERNS)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyreft {pyreft.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


app.command()(model_commands.train)
app.command(name="eval")(model_commands.evaluate)
app.command()(model_commands.generate)
app.command()(model_commands.chat)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
    model_commands.serve
)
app.command()(model_commands.demo)


@app.command()
def inspect(
    adapter: Source,
    revision: Revision = None,
    token: Token = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show what an adapter is, what it edits, and whether it is intact.

    Reads our format, stanfordnlp/pyreft's and adapter-hub's. The exit code is 1 if it is broken.

    Example: pyreft inspect owner/name
    """
    from pyreft.cli.report import read_report
    from pyreft.sharing import AdapterError

    try:
        report = read_report(adapter, _find(adapter, revision, token))
    except AdapterError as error:
        if as_json:
            broken = {"adapter": adapter, "intact": False, "error": str(error)}
            typer.echo(json.dumps(broken, indent=2))
        raise
    typer.echo(json.dumps(report.values, indent=2) if as_json else str(report))


@app.command()
def components(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A directory, or a repository: owner/name.")
    ],
    revision: Revision = None,
    token: Token = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show what can be edited in a model, with layers, widths and kinds of tokens.

    Only its config is read, not its weights.

    Example: pyreft components HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from pyreft.cli.components import as_json as to_json, components_of

    found = components_of(model, revision, token)
    typer.echo(json.dumps(to_json(found), indent=2) if as_json else "\n".join(map(str, found)))


@app.command()
def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Show releases, the facts relied on, processors and fast paths, for a bug report.

    Example: pyreft env
    """
    from pyreft.cli.environment import describe_environment, format_environment

    found = describe_environment()
    typer.echo(json.dumps(found, indent=2) if as_json else format_environment(found))


@app.command()
def convert(
    adapter: Source,
    directory: Target,
    to: Annotated[Format, typer.Option(help="The format to write.")],
    base: Base = None,
    positions: Positions = None,
    act_fn: Activation = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Write an adapter in another format.

    pyreft is ours, from stanfordnlp/pyreft's and adapter-hub's; upstream is stanfordnlp/pyreft's;
    peft is a LoRA, of an adapter that edits every token at the output of linear maps.

    Example: pyreft convert adapter upstream_adapter --to upstream
    """
    from pyreft.cli.loading import is_ours, load_model, read_foreign
    from pyreft.compat.upstream_files import is_upstream, write_upstream
    from pyreft.sharing import read_adapter

    source = _find(adapter, revision, token)
    if (to is Format.pyreft and is_ours(source)) or (
        to is Format.upstream and not is_ours(source) and is_upstream(source)
    ):
        raise ValueError(f"{adapter} is in the format {to.value} already.")
    if to is Format.upstream:
        ours = is_ours(source)
        write_upstream(read_adapter(source) if ours else read_foreign(source, [], None), directory)
    else:
        model = load_model(source, base, token, positions or (), act_fn)
        if to is Format.peft:
            model.export_lora(directory)
        else:
            model.save_pretrained(directory)
    typer.echo(f"{adapter} is in {directory}, in the format {to.value}.")


@app.command()
def merge(
    adapter: Source,
    directory: Target,
    base: Base = None,
    positions: Positions = None,
    act_fn: Activation = None,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Put an adapter into the weights of its base model.

    What is saved is a plain model of transformers, which needs no pyreft. The adapter must edit
    every token at the output of linear maps, without an activation.

    Example: pyreft merge adapter merged_model
    """
    from pyreft.cli.loading import load_model
    from pyreft.sharing.whole import new_directory

    source = _find(adapter, revision, token)
    with new_directory(directory) as path:
        model = load_model(source, base, token, positions or (), act_fn)
        model.merge_and_unload().save_pretrained(path)
    typer.echo(f"The base model of {adapter}, with it in its weights, is in {directory}.")


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Where the adapter is.")],
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Of a repository that is made.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch, made if there is none.", metavar="NAME")
    ] = None,
    message: Annotated[
        str | None, typer.Option(help="What is said of the commit.", metavar="TEXT")
    ] = None,
    token: Token = None,
) -> None:
    """Put an adapter into a repository of the Hub, in one commit.

    Its own files and its card are pushed; other files in the directory are not.

    Example: pyreft push adapter owner/name --private
    """
    from pyreft.cli.pushing import push_adapter

    commit = push_adapter(
        directory,
        repository,
        private=private,
        revision=revision,
        commit_message=message,
        token=token,
    )
    typer.echo(commit.commit_url)


@app.command()
def pull(
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="owner/name.")],
    directory: Target,
    revision: Revision = None,
    token: Token = None,
) -> None:
    """Download an adapter from the Hub into a directory, if it is intact.

    Example: pyreft pull owner/name adapter
    """
    from pyreft.cli.pushing import pull_adapter

    pull_adapter(repository, directory, revision=revision, token=token)
    typer.echo(f"{repository} is in {directory}.")


@app.command()
def migrate(
    scripts: Annotated[list[Path], typer.Argument(metavar="SCRIPT...", help=".py or .ipynb.")],
    write: Annotated[bool, typer.Option("--write", help="Apply the edits.")] = False,
) -> None:
    """Show the edits that a script written for stanfordnlp/pyreft 0.1.0 needs, as a diff.

    They are for what transformers, TRL, datasets, PEFT and accelerate renamed or removed since.
    What is for you to decide is listed below the diff. The scripts are read and never run.

    Example: pyreft migrate train.py --write
    """
    from pyreft.cli.migrate import migrate_files

    for line in migrate_files(scripts, write):
        typer.echo(line, nl=False)
