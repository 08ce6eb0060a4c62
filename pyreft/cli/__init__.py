"""`pyreft` on the command line: what people do with adapters as files."""

from pyreft.cli.app import main

__all__ = ["main"]
