"""One request: two answers, and the prompt with its edited tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, cast

from transformers import BatchEncoding, StoppingCriteriaList

from pyreft.annotations import Arguments
from pyreft.demo.choice import Choice, edited
from pyreft.demo.streaming import Stop, Text
from pyreft.pictures import EditStrengths, edit_strengths

if TYPE_CHECKING:
    from pyreft.demo.playground import Playground


@dataclass(frozen=True)
class Answers:
    """What is known of a request so far.

    Args:
        base: The answer of the base model.
        adapter: The answer with the adapter.
        marked: The prompt with its edited tokens; None before it is measured.
    """

    base: str = ""
    adapter: str = ""
    marked: EditStrengths | None = None


@dataclass
class Request:
    """A prompt of a user.

    Args:
        playground: What is asked.
        prompt: The prompt.
        choice: What edits; None asks the base model alone.
        new_tokens: The most tokens of an answer.
        put: Called with what is known, each time that there is more; with an error; and with
            None at the end.
        stop: Ends the request once it is set.
    """

    playground: Playground
    prompt: str
    choice: Choice | None
    new_tokens: int
    put: Callable[[Answers | BaseException | None], None]
    stop: Event
    _known: Answers = field(default_factory=Answers)

    def run(self) -> None:
        """Wait for the model, and answer."""
        try:
            with self.playground.turn:
                if not self.stop.is_set():
                    self._answer()
        except BaseException as error:
            self.put(error)
        finally:
            self.put(None)

    def _answer(self) -> None:
        playground, choice = self.playground, self.choice
        inputs = playground.encode(self.prompt, self.new_tokens)
        if choice is not None:
            with edited(playground.base, choice) as model:
                strengths = edit_strengths(model, playground.tokenizer, inputs)
            self._show(marked=_without_zeros(strengths))
        key = self.prompt, self.new_tokens
        bare = playground.bare_answers.get(key)
        if bare is None:
            generate = cast("Callable[..., object]", playground.base.generate)
            bare = self._generate(generate, inputs, "base")
            if not self.stop.is_set():
                playground.keep_bare(key, bare)
        self._show(base=bare)
        if choice is not None and not self.stop.is_set():
            with edited(playground.base, choice) as model:
                self._generate(model.generate, inputs, "adapter")

    def _generate(
        self, generate: Callable[..., object], inputs: BatchEncoding, shown_as: str
    ) -> str:
        text = Text(self.playground.tokenizer, lambda text: self._show(**{shown_as: text}))
        settings: Arguments = {
            "max_new_tokens": self.new_tokens,
            "do_sample": False,
            "stopping_criteria": StoppingCriteriaList([Stop(self.stop)]),
            "streamer": text,
        }
        generate(**inputs, **settings)
        return text.text

    def _show(self, **more: object) -> None:
        self._known = replace(self._known, **more)  # type: ignore[arg-type]  # fields, by name
        self.put(self._known)


def _without_zeros(strengths: EditStrengths) -> EditStrengths:
    """Edits of nothing, such as those of layers that are off, are not marked."""
    measured = strengths.strength
    return replace(strengths, strength=measured.masked_fill(measured == 0, math.nan))
