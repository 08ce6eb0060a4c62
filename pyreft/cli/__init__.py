"""The command line `pyreft`: inspect, convert, merge and push adapters."""

from pyreft.cli.app import main

__all__ = ["main"]
