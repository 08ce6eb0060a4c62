"""What an adapter records about its base model: its location, how to load it, its fingerprint.

name_or_path, revision           a name on the Hub and a commit of it, or a directory
task, labels, problem_type       what loads it: a key of `AUTO_CLASSES`, the classes of a head
architecture, model_type, ...    its fingerprint: names and sizes
"""

from __future__ import annotations

import os

import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined, unused-ignore]
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from pyreft.annotations import Json
from pyreft.base_model.running import running_model
from pyreft.base_model.stacks import has_two_stacks, size_of, sizes_of, text_config

# A task, as an adapter names it -> the class that loads such models. If a class has two tasks
# (BART), the first is used.
AUTO_CLASSES = {
    "causal_lm": transformers.AutoModelForCausalLM,
    "seq2seq_lm": transformers.AutoModelForSeq2SeqLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
    "multiple_choice": transformers.AutoModelForMultipleChoice,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "image_text_to_text": transformers.AutoModelForImageTextToText,
    "features": transformers.AutoModel,
}
_MAPPINGS = {
    "causal_lm": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "seq2seq_lm": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "sequence_classification": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token_classification": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "question_answering": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "multiple_choice": transformers.MODEL_FOR_MULTIPLE_CHOICE_MAPPING,
    "masked_lm": transformers.MODEL_FOR_MASKED_LM_MAPPING,
    "image_text_to_text": transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    "features": transformers.MODEL_MAPPING,
}
# Tasks whose head has one class per label.
_LABELLED = ("sequence_classification", "token_classification")
_SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")


def describe_base(model: PreTrainedModel) -> Json:
    """Everything that is saved about a base model."""
    config, fingerprint = model.config, base_fingerprint(model)
    task = _task(config, fingerprint["architecture"])
    described: Json = {
        "name_or_path": _path_or_repo_id(config.name_or_path),
        "revision": getattr(config, "_commit_hash", None),
        "task": task,
    }
    if task in _LABELLED:
        names = {str(index): name for index, name in (config.id2label or {}).items()}
        labels = [str(names.get(str(i), f"LABEL_{i}")) for i in range(config.num_labels or 0)]
        described |= {"labels": labels, "problem_type": config.problem_type}
    return described | fingerprint


def task_of(model: PreTrainedModel) -> str | None:
    """The task of a model: a key of `AUTO_CLASSES`, or None."""
    return _task(model.config, _architecture(model))


def _task(config: PreTrainedConfig, architecture: str) -> str | None:
    for task, mapping in _MAPPINGS.items():
        found = mapping.get(type(config), ())
        classes = found if isinstance(found, tuple) else (found,)
        if any(cls is not None and cls.__name__ == architecture for cls in classes):
            return task
    return None


def base_fingerprint(model: PreTrainedModel) -> Json:
    """What decides whether an adapter fits a base model; fields missing in a config are omitted."""
    two = has_two_stacks(model)
    text = text_config(model, "encoder" if two else None)
    sizes = sizes_of(text, ("hidden_size", "num_hidden_layers", *_SIZES))
    found = {
        "model_type": model.config.model_type if two else text.model_type,
        # 0 if the config has no such number, because layers differ (ConvNeXt).
        "hidden_size": sizes.get("hidden_size", 0),
        "num_hidden_layers": sizes.get("num_hidden_layers", 0),
    }
    if two:
        decoder = text_config(model, "decoder")
        found["num_decoder_layers"] = size_of(decoder, "num_hidden_layers") or 0
    found["architecture"] = _architecture(model)
    return found | sizes


def _architecture(model: nn.Module) -> str:
    """The name of the class, without the wrappers of PEFT, compiling and sharding."""
    cls = type(running_model(model))
    known = (c for c in cls.__mro__ if c.__module__.startswith("transformers"))
    found = next(known, PreTrainedModel)
    return cls.__name__ if found is PreTrainedModel else found.__name__


def _path_or_repo_id(name: str | None) -> str | None:
    """A name on the Hub, or the absolute path of a directory."""
    if not name:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return os.path.abspath(name)
    return name
