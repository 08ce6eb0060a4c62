"""Upstream's names and conventions, and formats of other libraries, on top of all the rest."""
