"""ReftDataset: rows -> tokenized examples with positions, kept in memory. For subclasses.

load_dataset                          a file, the Hub, memory -> rows
tokenize                              row -> input_ids, labels; length of the prompt
compute_intervention_and_subspaces    -> intervention_locations, subspaces, id
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from datasets import Dataset as Rows
    from transformers import PreTrainedTokenizerBase

    from pyreft.annotations import Arguments, Example
    from pyreft.data.sources import InMemory
    from pyreft.positions.spec import Positions

logger = logging.get_logger(__name__)


class ReftDataset(Dataset["Example"]):
    """The base class of upstream's data sets: a subclass defines `tokenize`, row -> example.

    Everything is tokenized at once and kept in memory. To cache data on disk, to tokenize in
    several processes or to stream, use `make_examples`.

    Args:
        task: Name of a data set on the Hub, if the rows come from there.
        data_path: A file or a directory, see `pyreft.data.sources`; or the configuration of `task`.
        tokenizer: The base model's tokenizer.
        data_split: Which split to take; a file is one split.
        dataset: Rows in memory: a `datasets.Dataset`, a pandas frame or a list of dicts.
        seed: Seed of the random choice of `max_n_example` rows.
        max_n_example: The largest number of rows, chosen at random; all by default.
        position: The position spec, such as "f7+l7". Without one the examples have no
            positions, and those in the model's config are used.
        num_interventions: Number of interventions of the model: one for each layer with
            `share_weights`; without, one for each layer and each part of the spec.
        share_weights: Whether each intervention edits all positions.
        **kwargs: For `preprocess` and `postprocess`, in which a subclass reads its own arguments.

    Attributes:
        task_dataset: The rows.
        raw_dataset: The same rows, but None for the split "train".
        result: The examples, a list of dicts.
        first_n: The number n of "f<n>" in the position.
        last_n: The number n of "l<n>" in it.
        pad_mode: "first": examples with positions begin with a pad token, which positions count;
            a subclass may set another in `preprocess`.
        positions: The spec of each intervention, which a trainer records in the adapter; None if an
            example has other positions than the adapter would select.

    Raises:
        TypeError: If an argument is missing or unknown, or the rows are a stream.
        ValueError: If there are no rows, a column is missing, `num_interventions` does not fit
            the position, or a row cannot become an example. Rows whose prompt leaves no room for
            a completion are left out, with a warning.
    """

    # What is cut if a text is too long for the tokenizer.
    _cut_part = "completions"

    def __init__(
        self,
        task: str | None,
        data_path: str | os.PathLike[str] | None,
        tokenizer: PreTrainedTokenizerBase,
        data_split: str = "train",
        dataset: InMemory | None = None,
        seed: int = 42,
        max_n_example: int | None = None,
        *,
        position: Positions | None = None,
        num_interventions: int = 1,
        share_weights: bool = False,
        **kwargs: object,
    ) -> None:
        self.task, self.data_path, self.data_split = task, data_path, data_split
        self.dataset, self.seed, self.max_n_example = dataset, seed, max_n_example
        self.tokenizer = tokenizer
        self.first_n = self.last_n = 0
        # Upstream's subclasses that insert pad tokens themselves read these.
        self.pad_mode: str | None = "first"
        self.fields_to_mask = ["input_ids"]
        self.fields_to_pad = ["input_ids", "labels"]
        self._specs: list[PositionSpec] = []
        if position is not None:
            spec = PositionSpec.parse(position)
            self.first_n, self.last_n = spec.first, spec.last
            self._specs = spec_of_each(spec, num_interventions, share_weights)
        self.raw_dataset: Rows | None = None
        self._columns: list[str] = []
        self._limit, self._cut = room(tokenizer), list[int]()
        kwargs |= {"position": position, "num_interventions": num_interventions}
        kwargs["share_weights"] = share_weights
        self.preprocess(kwargs)
        self.task_dataset: Rows = self.load_dataset()
        self.postprocess(kwargs)
        _require_columns(self.task_dataset, self._columns)
        self.result: list[Example] = []
        self.positions: list[PositionSpec] | None = self._specs or None
        self._tokenize_all(kwargs)

    def _tokenize_all(self, kwargs: Arguments) -> None:
        rows, differing, left_out = self.task_dataset, 0, list[int]()
        for index, row in enumerate(logging.tqdm(rows, "Tokenizing", total=len(rows))):
            try:
                example, last_position = self.tokenize(row)
                example = self.compute_intervention_and_subspaces(
                    index, row, example, last_position, **kwargs
                )
                differing += not self._has_positions_of_specs(example)
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
        if differing:
            self.positions = None
            logger.warning(
                f"{differing} of {len(rows)} examples have positions that are not those of "
                f"{self._specs[0]!r} in their prompts, which end at the first label that is not "
                "-100. So they cannot be recorded in the adapter, and every call of it needs "
                "intervention_locations. `tokenize` should return the number of prompt tokens."
            )

    # ---- what a subclass overrides ------------------------------------------------------

    def preprocess(self, kwargs: Arguments) -> None:
        """Read arguments, before the rows are loaded."""

    def load_dataset(self) -> Rows:
        """The rows, given or loaded; at most `max_n_example` of them, chosen at random."""
        if self.dataset is not None:
            rows = as_rows(self.dataset, self.data_split)
        else:
            rows = load_rows(self.task, self.data_path, self.data_split)
        if self.max_n_example is not None:
            rows = rows.shuffle(seed=self.seed).select(range(min(self.max_n_example, len(rows))))
        self.raw_dataset = rows if self.data_split != "train" else None
        return rows

    def postprocess(self, kwargs: Arguments) -> None:
        """Change `task_dataset`, before it is tokenized."""

    def tokenize(self, data_item: Example) -> tuple[Example, int]:
        """Convert a row to an example.

        Returns:
            The example with its input_ids, and labels if there are any; and the number n of
            prompt tokens: "l1" is index n - 1.

        Raises:
            ValueError: If the row cannot become an example; its number is added to the message.
        """
        raise NotImplementedError(f"{type(self).__name__} must define tokenize(self, data_item).")

    def compute_intervention_and_subspaces(
        self,
        id: int,
        data_item: Example,
        result: Example,
        last_position: int,
        **_: object,
    ) -> Example:
        """Add the columns that are not text to an example.

        Args:
            id: Number of the row.
            data_item: The row. Its `subspaces`, if it has any, apply to every intervention.
            result: The example, from `tokenize`.
            last_position: The number of prompt tokens, from `tokenize`.

        Returns:
            The example with id, attention_mask, and any intervention_locations and subspaces.
        """
        ids = result["input_ids"]
        example: Example = {"id": id, "attention_mask": torch.ones(len(ids), dtype=torch.long)}
        locations = self.get_intervention_locations(
            last_position=last_position, first_n=self.first_n, last_n=self.last_n, input_ids=ids
        )
        example |= self._subspaces(data_item) | result
        if locations is None:
            return example
        if self.pad_mode != "first":
            return example | {"intervention_locations": locations}
        pad = self.tokenizer.pad_token_id or 0
        return put_pad_first(example, locations, pad, self.fields_to_pad)

    def get_intervention_locations(
        self, *, last_position: int, input_ids: Sequence[int] | None = None, **kwargs: Any
    ) -> list[list[int]] | None:
        """Positions for each intervention, or None to leave them to the model.

        Without `input_ids` they are upstream's integers, see `pyreft.get_intervention_locations`.
        Subclasses that insert their own pad tokens call it like this.
        """
        if input_ids is None:
            names = ("first_n", "last_n", "pad_mode")
            numbers = {n: kwargs.get(n, getattr(self, n)) for n in names}
            shared = {n: kwargs[n] for n in ("num_interventions", "share_weights") if n in kwargs}
            return get_intervention_locations(last_position=last_position, **numbers, **shared)
        return locate(self._specs, input_ids, last_position) if self._specs else None

    def __len__(self) -> int:
        return len(self.result)

    def __getitem__(self, index: int) -> Example:
        return dict(self.result[index])

    def _subspaces(self, data_item: Example) -> Example:
        """The column `subspaces`, for every intervention, if the row has it."""
        given = data_item.get("subspaces")
        return {} if given is None else {"subspaces": [list(given) for _ in self._specs]}

    def _take(
        self,
        kwargs: Arguments,
        *columns: str,
        optional_columns: Sequence[str] = (),
        **settings: object,
    ) -> None:
        """Set attributes from the arguments that name columns, and from settings with a default."""
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
        """Tokenize a text or a pair of texts without a completion; its end is cut to fit."""
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"a text to tokenize must be a string and not empty, got {texts!r}")
        settings: Arguments = {"add_special_tokens": add_special_tokens, "verbose": False}
        encoded = self.tokenizer(*texts, **settings)
        length = len(encoded["input_ids"])
        if self._limit is not None and length > self._limit:
            encoded = self.tokenizer(*texts, truncation=True, max_length=self._limit, **settings)
        self._cut.append(length - len(encoded["input_ids"]))
        return dict(encoded)

    def _prompt_length(self, example: Example) -> int:
        """The number of tokens that the model takes for the prompt, if it is given no positions."""
        ids, labels = plain(example["input_ids"]), plain(example.get("labels"))
        if not isinstance(labels, list) or len(labels) != len(ids):
            return len(ids)
        return next((i for i, label in enumerate(labels) if label != IGNORE), len(ids))

    def _has_positions_of_specs(self, example: Example) -> bool:
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


def _require_columns(rows: Rows, columns: Sequence[str]) -> None:
    if len(rows) == 0:
        raise ValueError("the data set is empty.")
    there = list(rows[0])
    if missing := [name for name in columns if name not in there]:
        raise ValueError(f"the data set has no column {missing[0]!r}; it has {', '.join(there)}.")
