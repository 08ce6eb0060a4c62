"""A base model that PEFT put a LoRA on: what PEFT trains is saved and loaded with the adapter.

PEFT's config can name code to import, and patterns that take for ever to match. What is saved is
a description of the LoRA alone: which modules it is on, and its numbers. PEFT's own files lie
beside the adapter's, so that PEFT can load them by itself; they are never read here.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyreft.annotations import Json
from pyreft.base_model.trained import remember_learning
from pyreft.installed.tuners import is_peft_model
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.checkpoint import LORA_FILES, OF_LORA

# What describes a LoRA, and the types of its JSON.
_FIELDS: dict[str, tuple[type, ...]] = {
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "bias": (str,),
    "fan_in_fan_out": (bool,),
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "lora_bias": (bool,),
    "task_type": (str, type(None)),
    "target_modules": (list,),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "modules_to_save": (list, type(None)),
}
# What is said by the modules that it is on.
_RESOLVED = {"exclude_modules", "layers_to_transform", "layers_pattern"}
# What PEFT writes of a run, rather than of what is trained.
_OF_THE_RUN = {"auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights"}
_OF_THE_RUN |= {"peft_version", "revision", "runtime_config", "ensure_weight_tying"}
# Ways to begin that leave the base model as it is.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


def peft_tensors(model: Any) -> dict[str, Tensor]:
    """What PEFT saves of the model, by PEFT's names; nothing if it wraps none or is frozen."""
    if not is_peft_model(model):
        return {}
    from peft import get_peft_model_state_dict

    name = model.active_adapter
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    return tensors if any(t.data_ptr() in trained for t in tensors.values()) else {}


def let_lora_train(model: Any) -> None:
    """Let PEFT's active LoRA be trained, whatever is frozen."""
    model.set_adapter(model.active_adapter)


def frozen_lora(model: Any) -> bool:
    """Whether PEFT put something on the model to be trained, and nothing of it learns."""
    if not is_peft_model(model):
        return False
    return not model.active_peft_config.inference_mode and not peft_tensors(model)


@contextmanager
def without_lora(model: Any) -> Iterator[None]:
    """Turn off, inside the block, what PEFT trains of the model; a frozen LoRA stays on."""
    if not peft_tensors(model):
        yield
        return
    # PEFT freezes what it turns off, and lets all of it learn afterwards.
    restore_learning = remember_learning(model)
    with model.disable_adapter():
        restore_learning()
        yield
    restore_learning()


def describe_lora(model: Any) -> Json:
    """The LoRA of a model, as JSON.

    Raises:
        ValueError: If it is more than a LoRA, or began by changing the base model.
    """
    from peft import LoraConfig

    config = model.active_peft_config
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"what PEFT trains of the base model is {type(config).__name__}: only a LoRA is saved "
            "with the interventions. Save it by itself with PEFT, and freeze it."
        )
    said, default = config.to_dict(), LoraConfig().to_dict()
    known = {*_FIELDS, *_RESOLVED, *_OF_THE_RUN}
    more = sorted(n for n in said if n not in known and said[n] != default.get(n))
    if config.init_lora_weights not in _BEGINNINGS:
        more.append("init_lora_weights")
    if more:
        raise ValueError(
            f"the LoRA on the base model has {more[0]}={said[more[0]]!r}, which is not saved with "
            "the interventions. Save it by itself with PEFT, and freeze it."
        )
    name, layers = model.active_adapter, dict(model.get_base_model().named_modules())
    targets: list[str] = sorted(model.base_model.targeted_module_names)
    ranks = {target: layers[target].r[name] for target in targets}
    alphas = {target: layers[target].lora_alpha[name] for target in targets}
    found = {field: said[field] for field in _FIELDS}
    return found | {
        "task_type": config.task_type and str(getattr(config.task_type, "value", config.task_type)),
        "target_modules": targets,
        "rank_pattern": {n: rank for n, rank in ranks.items() if rank != config.r},
        "alpha_pattern": {n: alpha for n, alpha in alphas.items() if alpha != config.lora_alpha},
        "modules_to_save": sorted(config.modules_to_save or []) or None,
    }


