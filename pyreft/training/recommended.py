"""A config and learning rates that are good without a search."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import PreTrainedModel

from pyreft.base_model.description import task_of
from pyreft.config import ReftConfig
from pyreft.training.checks import heads_of


@dataclass(frozen=True)
class Recommended:
    """What `recommended` returns.

    Args:
        config: For `get_reft_model`.
        learning_rate: For `TrainingArguments`, with its default linear schedule.
        learning_rate_ratios: For `ReftTrainer` or `parameter_groups`.
    """

    config: ReftConfig
    learning_rate: float = 4e-3
    learning_rate_ratios: dict[str, float] = field(default_factory=lambda: {"R": 4.0})


def recommended(model: PreTrainedModel) -> Recommended:
    """A config and learning rates for a base model, good without a search.

    A causal language model is edited at the last prompt token of every second layer of its middle,
    at rank 4 and 4e-3. A classifier that is an encoder is edited at the first three tokens of all
    layers, at rank 1 and 1e-3, and its head is trained, as in the paper; one that is a decoder as a
    language model. R is trained at four times the rate of W and b. What was compared is in
    docs/learning.md.

        chosen = pyreft.recommended(base)
        model = pyreft.get_reft_model(base, chosen.config)

    Args:
        model: The base model, from transformers.

    Returns:
        The config, the learning rate, and the ratios to it of the rates of R, P, W and b.

    Raises:
        ValueError: If it does another task, for which nothing was compared.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"recommended(...) takes a base model of transformers, got {type(model).__name__}."
        )
    task, heads = task_of(model), list(heads_of(model))
    known = task in ("causal_lm", "sequence_classification")
    if not known or model.config.is_encoder_decoder or not set(heads) <= {"score", "classifier"}:
        raise ValueError(
            f"nothing is recommended for {type(model).__name__}, whose task is {task}: settings "
            "were compared for causal language models and classifiers of texts. Begin with the "
            "paper's, pyreft.ReftConfig(), and a learning rate of 9e-4."
        )
    if "classifier" in heads:
        pooler = any(name.endswith(".pooler") for name, _ in model.named_modules())
        saved = ["pooler", *heads] if pooler else heads
        config = ReftConfig(positions="f3", rank=1, modules_to_save=saved)
        # The head begins at random numbers, and overshoots at 4e-3.
        return Recommended(config, learning_rate=1e-3)
    depth = model.config.get_text_config().num_hidden_layers
    layers = list(range(max(0, depth // 2 - 1), max(1, 5 * depth // 6), 2))
    config = ReftConfig(layers=layers, positions="l1", rank=4, modules_to_save=heads or None)
    return Recommended(config)
