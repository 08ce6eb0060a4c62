"""`pyreft train`: rows and options become an adapter in a directory."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from pyreft.compat.wrapping import get_reft_model
from pyreft.data import make_examples
from pyreft.data.sources import load_rows
from pyreft.training import recommended
from pyreft.training.settings import PRESETS, TrainSettings, choose_config, make_trainer


def read_settings(file: Path | None, given: Mapping[str, object]) -> TrainSettings:
    """Options of the command line, which override those of a YAML file, which override a preset.

    Args:
        file: The file, or None.
        given: The command line's options by name, `preset` among them; None is one that is not
            given. May have others.

    Raises:
        ValueError: If the file cannot be read, has an option that does not exist, or there is no
            such preset.
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
    preset = given.get("preset")
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}.")
    start = TrainSettings() if preset is None else PRESETS[str(preset)]
    return replace(start, **found)  # type: ignore[arg-type]  # of the types that were read above


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
    edited = get_reft_model(base, choose_config(settings, chosen))
    edited.print_trainable_parameters()
    trainer = make_trainer(edited, examples, tokenizer, directory, settings, chosen)
    trainer.train(resume_from_checkpoint=checkpoint)
    edited.save_pretrained(directory)
