"""GLUE with a small encoder: LoReFT, DiReFT, LoRA, the head alone and full fine-tuning.

    python examples/benchmarks/glue.py --data glue          # glue/MRPC/train.tsv, dev.tsv, ...

The protocol is the paper's (Wu et al. 2024, section 4.4): after every epoch one half of the
development set is scored to pick the best epoch, the other half, at that epoch, is the result. All
methods train the same head. Runs are appended to a file as they end, and those that are in there
are not run again, so that a table can be made in several sittings.
"""

import argparse
import csv
import json
import runpy
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import pyreft

# Of each task: the columns of its two sentences, of its label, and the label's names.
TASKS = {
    "MRPC": ("#1 String", "#2 String", "Quality", ["0", "1"]),
    "RTE": ("sentence1", "sentence2", "label", ["entailment", "not_entailment"]),
}
HEAD = ["pooler", "classifier"]
# Learning rates, for a few epochs; chosen beforehand, not tuned. The paper's 3e-4 is for 40 epochs.
RATES = {"LoReFT": 3e-3, "DiReFT": 3e-3, "LoRA": 1e-3, "head only": 3e-3, "full": 5e-5}


def read(path: Path, task: str) -> Dataset:
    """The rows of a TSV file as first, second, label."""
    first, second, label, names = TASKS[task]
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return Dataset.from_list(
        [{"first": r[first], "second": r[second], "label": names.index(r[label])} for r in rows]
    )


def build(method: str, name: str):
    """The model to train, and the trainer's class."""
    base = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    if method == "full":
        return base, Trainer
    if method == "head only":
        for parameter_name, parameter in base.named_parameters():
            parameter.requires_grad = any(part in parameter_name for part in HEAD)
        return base, Trainer
    if method == "LoRA":
        targets = ["query", "value"]
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=HEAD)
        return get_peft_model(base, lora), Trainer
    # The paper's setting for MRPC and RTE: all layers, f3, rank 1, dropout 0.05.
    kind = {"LoReFT": "loreft", "DiReFT": "nodireft"}[method]
    config = pyreft.ReftConfig(
        kind=kind, positions="f3", rank=1, dropout=0.05, modules_to_save=HEAD
    )
    return pyreft.get_reft_model(base, config), pyreft.ReftTrainer


def parameters(model) -> tuple[int, int]:
    """Trained parameters without the head, and of the head."""
    sizes = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    head = sum(size for name, size in sizes.items() if any(part in name for part in HEAD))
    return sum(sizes.values()) - head, head


def accuracy(evaluated) -> dict[str, float]:
    return {"accuracy": float(np.mean(evaluated.predictions.argmax(-1) == evaluated.label_ids))}


class StepTimes(TrainerCallback):
    """Processor seconds of every optimiser step: what else the machine does counts little."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs) -> None:
        self.start = time.process_time()

    def on_step_end(self, *args, **kwargs) -> None:
        self.seconds.append(time.process_time() - self.start)


def run(arguments, task: str, method: str, seed: int) -> dict:
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    train = read(arguments.data / task / "train.tsv", task)
    dev = read(arguments.data / task / "dev.tsv", task).shuffle(seed=seed)
    if arguments.rows:
        train = train.shuffle(seed=seed).select(range(arguments.rows))

    def tokenize(rows: dict) -> dict:
        return tokenizer(rows["first"], rows["second"], truncation=True, max_length=128)

    sentences = ["first", "second"]
    train = train.map(tokenize, batched=True, remove_columns=sentences)
    dev = dev.map(tokenize, batched=True, remove_columns=sentences)
    half = len(dev) // 2
    halves = {"pick": dev.select(range(half)), "score": dev.select(range(half, len(dev)))}
    model, trainer_class = build(method, arguments.model)
    times = StepTimes()
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out.with_suffix("")),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=arguments.rate or RATES[method],
            warmup_steps=0.1,
            weight_decay=0.0,
            train_sampling_strategy="group_by_length",
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=20,
            bf16=arguments.bf16,
            use_cpu=not torch.cuda.is_available(),
            seed=seed,
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=train,
        eval_dataset=halves,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[times],
    )
    sizes = parameters(model)
    trainer.train()
    scores: dict[str, list[float]] = {
        name: [
            e[f"eval_{name}_accuracy"]
            for e in trainer.state.log_history
            if f"eval_{name}_accuracy" in e
        ]
        for name in halves
    }
    best = int(np.argmax(scores["pick"]))
    return {
        "task": task,
        "method": method,
        "seed": seed,
        "rate": arguments.rate or RATES[method],
        "epochs": arguments.epochs,
        "rows": len(train),
        "bf16": arguments.bf16,
        "parameters": sizes[0],
        "head": sizes[1],
        "best_epoch": best + 1,
        "pick": scores["pick"],
        "score": scores["score"][best],
        "step_seconds": statistics.median(times.seconds),
    }


def table(runs: list[dict]) -> str:
    """Mean and deviation over seeds, as Markdown."""
    lines = [
        "| task | method | parameters | head | accuracy | CPU s a step |",
        "|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for method in RATES:
            same = [r for r in runs if (r["task"], r["method"]) == (task, method)]
            if not same:
                continue
            scores = [100 * r["score"] for r in same]
            deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
            seconds = statistics.median(r["step_seconds"] for r in same)
            lines.append(
                f"| {task} | {method} | {same[0]['parameters']:,} | {same[0]['head']:,} | "
                f"{statistics.mean(scores):.1f} ± {deviation:.1f} (n={len(same)}) | {seconds:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the tasks' folders")
    parser.add_argument("--model", default=None, help="an encoder; all-MiniLM-L6-v2 by default")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--rate", type=float, help="learning rate; one for each method by default")
    parser.add_argument("--rows", type=int, help="train on so many rows; all by default")
    parser.add_argument("--bf16", action="store_true", help="run in bfloat16 autocast")
    parser.add_argument("--out", type=Path, default=Path("out/glue.jsonl"))
    arguments = parser.parse_args()
    if arguments.model is None:
        beside = Path(__file__).parents[1] / "base_model.py"
        arguments.model = runpy.run_path(str(beside))["minilm"]()

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
    runs = [json.loads(line) for line in lines]
    done = {(r["task"], r["method"], r["seed"]) for r in runs}
    for seed in arguments.seeds:
        for task in arguments.tasks:
            for method in arguments.methods:
                if (task, method, seed) in done:
                    continue
                runs.append(run(arguments, task, method, seed))
                with open(arguments.out, "a", encoding="utf-8") as file:
                    file.write(json.dumps(runs[-1]) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
