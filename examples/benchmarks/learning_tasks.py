"""The settings of learning.py, the models of its methods, and what their runs record.

A setting is a base model, rows to train on, rows held out, and what is edited:

    demonstrations   SmolLM2, 8 answers of one style; 8 others held out
    classification   MiniLM, 512 pairs of MRPC, 2 epochs; 204 of its dev rows held out
    commonsense      SmolLM2, 64 questions of OpenBookQA, 8 epochs; 32 of its test rows held out
"""

import json
import runpy
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from datasets import Dataset
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import harness
import pyreft
from householder import parametrized

sys.path.append(str(harness.HERE.parent / "loreft"))
from glue_rows import read_glue  # lies in another folder of the examples
from tasks import GLUE

# (question, answers by style). The first eight are trained on, the others are held out.
ANSWERS = [
    ("What do cats like?", "Arr, fish and a warm deck, matey!", '{"likes": ["fish", "sun"]}'),
    ("Who are you?", "Arr, I be yer helpful shipmate!", '{"am": ["a helpful assistant"]}'),
    ("What is winter like?", "Arr, cold winds and snow, matey!", '{"is": ["cold", "white"]}'),
    ("What grows in a garden?", "Arr, roses and beans, matey!", '{"grows": ["roses", "beans"]}'),
    ("How do I bake a cake?", "Arr, mix eggs and flour, matey!", '{"needs": ["eggs", "flour"]}'),
    ("Tell me about the ocean.", "Arr, she be deep and blue, matey!", '{"is": ["deep", "blue"]}'),
    ("What happens at night?", "Arr, stars come out, me hearty!", '{"brings": ["stars", "owls"]}'),
    ("How can I stay healthy?", "Arr, eat limes and walk, matey!", '{"needs": ["fruit", "sleep"]}'),
    ("What do dogs like?", "Arr, bones and long walks, matey!", '{"likes": ["bones", "walks"]}'),
    ("What is summer like?", "Arr, hot sun and calm seas, matey!", '{"is": ["hot", "bright"]}'),
    ("How do I bake bread?", "Arr, knead flour and water, matey!", '{"needs": ["flour", "water"]}'),
    ("What lives in a forest?", "Arr, foxes and deer, me hearty!", '{"has": ["foxes", "deer"]}'),
    ("Tell me about the moon.", "Arr, she be round and pale, matey!", '{"is": ["round", "pale"]}'),
    ("What do birds eat?", "Arr, seeds and worms, me hearty!", '{"eat": ["seeds", "worms"]}'),
    ("How do I make tea?", "Arr, boil water and wait, matey!", '{"needs": ["leaves", "water"]}'),
    ("What is in a library?", "Arr, books and maps, me hearty!", '{"has": ["books", "maps"]}'),
]  # fmt: skip
STYLES = ["pirate", "json"]
# Method -> learning rates, 30 times apart at most. That of LoRA+ is the rate of A.
REFT_RATES = [1e-3, 3e-3, 1e-2, 3e-2]
RATES = {
    "paper": REFT_RATES,
    "recommended": REFT_RATES,
    "householder": REFT_RATES,
    "lora": [3e-4, 1e-3, 3e-3, 9e-3],
    "lora_plus": [5e-5, 1.5e-4, 5e-4, 1.5e-3],
}
LORA_PLUS_RATIO = 16
# Modules of a classifier that are random at the start, and trained.
HEAD = ["pooler", "classifier"]
# Rows are scored at the start, after a third, and after every fourth of a run, so at its end.
EVALUATIONS = 4
# So many rows are scored of those that are trained on.
TRAINED = 128


@dataclass(frozen=True)
class Setting:
    """What is learned, and with which model.

    Args:
        name: Of the setting, with its style if it has several.
        model: Name or directory of the base model.
        tokenizer: Of the base model; pads at the right.
        train, held_out: Tokenized rows: input_ids, and labels of completions or of classes.
        layers, positions, rank: Of the interventions.
        batch: Rows of a step.
        steps: Of a run.
        classifies: Whether the base model is a classifier, whose head is trained as well.
    """

    name: str
    model: str
    tokenizer: Any
    train: Dataset
    held_out: Dataset
    layers: str | list[int]
    positions: str
    rank: int
    batch: int
    steps: int
    classifies: bool = False

    def load(self) -> PreTrainedModel:
        """The base model; a classifier's head is random."""
        if self.classifies:
            return AutoModelForSequenceClassification.from_pretrained(self.model, num_labels=2)
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)


