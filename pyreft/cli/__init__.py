"""The command line `pyreft`: train, use, inspect, convert, merge and share adapters."""

from pyreft.cli.app import main

__all__ = ["main"]
