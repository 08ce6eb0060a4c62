"""Running `pyreft` in this process."""

import pytest

from pyreft.cli import main


def run(*arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return exit.value.code