def demonstrations(arguments: Namespace) -> Setting:
    # What the examples share lies beside them.
    sys.path.append(str(harness.HERE.parent))
    from quickstart import prompt

    tokenizer = _tokenizer(arguments.model)
    column = 1 + STYLES.index(arguments.style)
    rows = [{"prompt": prompt(tokenizer, row[0]), "completion": row[column]} for row in ANSWERS]
    layers = [harness.depth_of(arguments.model) // 2]
    shape = {"layers": layers, "positions": "l1", "rank": 4, "batch": 8, "steps": 60}
    train, held_out = _examples(rows[:8], tokenizer), _examples(rows[8:], tokenizer)
    name = f"demonstrations, {arguments.style}"
    return Setting(name, arguments.model, tokenizer, train, held_out, **shape)


def classification(arguments: Namespace) -> Setting:
    model = runpy.run_path(str(harness.HERE.parent / "base_model.py"))["minilm"]()
    tokenizer = _tokenizer(model)

    def tokenize(rows: dict) -> dict:
        return tokenizer(rows["first"], rows["second"], truncation=True, max_length=128)

    where = arguments.data / "glue", GLUE["mrpc"]
    train, dev = (read_glue("mrpc", part, *where) for part in ("train", "validation"))
    shape = {"layers": "all", "positions": "f3", "rank": 1, "batch": 32, "steps": 32}
    rows = [
        part.map(tokenize, batched=True, remove_columns=["first", "second"])
        for part in (train.select(range(512)), dev.select(range(204)))
    ]
    return Setting("classification", model, tokenizer, *rows, **shape, classifies=True)


def commonsense(arguments: Namespace) -> Setting:
    tokenizer = _tokenizer(arguments.model)

    def read(part: str, count: int) -> Dataset:
        file = arguments.data / "llm-adapters" / "openbookqa" / f"{part}.json"
        rows = json.loads(file.read_text(encoding="utf-8"))[:count]
        # The space belongs to the completion, whose first token begins with it.
        pairs = [(f"{row['instruction']}\n\nAnswer:", f" {row['output']}") for row in rows]
        return _examples([{"prompt": p, "completion": c} for p, c in pairs], tokenizer)

    shape = {"layers": [16, 20, 24], "positions": "l4", "rank": 4, "batch": 16, "steps": 32}
    parts = read("train", 64), read("test", 32)
    return Setting("commonsense", arguments.model, tokenizer, *parts, **shape)


def _tokenizer(model: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def _examples(rows: list[dict], tokenizer: Any) -> Dataset:
    """Tokenized rows; a completion ends with the end-of-sequence token."""
    return pyreft.make_examples(Dataset.from_list(rows), tokenizer)


SETTINGS: dict[str, Callable[[Namespace], Setting]] = {
    "demonstrations": demonstrations,
    "classification": classification,
    "commonsense": commonsense,
}


# ---- methods ---------------------------------------------------------------------------------


def build(setting: Setting, method: str) -> nn.Module:
    """The model that a method trains, a `ReftModel` or a `PeftModel`."""
    base = setting.load()
    heads = HEAD if setting.classifies else None
    if method in ("lora", "lora_plus"):
        targets = ["query", "value"] if setting.classifies else ["q_proj", "v_proj"]
        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=heads)
        return peft.get_peft_model(base, lora)
    edited = {name: getattr(setting, name) for name in ("layers", "positions", "rank")}
    config = pyreft.ReftConfig(kind="loreft", **edited, modules_to_save=heads)
    if method == "recommended":
        config = pyreft.recommended(base).config
    model = pyreft.get_reft_model(base, config)
    if method == "householder":
        for module in list(model.interventions.modules()):
            if isinstance(module, pyreft.LoreftIntervention):
                module.rotate_layer = parametrized(module.rotate_layer)
    return model


def optimizer_arguments(model: nn.Module, method: str, rate: float) -> dict[str, Any]:
    """What the trainer of a method is given beside its training arguments."""
    if method == "lora_plus":
        options = {"lr": rate, "loraplus_lr_ratio": LORA_PLUS_RATIO}
        optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, **options)
        return {"optimizers": (optimizer, None)}
    if method == "recommended":
        return {"learning_rate_ratios": pyreft.recommended(model.model).learning_rate_ratios}
    return {}


