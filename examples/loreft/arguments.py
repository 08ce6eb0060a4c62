"""The arguments of train.py: upstream's names, from flags, presets and YAML files.

Upstream spells flags with one dash or two, and so does this: `-batch_size 8`, `--batch_size 8`.
"""

import difflib
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from pyreft.training.settings import PRESETS as SETTINGS

# What `pyreft train` calls by another name.
_SPELLED = {"positions": "position", "tied": "share_weights", "learning_rate": "lr"}
_SPELLED |= {"warmup": "warmup_ratio", "accumulate": "gradient_accumulation_steps"}
PRESETS = Path(__file__).parent / "presets.yaml"


@dataclass
class Arguments:
    """What is trained on what, and how it is evaluated.

    The defaults are upstream's, but for `data_dir` (there ./datasets) and `metric_for_best_model`
    (there accuracy).

    Raises:
        ValueError: If a number is out of its range.
    """

    task: str | None = HfArg(default=None, help="commonsense, math, gsm8k, alpaca, ..., or glue")
    data_dir: str | None = HfArg(default=None, help="local folder; downloaded by default")
    train_dataset: str | None = HfArg(
        default=None, help="train on these, as 'boolq;openbookqa'; of glue, the task's name"
    )
    eval_dataset: str | None = HfArg(default=None, help="evaluate on these; the task's by default")
    test_split: str = HfArg(
        default="validation",
        help="validation or test; of glue, validation or held_out, which are training rows",
    )
    max_n_train_example: int | None = HfArg(default=None, help="train on so many rows")
    max_n_eval_example: int | None = HfArg(default=None, help="evaluate on so many of each set")

    model: str = HfArg(default="yahma/llama-7b-hf", help="name or directory of the base model")
    dtype: str = HfArg(
        default="bfloat16" if torch.cuda.is_available() else "float32",
        help="of the base model: float32, bfloat16, float16; float8 is 8-bit of bitsandbytes",
    )
    chat_template: bool = HfArg(default=False, help="give prompts as the user's turn of a chat")

    intervention_type: str = HfArg(
        default="LoreftIntervention",
        aliases=["-type", "--type"],
        help="a kind of intervention, or a baseline: lora, dora, another of PEFT's methods, full, "
        "head, zero_shot, upstream",
    )
    layers: str = HfArg(default="2;10;18;26", aliases=["-l"], help="'all' or as '2;10;18;26'")
    rank: int = HfArg(default=8, aliases=["-r"], help="of the interventions")
    position: str = HfArg(default="f1+l1", aliases=["-p"], help="positions, as f7+l7")
    share_weights: bool = HfArg(default=False, aliases=["-sw"], help="tie first and last positions")
    act_fn: str | None = HfArg(default=None, help="activation on what is learned")
    add_bias: bool = HfArg(default=False, help="whether NoReFT's projection has a bias")
    dropout: float = HfArg(default=0.0, help="of interventions or PEFT's adapter")
    allow_cls_grad: bool = HfArg(default=False, help="train the head of a classifier as well")

    use_lora: bool = HfArg(default=False, help="train PEFT's LoRA beside the interventions")
    disable_reft: bool = HfArg(default=False, help="with use_lora: train it alone")
    lora_rank: int = HfArg(default=8, help="of LoRA or DoRA")
    lora_alpha: int = HfArg(default=32, help="of LoRA or DoRA")
    lora_modules: str = HfArg(default="o_proj", help="modules, as 'q_proj;v_proj'")
    lora_layers: str = HfArg(default="2;10;18;26", help="'all' or as '2;10;18;26'")

    epochs: int = HfArg(default=1, aliases=["-e"])
    lr: float = HfArg(default=5e-3, help="learning rate")
    rate_ratios: str | None = HfArg(default=None, help="of ReFT's parts, as 'R=4;b=10'")
    schedule: str = HfArg(default="linear", help="of the learning rate")
    warmup_ratio: float = HfArg(default=0.0, aliases=["-wu"], help="part of all steps")
    weight_decay: float = HfArg(default=0.0, aliases=["-wd"])
    batch_size: int = HfArg(default=4, help="rows of a forward pass in training")
    gradient_accumulation_steps: int = HfArg(default=4, help="forward passes of a step")
    max_length: int = HfArg(default=512, help="tokens of an example")
    group_by_length: bool = HfArg(default=False, help="batches of rows of about the same length")
    max_steps: int = HfArg(default=-1, help="end after so many steps")
    save_steps: int = HfArg(default=500, help="steps between checkpoints to resume from")
    logging_steps: int = 1
    seed: int = 42
    metric_for_best_model: str | None = HfArg(default=None, help="of glue: picks the epoch")
    dev_steps: int = HfArg(default=0, help="score held-out rows after every so many steps")
    max_n_dev_example: int | None = HfArg(default=None, help="so many of them of each set")

    eval_batch_size: int = 4
    greedy_decoding: bool = HfArg(default=False, aliases=["-gd"])
    temperature: float | None = HfArg(default=None, aliases=["-t"], help="in place of the task's")
    top_p: float | None = HfArg(default=None, help="in place of the task's")
    # Upstream reads 40.0 as well.
    top_k: float | None = HfArg(default=None, help="in place of the task's, a whole number")

    output_dir: str = "./official_results"
    run_name: str | None = HfArg(default=None, help="a folder in output_dir; of the arguments else")
    save_model: bool = HfArg(default=False, help="save the adapter in the folder of the run")
    is_wandb: bool = HfArg(default=False, help="report to Weights & Biases")
    wandb_name: str = "reft"
    wandb_dir: str = "wandb"
    wandb_proj: str = "MyReFT"
    # Upstream's parser has these and its code reads neither.
    use_normalized_template: bool = HfArg(default=False, aliases=["-nt"], help=SUPPRESS)
    train_on_inputs: bool = HfArg(default=False, help=SUPPRESS)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {least} or more, got {value}.")
        if self.top_k is not None:
            if self.top_k < 1 or self.top_k % 1:
                raise ValueError(f"top_k is a whole number of 1 or more, got {self.top_k}.")
            self.top_k = int(self.top_k)
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio is a part of all steps, got {self.warmup_ratio}.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, got {self.dtype!r}.")
        if self.disable_reft and not self.use_lora:
            raise ValueError("disable_reft leaves LoRA alone, and needs use_lora.")


