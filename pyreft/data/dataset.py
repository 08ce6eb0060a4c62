"""ReftDataset: rows -> tokenized examples with positions, kept in memory. Made to be subclassed.

load_dataset                          a file, the Hub, memory -> rows
tokenize                              row -> input_ids, labels; length of the prompt
compute_intervention_and_subspaces    -> intervention_locations, subspaces, id
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from pyreft.data.leading_pad import plain, put_pad_first
from pyreft.data.locations import locate, spec_of_each
from pyreft.data.sources import as_rows, load_rows
from pyreft.data.tokenize import IGNORE, NoRoomError, describe_cut, describe_left_out, room
from pyreft.positions import PositionSpec
from pyreft.positions.counted_pad import count_from_text
from pyreft.positions.integers import get_intervention_locations

logger = logging.get_logger(__name__)


class ReftDataset(Dataset):
    """The frame of upstream's data sets: a subclass says in `tokenize` what a row becomes.

    Everything is tokenized at once and kept in memory. For data to be cached on disk, tokenized
    by several processes or streamed there is `make_examples`.

    Args:
        task: Name of a data set on the Hub, if the rows come from there.
        data_path: A JSON, JSON lines, CSV, TSV or Parquet file or a directory of such; or the
            configuration of the data set `task`; see `pyreft.data.sources`.
        tokenizer: The base model's tokenizer.
        data_split: Which split to take; a file is one split.
        dataset: Rows in memory: a `datasets.Dataset`, a pandas frame or a list of dicts.
        seed: Seed of the choice of `max_n_example` rows.
        max_n_example: How many rows to take at most, at random; all by default.
        position: The position spec, such as "f7+l7". Without one the examples have no
            positions, and those in the model's config hold.
        num_interventions: Number of interventions of the model: one for each layer with
            `share_weights`; without, one for each layer and each part of the spec.
        share_weights: Whether each intervention edits all positions.
        **kwargs: For `preprocess` and `postprocess`, where a subclass reads arguments of its own.

    Attributes:
        task_dataset: The rows.
        raw_dataset: The rows as well, but None for the split "train".
        result: The examples, a list of dicts.
        first_n: The number of first tokens in an "f<n>+l<n>" position.
        last_n: The number of last tokens in it.
        pad_mode: "first" where examples with positions begin with a pad token, which positions
            count, as upstream's do; a subclass may set another in `preprocess`.
        positions: The spec of each intervention, which a trainer records in the adapter; None if
            positions of an example are not where the adapter would find them by itself.

    Raises:
        TypeError: If an argument is missing or unknown, or the rows are a stream.
        ValueError: If there are no rows, a column is missing, `num_interventions` does not fit
            the position; or, with its row, if a row makes no example. Rows whose prompt leaves no
            room for a completion are left out, with a warning.
    """

    # What is cut where a text is too long for the tokenizer.
    _cut_part = "completions"

    def __init__(
        self,
        task: str | None,
        data_path: str | os.PathLike | None,
        tokenizer: Any,
        data_split: str = "train",
        dataset: Any = None,
        seed: int = 42,
        max_n_example: int | None = None,
        *,
        position: Any = None,
        num_interventions: int = 1,
        share_weights: bool = False,
        **kwargs: Any,
    ) -> None:
        self.task, self.data_path, self.data_split = task, data_path, data_split
        self.dataset, self.seed, self.max_n_example = dataset, seed, max_n_example
        self.tokenizer = tokenizer
        self.first_n = self.last_n = 0
        # What upstream's subclasses read that put in pad tokens themselves.
        self.pad_mode: str | None = "first"
        self.fields_to_mask = ["input_ids"]
        self.fields_to_pad = ["input_ids", "labels"]
        self._specs: list[PositionSpec] = []
        if position is not None:
            spec = PositionSpec.parse(position)
            self.first_n, self.last_n = spec.first, spec.last
            self._specs = spec_of_each(spec, num_interventions, share_weights)
        self.raw_dataset: Any = None
        self._columns: list[str] = []
        self._limit, self._cut = room(tokenizer), list[int]()
        kwargs |= {"position": position, "num_interventions": num_interventions}
        kwargs["share_weights"] = share_weights
        self.preprocess(kwargs)
        self.task_dataset: Any = self.load_dataset()
        self.postprocess(kwargs)
        _require_columns(self.task_dataset, self._columns)
        self.result: list[dict[str, Any]] = []
        self.positions: list[PositionSpec] | None = self._specs or None
        self._tokenize_all(kwargs)

    def _tokenize_all(self, kwargs: dict[str, Any]) -> None:
        rows, elsewhere, left_out = self.task_dataset, 0, list[int]()
        for index, row in enumerate(logging.tqdm(rows, "Tokenizing", total=len(rows))):
            try:
                example, last_position = self.tokenize(row)
                example = self.compute_intervention_and_subspaces(
                    index, row, example, last_position, **kwargs
                )
                elsewhere += not self._is_where_the_adapter_looks(example)
            except NoRoomError:
                left_out.append(index)
                continue
            except ValueError as error:
                raise ValueError(f"row {index}: {str(error).rstrip('.')}.") from error
            self.result.append(example)
        if left_out:
            logger.warning(describe_left_out(left_out, len(rows), self._limit))
        if any(self._cut):
            logger.warning(describe_cut(self._cut, self._limit, self._cut_part))
        if elsewhere:
            self.positions = None
            logger.warning(
                f"{elsewhere} of {len(rows)} examples have positions that are not those of "
                f"{self._specs[0]!r} in their prompts, which end at the first label that is not "
                "-100. So they cannot be recorded in the adapter, and every call of it needs "
                "intervention_locations. `tokenize` should return the number of prompt tokens."
            )

    # ---- what a subclass overrides ------------------------------------------------------

    def preprocess(self, kwargs: dict[str, Any]) -> None:
        """Read arguments, before the rows are loaded."""

    def load_dataset(self) -> Any:
        """The rows: those given, or loaded, of which `max_n_example` are chosen at random."""
        if self.dataset is not None:
            rows = as_rows(self.dataset, self.data_split)
        else:
            rows = load_rows(self.task, self.data_path, self.data_split)
        if self.max_n_example is not None:
            rows = rows.shuffle(seed=self.seed).select(range(min(self.max_n_example, len(rows))))
        self.raw_dataset = rows if self.data_split != "train" else None
        return rows

    def postprocess(self, kwargs: dict[str, Any]) -> None:
        """Change `task_dataset`, before it is tokenized."""

    def tokenize(self, data_item: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Make an example of a row.

        Returns:
            The example with its input_ids, and labels if there are any; and the number n of
            prompt tokens: "l1" is index n - 1.

        Raises:
            ValueError: If the row makes no example; the row's number is put before the message.
        """
        raise NotImplementedError(f"{type(self).__name__} must define tokenize(self, data_item).")

    def compute_intervention_and_subspaces(
        self,
        id: int,
        data_item: dict[str, Any],
        result: dict[str, Any],
        last_position: int,
        **_: Any,
    ) -> dict[str, Any]:
        """Add to an example what is not text.

        Args:
            id: Number of the row.
            data_item: The row. Its `subspaces`, if it has any, hold for every intervention.
            result: The example, from `tokenize`.
            last_position: The number of prompt tokens, from `tokenize`.

        Returns:
            The example with id, attention_mask, and, if it has any, intervention_locations (I
            lists of positions) and subspaces (I lists of directions).
        """
        ids = result["input_ids"]
        example: dict[str, Any] = {"id": id}
        example["attention_mask"] = torch.ones(len(ids), dtype=torch.long)
        locations = self.get_intervention_locations(
            last_position=last_position, first_n=self.first_n, last_n=self.last_n, input_ids=ids
        )
        example |= self._subspaces(data_item) | result
        if locations is None:
            return example
        if self.pad_mode != "first":
            return example | {"intervention_locations": locations}
        return put_pad_first(
            example, locations, self.tokenizer.pad_token_id or 0, self.fields_to_pad
        )

    def get_intervention_locations(
        self, *, last_position: int, input_ids: Sequence[int] | None = None, **kwargs: Any
    ) -> list[list[int]] | None:
        """Positions for each intervention, or None to leave them to the model.

        Without `input_ids`, as subclasses call it that put in pad tokens of their own, they are
        upstream's integers, see `pyreft.get_intervention_locations`.
        """
        if input_ids is None:
            numbers = {
                n: kwargs.get(n, getattr(self, n)) for n in ("first_n", "last_n", "pad_mode")
            }
            shared = {n: kwargs[n] for n in ("num_interventions", "share_weights") if n in kwargs}
            return get_intervention_locations(last_position=last_position, **numbers, **shared)
        return locate(self._specs, input_ids, last_position) if self._specs else None

    # ---- what a torch data set has ------------------------------------------------------

    def __len__(self) -> int:
        return len(self.result)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.result[index])

    # ---- for the subclasses here --------------------------------------------------------

    def _subspaces(self, data_item: dict[str, Any]) -> dict[str, Any]:
        """The column of the directions that a row says, for every intervention, if it says any."""
        given = data_item.get("subspaces")
        return {} if given is None else {"subspaces": [list(given) for _ in self._specs]}

    def _take(
        self,
        kwargs: dict[str, Any],
        *columns: str,
        optional_columns: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        """Make attributes of the arguments that name columns, and of settings with a default."""
        known = [*columns, *optional_columns, *settings]
        shared = ["position", "num_interventions", "share_weights"]
        if unknown := sorted(set(kwargs) - {*known, *shared}):
            raise TypeError(
                f"{type(self).__name__} has no argument {unknown[0]!r}; beside those of every "
                f"ReftDataset it has {', '.join(known)}."
            )
        if missing := [name for name in columns if name not in kwargs]:
            raise TypeError(f"{type(self).__name__} needs {missing[0]}=, the name of a column.")
        for name in (*columns, *optional_columns):
            column = kwargs.get(name)
            setattr(self, name, column)
            self._columns += [column] if isinstance(column, str) else column or []
        for name, default in settings.items():
            setattr(self, name, kwargs.get(name, default))

    def _tokenize_text(self, *texts: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """Tokenize a text, or a pair of them, that has no completion: its end is cut to fit."""
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"a text to tokenize must be there and not empty, got {texts!r}")
        settings: dict[str, Any] = {"add_special_tokens": add_special_tokens, "verbose": False}
        encoded = self.tokenizer(*texts, **settings)
        length = len(encoded["input_ids"])
        if self._limit is not None and length > self._limit:
            encoded = self.tokenizer(*texts, truncation=True, max_length=self._limit, **settings)
        self._cut.append(length - len(encoded["input_ids"]))
        return dict(encoded)

    def _prompt_length(self, example: dict[str, Any]) -> int:
        """How many tokens the model takes for the prompt, if it is not told positions."""
        ids, labels = plain(example["input_ids"]), plain(example.get("labels"))
        if not isinstance(labels, list) or len(labels) != len(ids):
            return len(ids)
        return next((i for i, label in enumerate(labels) if label != IGNORE), len(ids))

    def _is_where_the_adapter_looks(self, example: dict[str, Any]) -> bool:
        """Whether an adapter with these specs would edit the positions of the example."""
        if not self._specs:
            return True
        mask, found = plain(example.get("attention_mask")), example.get("intervention_locations")
        before = mask.index(1) if isinstance(mask, list) and 1 in mask else 0
        ids = plain(example["input_ids"])[before:]
        n = self._prompt_length(example) - before
        if found is not None and before:
            counted = count_from_text(torch.as_tensor(found)[None], torch.tensor([before]))
            found = None if counted is None else counted[0]
        return n > 0 and plain(found) == locate(self._specs, ids, n)


def _require_columns(rows: Any, columns: Sequence[str]) -> None:
    if len(rows) == 0:
        raise ValueError("the data set is empty.")
    there = list(rows[0])
    if missing := [name for name in columns if name not in there]:
        raise ValueError(f"the data set has no column {missing[0]!r}; it has {', '.join(there)}.")
