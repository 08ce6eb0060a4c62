"""The metadata of a model card, which the Hub reads."""

from __future__ import annotations

import os
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]

from pyreft.annotations import Json
from pyreft.sharing.checkpoint import Adapter
from pyreft.sharing.training_facts import TrainingFacts

# Our name of a task of base models -> the Hub's name.
TASKS: dict[str | None, str] = {
    "causal_lm": "text-generation",
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "masked_lm": "fill-mask",
    "image_text_to_text": "image-text-to-text",
    "features": "feature-extraction",
}
# Metrics that the Hub has a page for, by their usual names in `compute_metrics`.
_METRICS = {"accuracy", "bleu", "f1", "matthews_correlation", "pearsonr", "precision", "recall"}
_METRICS |= {"rouge", "sacrebleu", "spearmanr", "wer"}


def hub_name(base: Json) -> str | None:
    """The name of a base model on the Hub; None if it is from a directory, or has no name."""
    name = base.get("name_or_path")
    if not isinstance(name, str) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def hub_metadata(adapter: Adapter, training: TrainingFacts | None, name: str) -> str:
    """The metadata of the Hub, as YAML."""
    given = dict(training.metadata) if training is not None else {}
    model = hub_name(adapter.base)
    kinds = sorted({one.kind for one in adapter.config.representations})
    tags = ["reft", "representation-finetuning", *kinds, *_listed(given.get("tags"))]
    datasets = [] if training is None else [*_listed(given.get("datasets")), *training.datasets]
    task = TASKS.get(adapter.base.get("task"))
    measured = [] if training is None else list(training.evaluation)
    results = _results(task, training, datasets)
    data = ModelCardData(
        library_name="pyreft",
        base_model=model,
        base_model_relation="adapter" if model else None,
        pipeline_tag=task,
        tags=tags,
        license=given.get("license"),
        language=given.get("language"),
        datasets=list(dict.fromkeys(datasets)) or None,
        metrics=[name for name in measured if name in _METRICS] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _results(
    task: str | None, training: TrainingFacts | None, datasets: Sequence[str]
) -> list[EvalResult]:
    """Metrics as the Hub reads them, which requires their task and data set."""
    if training is None or task is None or len(set(datasets)) != 1:
        return []
    return [
        EvalResult(
            task_type=task,
            dataset_type=datasets[0],
            dataset_name=datasets[0],
            metric_type=name,
            metric_value=value,
        )
        for name, value in training.evaluation.items()
    ]


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])
