"""Train LoReFT in two processes, which end with the adapter that one process would end with.

    torchrun --nproc-per-node 2 examples/distributed.py
    accelerate launch --multi_gpu --num_processes 2 examples/distributed.py --data train.jsonl
    torchrun --nproc-per-node 2 examples/distributed.py --fsdp              # on GPUs

The first two run without GPUs as well. The rows of --data have the columns prompt and completion,
or those named by --columns. Without it the script has a few rows of its own. Each process has the
whole base model, or with --fsdp a part of each of its layers; each has all of the adapter, and the
first of them saves it.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

import pyreft
from base_model import smollm2

ROWS = [
    {"prompt": f"The capital of {country} is", "completion": f" {city}, of course!"}
    for country, city in {
        "France": "Paris",
        "Italy": "Rome",
        "Japan": "Tokyo",
        "Egypt": "Cairo",
        "Spain": "Madrid",
        "Peru": "Lima",
        "Norway": "Oslo",
        "Cuba": "Havana",
    }.items()
]


def load_rows(arguments: argparse.Namespace) -> Dataset:
    """The rows to train on, with the columns prompt and completion."""
    if arguments.data is None:
        return Dataset.from_list(ROWS)
    rows = Dataset.from_json(str(arguments.data)).select_columns(arguments.columns)
    for column, name in zip(arguments.columns, ("prompt", "completion"), strict=True):
        if column != name:
            rows = rows.rename_column(column, name)
    return rows.select(range(min(arguments.rows, len(rows))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a causal LM; SmolLM2-135M by default")
    parser.add_argument("--data", type=Path, help="a JSON or JSON lines file")
    parser.add_argument("--columns", nargs=2, default=["prompt", "completion"])
    parser.add_argument("--rows", type=int, default=200, help="how many of the data's to train on")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--fsdp", action="store_true", help="shard the base model, on GPUs")
    parser.add_argument("--out", type=Path, default=Path("out/distributed"))
    arguments = parser.parse_args()
    set_seed(42)

    # First of all, since it joins the process to the others.
    settings = TrainingArguments(
        output_dir=str(arguments.out / "trainer"),
        max_steps=arguments.steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        # Without it, processes on a machine that has no GPU do not know of each other.
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        fsdp=arguments.fsdp,
        fsdp_config={"version": 2} if arguments.fsdp else None,
    )
    name = arguments.model or smollm2()
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    depth = base.config.num_hidden_layers
    layers = list(range(depth // 2 - 1, 5 * depth // 6, 2))
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(layers=layers, positions="l1", rank=4))

    rows = load_rows(arguments)
    with settings.main_process_first(desc="tokenizing"):
        examples = pyreft.make_examples(rows, tokenizer)
    trainer = pyreft.ReftTrainer(
        model=model, args=settings, train_dataset=examples, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(arguments.out / "adapter"))

    prompt = tokenizer(rows[0]["prompt"], return_tensors="pt").to(settings.device)
    # In all processes: one that has a part of the base model cannot generate by itself.
    ids = trainer.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print(f"\n{settings.world_size} processes: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        print(tokenizer.decode(ids[0], skip_special_tokens=True))
        print(f"The adapter is in {arguments.out / 'adapter'}.")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