def peft_files(model: Any) -> dict[str, bytes]:
    """What PEFT itself writes of its LoRA, by the names of the files."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary, selected_adapters=[model.active_adapter])
        # PEFT gives adapters that are not called "default" a folder of their own.
        folder = next(Path(temporary).rglob(LORA_FILES[0])).parent
        return {name: (folder / name).read_bytes() for name in LORA_FILES}


def require_same_lora(adapter: Adapter, model: Any) -> None:
    """Raise AdapterError unless the model has the LoRA that the adapter was trained with."""
    if (adapter.lora is None) == bool(peft_tensors(model)):
        with_lora = ("this model", adapter.origin)[:: -1 if adapter.lora is not None else 1]
        raise AdapterError(f"{with_lora[0]} has PEFT's LoRA, {with_lora[1]} has none.")
    if adapter.lora is not None:
        _check_lora(adapter, model.get_base_model())
        _require_equal(adapter, describe_lora(model))


def put_lora(model: Any, adapter: Adapter) -> Any:
    """Put the LoRA of an adapter on a model, its tensors still to be loaded.

    Returns:
        The model that PEFT wraps, the one given if it was wrapped already.

    Raises:
        AdapterError: If there is no such LoRA, or the model's own is another.
    """
    from peft import LoraConfig, get_peft_model

    if is_peft_model(model):
        require_same_lora(adapter, model)
        return model
    _check_lora(adapter, model)
    return get_peft_model(model, LoraConfig(**(adapter.lora or {})))


def _require_equal(adapter: Adapter, ours: Json) -> None:
    theirs = adapter.lora or {}
    for name in _FIELDS:
        if name != "task_type" and ours[name] != theirs.get(name):
            raise AdapterError(
                f"the LoRA of {adapter.origin} has {name} {theirs.get(name)!r}, this model's has "
                f"{ours[name]!r}."
            )


def _check_lora(adapter: Adapter, model: nn.Module) -> None:
    """Raise AdapterError unless a LoRA is described that the model can have.

    Names are those of modules, since PEFT takes others for patterns; ranks are those of the
    tensors, since a LoRA of any rank would be made first.
    """
    from peft import TaskType

    lora, parts = adapter.lora or {}, dict(model.named_modules())

    def require(fits: bool, name: str) -> None:
        if not fits:
            raise AdapterError(
                f"the LoRA of {adapter.origin} cannot have {name} {lora.get(name)!r:.200}."
            )

    for name in {*lora, *_FIELDS}:
        is_bool = isinstance(lora.get(name), bool)
        fits = name in lora and isinstance(lora[name], _FIELDS.get(name, ()))
        require(fits and is_bool == (_FIELDS[name] == (bool,)), name)
    require(lora["bias"] in ("none", "all", "lora_only"), "bias")
    require(lora["task_type"] in (None, *(task.value for task in TaskType)), "task_type")
    require(0 <= lora["lora_dropout"] < 1, "lora_dropout")
    targets = lora["target_modules"]
    for name, there in (("target_modules", set(parts) - {""}), ("modules_to_save", _ends(parts))):
        names = lora[name]
        if names is not None:
            require(bool(names) and all(isinstance(n, str) and n in there for n in names), name)
            require(len(set(names)) == len(names), name)
    for name, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        numbers = [lora[default], *lora[name].values()]
        require(all(type(n) in (int, float) and 0 < n < math.inf for n in numbers), name)
        require(set(lora[name]) <= set(targets), name)
    for target in targets:
        rank, weight = lora["rank_pattern"].get(target, lora["r"]), _weight(parts[target])
        stem = f"{OF_LORA}base_model.model.{target}.lora_"
        found = [adapter.tensors.get(f"{stem}{end}") for end in ("A.weight", "embedding_A")]
        made = next((tensor for tensor in found if tensor is not None), None)
        require(type(rank) is int and made is not None and weight is not None, "r")
        assert made is not None and weight is not None
        require(made.shape[:1] == (rank,) and rank <= max(weight.shape), "r")


def _ends(names: Json) -> set[str]:
    """All ends of dotted names: "model.layers" is "model.layers" and "layers"."""
    split = [name.split(".") for name in names if name]
    return {".".join(parts[start:]) for parts in split for start in range(len(parts))}


def _weight(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() > 1 else None
