"""Teach a model of pictures new classes: LoReFT on a vision transformer, in a minute on a CPU.

    python examples/images.py
    python examples/images.py --positions class --rank 4

The pictures are scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, half of them held out. A
small ViT is trained from nothing to name the digits 0 to 4, and is then frozen. The digits 5 to 9
are learned on top of it from 200 pictures, each method with a new head: the head alone, LoRA,
LoReFT after every layer as in the paper, and LoReFT in front of every attention.
"""

import argparse
from pathlib import Path

import numpy as np
import peft
import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from transformers import (
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
    set_seed,
)

import pyreft


def pictures() -> tuple[Dataset, Dataset, Dataset, Dataset]:
    """The digits below 5, then the others: to train on, and held out.

    Pixels (1, 8, 8) are from -1 to 1, and labels from 0 to 4.
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    pixels, labels = digits.images[order, None] / 8 - 1, digits.target[order]
    parts = []
    for wanted in (labels < 5, labels >= 5):
        columns = {"pixel_values": pixels[wanted].astype(np.float32), "labels": labels[wanted] % 5}
        rows = Dataset.from_dict(columns).with_format("torch")
        half = len(rows) // 2
        parts += [rows.select(range(half)), rows.select(range(half, len(rows)))]
    return tuple(parts)


def vit() -> ViTForImageClassification:
    """A ViT whose 16 patches are 2 x 2 pixels."""
    set_seed(0)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=5,
    )
    return ViTForImageClassification(config)


def accuracy(evaluated) -> dict[str, float]:
    return {"accuracy": float(np.mean(evaluated.predictions.argmax(-1) == evaluated.label_ids))}


def fit(
    trainer: type[Trainer],
    model,
    rows,
    held_out,
    steps: int,
    rate: float,
    out: Path,
    collate=default_data_collator,
) -> float:
    """Train a classifier, and return its accuracy on held-out rows."""
    set_seed(0)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=256,
        learning_rate=rate,
        weight_decay=0.0,
        logging_steps=100,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    running = trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        data_collator=collate,
        compute_metrics=accuracy,
    )
    running.train()
    return running.evaluate()["eval_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", default="all", help='such as "class" or "rows0-1"')
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("out/images"))
    arguments = parser.parse_args()
    low, held_out_low, high, held_out = pictures()
    few, steps, out = high.select(range(200)), arguments.steps, arguments.out

    base = vit()
    found = fit(Trainer, base, low, held_out_low, steps, 1e-3, out)
    print(f"\nThe base model names {found:.1%} of {len(held_out_low)} held-out digits below 5.\n")

    def start() -> ViTForImageClassification:
        """The trained base model, frozen, with a new head."""
        model = vit()
        model.vit.load_state_dict(base.vit.state_dict())
        return model.requires_grad_(False)

    def reft(component: str) -> pyreft.ReftModel:
        config = pyreft.ReftConfig(
            component=component,
            positions=arguments.positions,
            rank=arguments.rank,
            modules_to_save=["classifier"],
        )
        return pyreft.get_reft_model(start(), config)

    head = start()
    head.classifier.requires_grad_(True)
    # Of either name, before and since transformers 5.9.
    targets = r".*\.(q_proj|v_proj|query|value)"
    lora = peft.LoraConfig(r=4, target_modules=targets, modules_to_save=["classifier"])
    methods = {
        "head alone": (Trainer, head),
        "LoRA": (Trainer, peft.get_peft_model(start(), lora)),
        "LoReFT, block_output": (pyreft.ReftTrainer, reft("block_output")),
        "LoReFT, attention_input": (pyreft.ReftTrainer, reft("attention_input")),
    }
    lines = []
    for name, (trainer, model) in methods.items():
        found = fit(trainer, model, few, held_out, steps, 2e-2, out)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines.append(f"{name:<24}{trained:>7,} trained numbers{found:>8.1%}")
    model.save_pretrained(out / "adapter")
    print(f"\nThe digits from 5, learned from {len(few)} pictures, on {len(held_out)} others:")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
