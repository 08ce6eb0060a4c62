"""A module that transformers, trainers and pipelines accept in place of its base model."""

from __future__ import annotations

import inspect
import itertools
from typing import Any, NoReturn
from weakref import WeakValueDictionary

from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from pyreft.annotations import Inputs
from pyreft.installed.names import make_known

# Pipelines and the Trainer recognize what a model can do by its class name.
make_known("reft", "ReftModel")

# Not looked up on the base model, where these names do something else.
_NOT_OF_BASE = (
    "continuous_batching_context_manager",
    "destroy_cached_continuous_batching_manager",
    "disable_adapters",
    "enable_adapters",
    "generate_batch",
    "init_continuous_batching",
    "push_to_hub",
)

_numbers = itertools.count()
_numbered: WeakValueDictionary[int, StandIn] = WeakValueDictionary()


def numbered(number: int) -> StandIn:
    """The model with this number."""
    return _numbered[number]


def _number(model: StandIn) -> int:
    number = next(_numbers)
    _numbered[number] = model
    return number


class StandIn(nn.Module):
    """Replaces a base model: attributes that are not defined here are looked up on it.

    Args:
        model: The base model.

    Attributes:
        number: What `numbered` finds the model by, since the operators of a graph take no modules.
    """

    model: PreTrainedModel
    # Shows transformers that adapters are attached, so that a quantized base model may train.
    _hf_peft_config_loaded = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.number = _number(self)

    def __setstate__(self, state: Inputs) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # A copy is another model.
        self.number = _number(self)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or name in _NOT_OF_BASE:
                raise
            return self._of_base(name)

    def _of_base(self, name: str) -> object:
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Tensor | nn.Module) -> None:
        base = vars(self).get("_modules", {}).get("model")
        own = name in ("model", "adapters") or hasattr(type(self), name)
        if isinstance(value, (nn.Module, nn.Parameter)) and not own and hasattr(base, name):
            # A part of the base model, which its forward pass reads there.
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def compile(self, *args: object, **kwargs: object) -> None:
        """Compile the base model in place; arguments are those of `torch.compile`."""
        self.model.compile(*args, **kwargs)

    def _get_name(self) -> str:
        # The Trainer decides by it whether label smoothing shifts labels.
        return str(self.model._get_name())

    @property
    def config(self) -> PreTrainedConfig:
        """The base model's config; setting it to itself, as scripts do, changes nothing."""
        return self.model.config

    @config.setter
    def config(self, value: object) -> None:
        if value is not self.model.config:
            raise AttributeError(
                "config is the base model's, and the adapter's is reft_config: neither can be "
                f"replaced, got {type(value).__name__}."
            )

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's generation config."""
        return self.model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        self.model.generation_config = value

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the base model's loss takes `num_items_in_batch`, as the Trainer checks."""
        flag = getattr(self.model, "accepts_loss_kwargs", None)
        parameters = inspect.signature(self.model.forward).parameters.values()
        return any(p.kind == p.VAR_KEYWORD for p in parameters) if flag is None else bool(flag)

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError(
            "a ReftModel does not run under torch.nn.DataParallel, which would edit its copies on "
            "other GPUs with the interventions of the first one. Start one process for each GPU, "
            "`torchrun --nproc-per-node N script.py`, or show one GPU only, CUDA_VISIBLE_DEVICES=0."
        )
