"""Supervised finetuning of a chat model with TRL's SFTTrainer.

    python examples/sft.py                       # a few chats of its own
    python examples/sft.py --data rows.jsonl     # rows with messages, or prompt and completion

Rows with a prompt and a completion go to the trainer as they are. Of chats, `make_examples` first
makes one example for each answer, so that training sees what `generate` will see.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

import pyreft
from base_model import smollm2

CHATS = [
    ("What is the sea?", "Arr, home!", "And the sky?", "Arr, our roof!"),
    ("Who are you?", "Arr, a pirate!", "Where is your ship?", "Arr, in the bay!"),
    ("What do you eat?", "Arr, fish!", "And what do you drink?", "Arr, rum!"),
    ("Do you like gold?", "Arr, aye!", "Do you like silver?", "Arr, aye, too!"),
]
UNSEEN = ["Do you like ships?", "What is the moon?"]


class ReftSFTTrainer(pyreft.AdapterCheckpoints, SFTTrainer):
    """TRL's trainer, whose checkpoints hold the adapter alone."""


def chats() -> Dataset:
    roles = ["user", "assistant"] * 2
    rows = [[{"role": r, "content": c} for r, c in zip(roles, chat, strict=True)] for chat in CHATS]
    return Dataset.from_dict({"messages": rows})


def answer(model, tokenizer, question: str) -> str:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--data", type=Path, help="JSON lines")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to edit; some by default")
    parser.add_argument("--positions", default="f1+l1")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=512, help="tokens of an example")
    parser.add_argument("--out", type=Path, default=Path("out/sft"))
    arguments = parser.parse_args()
    set_seed(42)

    name = arguments.model or smollm2()
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    depth = base.config.num_hidden_layers
    layers = arguments.layers or list(range(depth // 2 - 1, 5 * depth // 6, 2))
    config = pyreft.ReftConfig(layers=layers, positions=arguments.positions, rank=arguments.rank)
    model = pyreft.get_reft_model(base, config)
    model.print_trainable_parameters()

    rows = chats() if arguments.data is None else Dataset.from_json(str(arguments.data))
    if "messages" in rows.column_names:
        rows = pyreft.make_examples(rows, tokenizer, max_length=arguments.max_length)
    trainer = ReftSFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            max_length=arguments.max_length,
            logging_steps=1,
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"\nloss {losses[0]:.3f} -> {losses[-1]:.3f}")
    for question in UNSEEN:
        with model.disable_adapter():
            before = answer(model, tokenizer, question)
        print(f"{question}\n  before: {before}\n  after:  {answer(model, tokenizer, question)}")
    model.save_pretrained(arguments.out / "adapter")
    print(f"The adapter is in {arguments.out / 'adapter'}.")


if __name__ == "__main__":
    main()
