"""`pyreft train`: rows and options become an adapter in a directory."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from pyreft.compat.wrapping import get_reft_model
from pyreft.data import make_examples
from pyreft.data.sources import load_rows
from pyreft.training import ReftTrainer, recommended

_OF_THE_CONFIG = ("layers", "positions", "rank", "kind", "tied", "dropout")


@dataclass(frozen=True)
class TrainSettings:
    """The options of `pyreft train`; None is what is recommended for the model."""

    layers: str | int | None = None
    positions: str | None = None
    rank: int | None = None
    kind: str | None = None
    tied: bool | None = None
    dropout: float | None = None
    epochs: float = 3
    learning_rate: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    schedule: str = "linear"
    max_length: int | None = None
    seed: int = 42


def read_settings(file: Path | None, given: Mapping[str, object]) -> TrainSettings:
    """Options of a YAML file, and those of the command line, which count more.

    Args:
        file: The file, or None.
        given: The command line's options by name; None is one that is not given. May have others.

    Raises:
        ValueError: If the file cannot be read, or has an option that does not exist.
    """
    found: dict[str, object] = {}
    if file is not None:
        try:
            read = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"cannot read {file}: {error}") from error
        if not isinstance(read, dict):
            raise ValueError(f"{file} must hold options by name, such as `rank: 4`.")
        found = {str(name).replace("-", "_"): value for name, value in read.items()}
    types = {field.name: str(field.type) for field in fields(TrainSettings)}
    for name, value in found.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(types)}."
            raise ValueError(f"{file} has the option {name!r}, which does not exist{hint}")
        found[name] = _convert(name, value, types[name])
    found |= {name: given[name] for name in types if given.get(name) is not None}
    return TrainSettings(**found)  # type: ignore[arg-type]  # of the types that were read above


def _convert(name: str, value: object, expected: str) -> object:
    """A value of a YAML file: 9e-4 is text there, and layers may be a list."""
    if value is None:
        return None
    if name == "layers" and isinstance(value, list):
        return ",".join(map(str, value))
    if "bool" in expected and not isinstance(value, bool):
        raise ValueError(f"{name} is true or false, got {value!r}.")
    for known, convert in (("float", float), ("int", int)):
        if known in expected and name != "layers":
            try:
                return convert(str(value))
            except (TypeError, ValueError):
                raise ValueError(f"{name} is a number, got {value!r}.") from None
    return value


def train_adapter(
    model: str, data: str, directory: Path, settings: TrainSettings, resume: bool
) -> None:
    """Train an adapter and save it.

    Args:
        model: Name or directory of a causal language model.
        data: A file of rows, or a data set on the Hub.
        directory: For checkpoints and the adapter.
        settings: The options.
        resume: Whether to go on from the last checkpoint in the directory.

    Raises:
        ValueError: If the model is no causal language model, or an option does not fit it; or if
            the directory has checkpoints, and the run does not go on from them.
    """
    checkpoint = get_last_checkpoint(str(directory)) if directory.is_dir() else None
    if checkpoint is not None and not resume:
        raise ValueError(
            f"{directory} holds checkpoints of a run: go on with --resume, or name another "
            "directory."
        )
    if checkpoint is None and resume:
        raise ValueError(f"{directory} holds no checkpoint to go on from: leave out --resume.")
    set_seed(settings.seed)
    if AutoConfig.from_pretrained(model).is_encoder_decoder:
        raise ValueError(
            f"pyreft train trains causal language models, and {model} has an encoder and a "
            "decoder: see docs/encoder_decoder.md."
        )
    tokenizer = AutoTokenizer.from_pretrained(model)
    examples = make_examples(
        load_rows(None, data, "train"), tokenizer, max_length=settings.max_length
    )
    base = AutoModelForCausalLM.from_pretrained(model)
    chosen = recommended(base)
    own = {name: getattr(settings, name) for name in _OF_THE_CONFIG}
    own = {name: value for name, value in own.items() if value is not None}
    if "layers" in own:
        own["layers"] = _read_layers(own["layers"])
    edited = get_reft_model(base, replace(chosen.config, **own))
    edited.print_trainable_parameters()
    # Rates of other kinds, or from papers, are one for all of an edit.
    usual = settings.learning_rate is None and settings.kind is None
    trainer = ReftTrainer(
        model=edited,
        args=TrainingArguments(
            output_dir=str(directory),
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulate,
            learning_rate=settings.learning_rate or chosen.learning_rate,
            lr_scheduler_type=settings.schedule,
            seed=settings.seed,
            logging_steps=1,
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=examples,
        processing_class=tokenizer,
        learning_rate_ratios=chosen.learning_rate_ratios if usual else None,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    edited.save_pretrained(directory)


def _read_layers(text: str | int) -> str | list[int]:
    """ "all", or the indices in "10,12,14"."""
    if str(text).strip() == "all":
        return "all"
    try:
        return [int(index) for index in str(text).replace(";", ",").split(",")]
    except ValueError:
        raise ValueError(f"layers are all, or indices such as 10,12,14; got {text!r}.") from None
