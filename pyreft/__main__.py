"""`python -m pyreft` is `pyreft`."""

from pyreft.cli import main

main()
