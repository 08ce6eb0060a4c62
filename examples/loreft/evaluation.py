"""Rows -> generated answers -> a score: the one evaluation of all methods and tasks.

Rows are sorted by length and padded at the left. What is generated is appended to a file batch by
batch, so that an evaluation that was interrupted goes on where it stopped.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

import answers
from arguments import Arguments
from pyreft.data.tokenize import tokenize_prompt
from tasks import Task


@dataclass
class Report:
    """What an evaluation found.

    Args:
        rows: Number of rows.
        right: Number of right answers; None if the task has none.
        unextracted: Number of generated texts that no rule finds an answer in. They count as wrong.
        seconds: Spent generating in this process.
    """

    rows: int = 0
    right: int | None = None
    unextracted: int = 0
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """The share of right answers."""
        return None if self.right is None or not self.rows else self.right / self.rows

    def as_json(self) -> dict[str, Any]:
        """Its fields and the score."""
        return {**asdict(self), "score": self.score}


class Evaluation:
    """Generates answers to the rows of a data set and scores them.

    Args:
        task: What the rows are of.
        tokenizer: Of the base model.
        arguments: Of the run.
    """

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, arguments: Arguments
    ) -> None:
        self.task, self.tokenizer, self.arguments = task, tokenizer, arguments
        settings = dict(task.greedy if arguments.greedy_decoding else task.decoding)
        for name in ("temperature", "top_p", "top_k"):
            if getattr(arguments, name) is not None:
                settings[name] = getattr(arguments, name)
        self.settings = settings

    def run(
        self, model: nn.Module, rows: list[dict[str, str]], file: Path | None, name: str
    ) -> tuple[Report, list[dict[str, Any]]]:
        """Evaluate a model.

        Args:
            model: With `generate`.
            rows: Of a data set.
            file: JSON lines, one for each row that is done, or None to keep nothing.
            name: Of the data set, for the progress bar.

        Returns:
            The report, and of each row what was generated and the answer in it.
        """
        lines = [] if file is None else read_lines(file)
        done = {line["row"]: line for line in lines if line["row"] < len(rows)}
        report = Report(right=None if self.task.answer is None else 0)
        for line in done.values():
            _count(report, line)
        was_training = model.training
        model.eval()
        with tqdm(total=len(rows), initial=len(done), desc=name, unit="row") as bar:
            for batch in self._batches(rows, done):
                start = time.perf_counter()
                texts = self._generate(model, [rows[index] for index in batch], batch[0])
                report.seconds += time.perf_counter() - start
                lines = [
                    {"row": index, **self._answer(rows[index], text)}
                    for index, text in zip(batch, texts, strict=True)
                    if index not in done
                ]
                for line in lines:
                    done[line["row"]] = line
                    _count(report, line)
                if file is not None:
                    append_lines(file, lines)
                bar.update(len(batch))
                if report.score is not None:
                    bar.set_postfix(score=f"{report.score:.3f}", unextracted=report.unextracted)
        model.train(was_training)
        if report.unextracted:
            share = f"{report.unextracted} of {report.rows}"
            print(f"{name}: no answer could be found in {share} texts.", file=sys.stderr)
        return report, [done[index] for index in sorted(done)]

    def prompt(self, row: dict[str, str]) -> str:
        """The prompt of a row, as in training."""
        return prompt_of(row, self.task, self.tokenizer, self.arguments.chat_template)

    def _batches(self, rows: list[dict[str, str]], done: dict[int, Any]) -> Iterator[list[int]]:
        """Indices of rows, the longest first: what does not fit in memory fails at once."""
        lengths = [len(self.prompt(row)) for row in rows]
        order = sorted(range(len(rows)), key=lambda index: -lengths[index])
        size = self.arguments.eval_batch_size
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            if any(index not in done for index in batch):
                yield batch

    @torch.no_grad()
    def _generate(self, model: nn.Module, rows: list[dict[str, str]], number: int) -> list[str]:
        # A template has the tokens that begin a text.
        special = not self.arguments.chat_template
        given = [tokenize_prompt(self.tokenizer, self.prompt(row), special)[0] for row in rows]
        prompts = self.tokenizer.pad(
            {"input_ids": given}, padding_side="left", return_tensors="pt"
        ).to(next(model.parameters()).device)
        # Each batch has a seed of its own, so that a resumed evaluation samples the same. Training
        # goes on with the random numbers that it had.
        with torch.random.fork_rng():
            torch.manual_seed(self.arguments.seed + number)
            ids = model.generate(
                **prompts, pad_token_id=self.tokenizer.pad_token_id, **self.settings
            )
        new = ids[:, prompts["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _answer(self, row: dict[str, str], generated: str) -> dict[str, Any]:
        """What is kept of a row, in upstream's fields."""
        if self.task.answer is None:
            return {"instruction": row["instruction"], "output": generated}
        answer = answers.extract(self.task.answer, generated, row["answer"])
        return {
            "instruction": row["instruction"],
            "raw_generation": generated,
            "generation": answer,
            "answer": row["answer"],
            "right": answers.is_right(answer, row["answer"]),
        }


def prompt_of(
    row: dict[str, str], task: Task, tokenizer: PreTrainedTokenizerBase, chat: bool
) -> str:
    """The prompt of a row."""
    if not chat:
        return filled(row, task)
    turn = [{"role": "user", "content": filled(row, task)}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)


def filled(row: dict[str, str], task: Task) -> str:
    """The task's template with a row's fields in it."""
    template = task.prompt_with_input if row["input"] and task.prompt_with_input else task.prompt
    return template.format(**row)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; a last one that was being written when a run died is left out."""
    if not file.exists():
        return []
    whole = file.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def append_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    """Append JSON lines after the last complete line."""
    whole = 0
    if file.exists():
        whole = file.read_bytes().rfind(b"\n") + 1
    with open(file, "r+b" if file.exists() else "wb") as opened:
        opened.truncate(whole)
        opened.seek(whole)
        opened.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _count(report: Report, line: dict[str, Any]) -> None:
    report.rows += 1
    if report.right is not None:
        report.right += line["right"]
        report.unextracted += line["generation"] is None