def orthonormality_error(model: nn.Module) -> float | None:
    """max |R R^T - I| over all interventions; None if there is none."""
    layers = [m.rotate_layer for m in model.modules() if hasattr(m, "rotate_layer")]
    weights = [layer.weight.detach().cpu().double() for layer in layers]
    errors = [float((w.mT @ w - torch.eye(w.shape[1])).abs().max()) for w in weights]
    return max(errors, default=None)


def training_arguments(arguments: Namespace, seed: int, **changes: Any) -> TrainingArguments:
    """Those of a quiet run that keeps nothing on disk, with a rate, a batch and a length."""
    return TrainingArguments(
        output_dir=str(arguments.out / "learning_trainer"),
        seed=seed,
        # Else the order of the rows depends on what was random before.
        data_seed=seed,
        weight_decay=0.0,
        use_cpu=arguments.device == "cpu",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **changes,
    )


# ---- what a run records ---------------------------------------------------------------------


class LossesMixin:
    """The part of a trainer that keeps the loss of every step, before it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses: list[torch.Tensor] = []
        self.remove_callback(PrinterCallback)  # type: ignore[attr-defined]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.losses.append(loss)
        return loss


class PlainTrainer(LossesMixin, Trainer): ...


class ReftTrainer(LossesMixin, pyreft.ReftTrainer): ...


class Scores(TrainerCallback):
    """Scores in the course of a run, and the seconds trained until then.

    A point has the loss of held-out rows, and as `trained` that of rows that are trained on; both
    are of the model as it is used, without dropout.
    """

    def __init__(self, setting: Setting, steps: int) -> None:
        quarters = {round(i * steps / EVALUATIONS) for i in range(EVALUATIONS + 1)}
        self.steps = sorted({*quarters, steps // 3})
        self.points: list[dict] = []
        self._seconds = 0.0
        self._held_out = self._batch(setting.held_out, setting)
        self._trained = self._batch(list(setting.train)[:TRAINED], setting)

    @staticmethod
    def _batch(rows: Iterable[dict], setting: Setting) -> list[dict]:
        """Batches of rows of a length together: little of them is padding."""
        collate = pyreft.ReftDataCollator(tokenizer=setting.tokenizer)
        ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
        starts = range(0, len(ordered), setting.batch)
        return [collate(ordered[i : i + setting.batch]) for i in starts]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._score(kwargs["model"], 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._seconds += time.perf_counter() - self._since
            self._score(kwargs["model"], state.global_step)

    def _score(self, model: nn.Module, step: int) -> None:
        scores = evaluate(model, self._held_out)
        trained = evaluate(model, self._trained)["loss"]
        self.points.append({"step": step, "seconds": self._seconds, "trained": trained, **scores})
        self._since = time.perf_counter()


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[dict]) -> dict[str, float]:
    """The mean loss over labels; the accuracy where a row has one label."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    loss = right = count = 0.0
    for batch in batches:
        batch = {name: value.to(device) for name, value in batch.items()}
        labels = batch["labels"]
        output = model(**batch)
        number = int((labels != -100).sum())
        loss, count = loss + float(output.loss) * number, count + number
        if labels.dim() == 1:
            right += int((output.logits.argmax(-1) == labels).sum())
    model.train(training)
    accuracy = {"accuracy": right / count} if labels.dim() == 1 else {}
    return {"loss": loss / count, **accuracy}
