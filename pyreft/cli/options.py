"""Arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="A directory, or a repository: owner/name.")
]
Target = Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A new or empty directory.")]
Revision = Annotated[
    str | None, typer.Option(help="A branch, tag or commit of the repository.", metavar="NAME")
]
Base = Annotated[
    str | None,
    typer.Option(help="The base model, in place of the one the adapter names.", metavar="NAME"),
]
Token = Annotated[
    str | None,
    typer.Option(help="Of the Hub; the one you logged in with by default.", metavar="TOKEN"),
]
Positions = Annotated[
    list[str] | None,
    typer.Option(
        help="The positions of an adapter of stanfordnlp/pyreft, which its files lack, such "
        "as f7+l7; twice if first and last positions have weights of their own.",
        metavar="SPEC",
    ),
]
Activation = Annotated[
    str | None,
    typer.Option(help="The activation of such an adapter, which they lack.", metavar="NAME"),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Rows of prompt and completion, or of messages: a JSON, JSON lines, CSV, TSV or "
        "Parquet file, or a data set on the Hub.",
    ),
]
