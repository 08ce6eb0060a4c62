"""The playground: a page in the browser that compares and trains adapters of one base model."""

from pyreft.demo.playground import Playground

__all__ = ["Playground"]
