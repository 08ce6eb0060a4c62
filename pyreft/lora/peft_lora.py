"""A base model with PEFT's LoRA: what PEFT trains is saved and loaded with the adapter.

PEFT's config can name code to import, and patterns that take forever to match. So only a
description of the LoRA (its modules and settings) and its tensors are saved. PEFT's own files are
written as well, so that PEFT can load them by itself; they are never read here.
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
from pyreft.base_model.trained import remember_requires_grad
from pyreft.installed.tuners import is_peft_model
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.checkpoint import LORA_FILES, OF_LORA

# The fields that describe a LoRA, and their JSON types.
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
# Already expressed by the resolved target modules.
_RESOLVED = {"exclude_modules", "layers_to_transform", "layers_pattern"}
# Fields of PEFT's config that describe the run, and not what is trained.
_OF_THE_RUN = {"auto_mapping", "base_model_name_or_path", "inference_mode", "init_lora_weights"}
_OF_THE_RUN |= {"peft_version", "revision", "runtime_config", "ensure_weight_tying"}
# Initializations that leave the base model unchanged.
_INITIALIZATIONS = (True, False, None, "gaussian", "orthogonal", "eva")


def peft_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that PEFT saves, by PEFT's names; none without PEFT, or if they are frozen."""
    if not is_peft_model(model):
        return {}
    from peft import get_peft_model_state_dict

    name = model.active_adapter
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    trained = {p.data_ptr() for p in model.parameters() if p.requires_grad}
    return tensors if any(t.data_ptr() in trained for t in tensors.values()) else {}


def let_lora_train(model: Any) -> None:
    """Make PEFT's active LoRA trainable, whatever is frozen."""
    model.set_adapter(model.active_adapter)


def frozen_lora(model: Any) -> bool:
    """Whether PEFT put something on the model to be trained, and all of it is frozen."""
    if not is_peft_model(model):
        return False
    return not model.active_peft_config.inference_mode and not peft_tensors(model)


@contextmanager
def without_lora(model: Any) -> Iterator[None]:
    """Turn off PEFT's trainable layers inside the block; a frozen LoRA stays on."""
    if not peft_tensors(model):
        yield
        return
    # PEFT freezes what it turns off, and makes all of it trainable afterwards.
    restore_requires_grad = remember_requires_grad(model)
    with model.disable_adapter():
        restore_requires_grad()
        yield
    restore_requires_grad()


def describe_lora(model: Any) -> Json:
    """The LoRA of a model, as JSON.

    Raises:
        ValueError: If it is more than a LoRA, or its initialization changed the base model.
    """
    from peft import LoraConfig

    config = model.active_peft_config
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"PEFT trains the base model with {type(config).__name__}: only a LoRA is saved "
            "with the interventions. Save it by itself with PEFT, and freeze it."
        )
    fields, default = config.to_dict(), LoraConfig().to_dict()
    known = {*_FIELDS, *_RESOLVED, *_OF_THE_RUN}
    more = sorted(n for n in fields if n not in known and fields[n] != default.get(n))
    if config.init_lora_weights not in _INITIALIZATIONS:
        more.append("init_lora_weights")
    if more:
        raise ValueError(
            f"the LoRA on the base model has {more[0]}={fields[more[0]]!r}, which is not saved "
            "with the interventions. Save it by itself with PEFT, and freeze it."
        )
    name, layers = model.active_adapter, dict(model.get_base_model().named_modules())
    targets: list[str] = sorted(model.base_model.targeted_module_names)
    ranks = {target: layers[target].r[name] for target in targets}
    alphas = {target: layers[target].lora_alpha[name] for target in targets}
    found = {field: fields[field] for field in _FIELDS}
    return found | {
        "task_type": config.task_type and str(getattr(config.task_type, "value", config.task_type)),
        "target_modules": targets,
        "rank_pattern": {n: rank for n, rank in ranks.items() if rank != config.r},
        "alpha_pattern": {n: alpha for n, alpha in alphas.items() if alpha != config.lora_alpha},
        "modules_to_save": sorted(config.modules_to_save or []) or None,
    }


def peft_files(model: Any) -> dict[str, bytes]:
    """The files that PEFT itself writes for its LoRA: name -> content."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary, selected_adapters=[model.active_adapter])
        # PEFT saves an adapter that is not named "default" in a folder of its own.
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
    """Put the LoRA of an adapter on a model; its tensors are loaded later.

    Returns:
        The model wrapped by PEFT; the given one if it was wrapped already.

    Raises:
        AdapterError: If the description is invalid, or the model has a different LoRA.
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
    """Raise AdapterError unless the described LoRA fits the model.

    Names must be those of modules, because PEFT treats others as patterns. Ranks must be those of
    the tensors, because PEFT would first allocate a LoRA of any rank.
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
    """All suffixes of dotted names: of "model.layers", "model.layers" and "layers"."""
    split = [name.split(".") for name in names if name]
    return {".".join(parts[start:]) for parts in split for start in range(len(parts))}


def _weight(module: nn.Module) -> Tensor | None:
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.dim() > 1 else None