DTYPES = ("float32", "bfloat16", "float16", "float8")
# Numbers, and the least that they may be.
_LEAST = {"epochs": 1, "batch_size": 1, "gradient_accumulation_steps": 1, "eval_batch_size": 1}
_LEAST |= {"max_n_train_example": 1, "max_n_eval_example": 1, "max_n_dev_example": 1}
_LEAST |= {"dev_steps": 0, "max_length": 1, "rank": 1, "save_steps": 1, "logging_steps": 1}
NAMES = tuple(f.name for f in fields(Arguments))


def command(main: Callable[[], None]) -> Callable[[], None]:
    """The main function of a script, whose users see their mistakes in one line."""

    @wraps(main)
    def run() -> None:
        try:
            main()
        except (ValueError, OSError, ImportError) as error:
            raise SystemExit(f"error: {error}") from error

    return run


def parse(argv: Sequence[str], doc: str, **own: dict[str, Any]) -> tuple[Arguments, Namespace]:
    """The arguments of a command line.

    Flags override `--config`, a YAML or JSON file of them, which overrides `--preset`.

    Args:
        argv: The command line without its command.
        doc: What the command does.
        own: Flags of the command's own and the options of `ArgumentParser.add_argument`.

    Returns:
        The arguments, and those of the command's own.
    """
    parser = HfArgumentParser(Arguments, description=doc)
    parser.add_argument("--preset", help=f"one of {', '.join(_read(PRESETS))}")
    parser.add_argument("--config", help="a YAML or JSON file of arguments")
    for name, options in own.items():
        parser.add_argument(f"--{name}", **options)
    known_names = (*NAMES, *own, "preset", "config")
    argv = [_two_dashes(word, known_names) for word in argv]
    files = ArgumentParser(add_help=False)
    files.add_argument("--preset")
    files.add_argument("--config")
    known, _ = files.parse_known_args(argv)
    try:
        if known.preset is not None:
            parser.set_defaults(**_preset(known.preset))
        if known.config is not None:
            parser.set_defaults(**_checked(_read(known.config), known.config))
    except ValueError as error:
        parser.error(str(error))
    try:
        arguments, rest, unknown = parser.parse_args_into_dataclasses(
            argv, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        parser.error(str(error))
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return arguments, rest


def _preset(name: str) -> dict[str, Any]:
    presets = _read(PRESETS)
    if name not in presets:
        raise ValueError(f"there is no preset {name!r}; there are {', '.join(presets)}")
    found = dict(presets[name])
    ours = vars(SETTINGS[found.pop("settings")]) if "settings" in found else {}
    spelled = {_SPELLED.get(own, own): value for own, value in ours.items() if value is not None}
    return _checked(spelled | found, f"preset {name}")


def _read(path: str | Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold arguments by name, as `lr: 9e-4`")
    return found


def _checked(found: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a file's arguments as text; raise if one is unknown."""
    for name in found:
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), NAMES, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(NAMES)}"
            raise ValueError(f"{where} has the argument {name!r}, which does not exist{hint}")
    # A number such as 9e-4 is text in YAML; the parser converts text alone.
    return {n: v if v is None or isinstance(v, bool) else str(v) for n, v in found.items()}


def _two_dashes(word: str, names: Sequence[str]) -> str:
    """`-batch_size` as `--batch_size`; short flags such as `-lr` stay as they are."""
    name = word.partition("=")[0][1:]
    return f"-{word}" if word.startswith("-") and name in names else word
