"""The base model that an adapter names, loaded by itself."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from pyreft.annotations import Arguments, Json
from pyreft.base_model.description import AUTO_CLASSES
from pyreft.sharing import Adapter, AdapterError, HubSource, is_repo_id
from pyreft.sharing.hub import NEWEST


def load_named_base(
    adapter: Adapter, source: HubSource = NEWEST, model_kwargs: Arguments | None = None
) -> PreTrainedModel:
    """Load the base model at the revision that the adapter was trained on.

    The name is untrusted data: no code of a repository is run for it.

    Args:
        adapter: The adapter that names it.
        source: How the adapter was read from the Hub; the same options apply to the base model.
        model_kwargs: Arguments for transformers' `from_pretrained`, which take precedence: `dtype`,
            `device_map`, `quantization_config`, another `revision`.

    Raises:
        AdapterError: If the adapter does not specify what to load, or it cannot be loaded.
    """
    name, task = adapter.base.get("name_or_path"), adapter.base.get("task")
    advice = "load the base model yourself and pass it: ReftModel.from_pretrained(model, ...)."
    if not isinstance(name, str) or task not in AUTO_CLASSES:
        raise AdapterError(
            f"{adapter.origin} does not say which base model to load (name_or_path {name!r}, task "
            f"{task!r}; tasks are {', '.join(AUTO_CLASSES)}): {advice}"
        )
    if not Path(name).is_dir() and not is_repo_id(name):
        raise AdapterError(
            f"{adapter.origin} was trained on the base model in {name!r}, a directory that is not "
            f"here: {advice}"
        )
    arguments = {
        "revision": None if Path(name).is_dir() else adapter.base.get("revision"),
        "token": source.token,
        "cache_dir": source.cache_dir,
        "local_files_only": source.local_files_only,
        **_labels(adapter.base),
        **(model_kwargs or {}),
    }
    if arguments.pop("trust_remote_code", False):
        raise AdapterError(
            f"trust_remote_code is refused, because the name of the base model, {name!r}, is read "
            f"from {adapter.origin}: {advice}"
        )
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        loader = AUTO_CLASSES[task]
        model: PreTrainedModel = loader.from_pretrained(name, trust_remote_code=False, **given)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise AdapterError(
            f"the base model {name!r} of {adapter.origin} cannot be loaded: {error} Or {advice}"
        ) from error
    return model


def _labels(base: Json) -> Json:
    """Arguments that create the head that the adapter was trained with."""
    if (labels := base.get("labels")) is None:
        return {}
    return {
        "problem_type": base.get("problem_type"),
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
