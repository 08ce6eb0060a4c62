"""Train PEFT's LoRA and LoReFT together, and compare with either of them alone.

    python examples/lora_and_reft.py
    python examples/lora_and_reft.py --epochs 20

A base model with a LoRA is a base model as any other. `disable_model_grads=False` lets the LoRA
learn beside the interventions; both are saved in one adapter. The script prints losses and answers,
and draws the losses of the three runs.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments, set_seed

import pyreft
from quickstart import DEMONSTRATIONS, UNSEEN, answer, load, prompt


def make_model(method: str, name: str | None):
    """The model to train, and its tokenizer."""
    base, tokenizer = load(name)
    set_seed(42)
    chosen = pyreft.recommended(base)
    if "LoRA" in method:
        middle = len(base.model.layers) // 2
        lora = LoraConfig(
            r=4, target_modules=["o_proj"], layers_to_transform=[middle], task_type="CAUSAL_LM"
        )
        base = get_peft_model(base, lora)
    if "ReFT" in method:
        # Whatever is trainable stays so with a LoRA; without one that would be the whole model.
        frozen = "LoRA" not in method
        base = pyreft.get_reft_model(base, chosen.config, disable_model_grads=frozen)
    return base, tokenizer


def train(method: str, model, tokenizer, arguments: argparse.Namespace) -> list[dict]:
    """Train what is trainable, and return the log of the run."""
    rows = {
        "prompt": [prompt(tokenizer, question) for question, _ in DEMONSTRATIONS],
        "completion": [emoji for _, emoji in DEMONSTRATIONS],
    }
    trainer_class = pyreft.ReftTrainer if "ReFT" in method else Trainer
    trainer = trainer_class(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=len(DEMONSTRATIONS),
            learning_rate=arguments.learning_rate,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=pyreft.make_examples(Dataset.from_dict(rows), tokenizer),
        data_collator=pyreft.ReftDataCollator(tokenizer=tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer.state.log_history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--out", type=Path, default=Path("out/lora_and_reft"))
    arguments = parser.parse_args()

    runs = {}
    for method in ("LoRA", "LoReFT", "LoRA and LoReFT"):
        model, tokenizer = make_model(method, arguments.model)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        runs[method] = train(method, model, tokenizer, arguments)
        loss = [entry["loss"] for entry in runs[method] if "loss" in entry][-1]
        print(f"\n{method}: {trained:,} trained numbers, loss {loss:.3f}")
        for question, text in zip(UNSEEN, answer(model, tokenizer, UNSEEN), strict=True):
            print(f"  {question:<22} {' '.join(text.split())}")
    model.save_pretrained(arguments.out / "adapter")
    pyreft.plot_runs(runs, metrics=["loss"]).savefig(arguments.out / "losses.png", dpi=110)
    print(f"\nThe adapter with both is in {arguments.out / 'adapter'}; losses.png is beside it.")


if __name__ == "__main__":
    main()
