"""The tables of class names by which transformers' pipelines and Trainer recognize a model."""

from __future__ import annotations

from transformers.utils import logging

from pyreft.installed.fact import fact

logger = logging.get_logger(__name__)

_TABLES = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
)


@fact("transformers")
def pipelines_know_classes() -> None:
    """Pipelines look a model's class up in tables of modeling_auto."""
    from transformers.models.auto import modeling_auto

    for name in _TABLES:
        if not {"llama", "bert"} & set(getattr(modeling_auto, name)):
            raise ValueError(f"{name} has neither llama nor bert")


def make_known(model_type: str, class_name: str) -> None:
    """Add a class to the tables, so that pipelines accept it for the tasks of language models."""
    from transformers.models.auto import modeling_auto

    if not pipelines_know_classes.holds:
        logger.warning(f"Pipelines do not know {class_name}: {pipelines_know_classes.explain()}")
        return
    for name in _TABLES:
        getattr(modeling_auto, name)[model_type] = class_name
