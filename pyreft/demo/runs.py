"""Training runs, each in a thread that no connection can end."""

from __future__ import annotations

import json
import logging
import secrets
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event, Lock, Thread

import yaml
from datasets import Dataset
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from pyreft.compat.wrapping import get_reft_model
from pyreft.data import make_examples
from pyreft.demo.playground import FIXABLE, Playground
from pyreft.demo.turn import Turn
from pyreft.sharing import Adapter
from pyreft.training import recommended
from pyreft.training.settings import TrainSettings, choose_config, make_trainer

logger = logging.getLogger(__name__)

Pairs = Sequence[tuple[str, str]]
ROWS_NAME, SETTINGS_NAME, FOLDER = "rows.jsonl", "settings.yaml", "adapter"


class Run:
    """One run, which `pyreft train` can go on with.

    Args:
        playground: The base model that it trains on.
        pairs: Prompts of a user, each with its answer.
        settings: The options.
        directory: A new directory, for its rows and options, and a folder with the checkpoints
            and the adapter.

    Attributes:
        losses: The loss of each step so far.
        steps: The number of all steps, 0 until it is known.
        state: "waiting", "running", "finished", "stopped" or "failed".
        error: Why it failed.
        adapter: The trained adapter, when it is finished.
    """

    def __init__(
        self, playground: Playground, pairs: Pairs, settings: TrainSettings, directory: Path
    ) -> None:
        self.directory, self.settings = directory, settings
        self.losses: list[float] = []
        self.steps, self.state = 0, "waiting"
        self.error: Exception | None = None
        self.adapter: Adapter | None = None
        self._playground, self._stop = playground, Event()
        self._rows = [_row(playground, *pair) for pair in pairs]

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state not in ("waiting", "running")

    def command(self) -> str | None:
        """The command that goes on from the last checkpoint, if there is one."""
        if not list((self.directory / FOLDER).glob("checkpoint-*")):
            return None
        name, at = self._playground.base.config.name_or_path, self.directory
        places = f"{at / ROWS_NAME} {at / FOLDER} --config {at / SETTINGS_NAME}"
        return f"pyreft train {name} {places} --resume"

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def pack(self, folder: Path) -> Path:
        """Put the adapter into one file in a folder, without the checkpoints."""
        path = folder / f"{self.directory.name}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted((self.directory / FOLDER).iterdir()):
                if file.is_file():
                    archive.write(file, f"{FOLDER}/{file.name}")
        return path

    def stop(self) -> None:
        """End after the step that is running; its last checkpoint stays."""
        self._stop.set()

    def train(self, one_at_a_time: Lock) -> None:
        """Train, and save the adapter. Errors are kept in `error`."""
        try:
            with one_at_a_time:
                if not self._stop.is_set():
                    self.state = "running"
                    self._train()
            self.state = "stopped" if self.adapter is None else "finished"
        except Exception as error:
            if not isinstance(error, FIXABLE):
                logger.exception("The run in %s failed.", self.directory)
            self.error, self.state = error, "failed"

    def _train(self) -> None:
        playground, settings, directory = self._playground, self.settings, self.directory
        base, tokenizer = playground.base, playground.tokenizer
        chosen = recommended(base)
        config = choose_config(settings, chosen)
        with playground.turn:
            examples = make_examples(
                Dataset.from_list(self._rows), tokenizer, max_length=settings.max_length
            )
            set_seed(settings.seed)
            edited = get_reft_model(base, config)
        turns = _Turns(playground.turn, self)
        try:
            directory.mkdir(parents=True)
            rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
            (directory / ROWS_NAME).write_text(rows, encoding="utf-8")
            (directory / SETTINGS_NAME).write_text(yaml.safe_dump(asdict(settings)))
            folder = directory / FOLDER
            trainer = make_trainer(edited, examples, tokenizer, folder, settings, chosen)
            trainer.remove_callback(ProgressCallback)
            trainer.add_callback(turns)
            trainer.train()
            if not self._stop.is_set():
                edited.save_pretrained(folder)
        finally:
            turns.end()
            with playground.turn:
                edited.unwrap()
        if not self._stop.is_set():
            self.adapter = playground.read(folder)


class Runs:
    """All runs of a playground: one trains, the others wait for it.

    Args:
        playground: The base model that they train on.
        directory: Where each gets a directory of its own.
    """

    def __init__(self, playground: Playground, directory: Path) -> None:
        self.playground, self.directory = playground, directory
        self._by_name: dict[str, Run] = {}
        self._one_at_a_time = Lock()

    def start(self, pairs: Pairs, settings: TrainSettings) -> Run:
        """Begin a run.

        Raises:
            ValueError: If a pair or an option is not possible.
        """
        if not pairs:
            raise ValueError("there is no pair to train on: fill in a prompt and its answer.")
        choose_config(settings, recommended(self.playground.base))
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        run = Run(self.playground, pairs, settings, self.directory.resolve() / name)
        self._by_name[name] = run
        Thread(target=run.train, args=(self._one_at_a_time,), daemon=True).start()
        return run

    def get(self, name: str | None) -> Run | None:
        """The run whose directory has this name, if there is one."""
        return self._by_name.get(name or "")


class _Turns(TrainerCallback):
    """A step has the model for itself; between two steps others have it."""

    def __init__(self, turn: Turn, run: Run) -> None:
        self._turn, self._run, self._mine = turn, run, False

    def end(self) -> None:
        """Give the model back, also after an error in a step."""
        if self._mine:
            self._mine = False
            self._turn.release()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._run.steps = state.max_steps

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self._turn.acquire()
        self._mine = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.end()
        control.should_training_stop |= self._run.stopping

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: object,
    ) -> None:
        if logs and "loss" in logs:
            self._run.losses.append(logs["loss"])


def _row(playground: Playground, prompt: str, answer: str) -> dict[str, object]:
    """A pair as a row of data, with the prompt as it is asked in the playground."""
    if playground.tokenizer.chat_template is None:
        return {"prompt": prompt, "completion": answer}
    turns = (("user", prompt), ("assistant", answer))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}
