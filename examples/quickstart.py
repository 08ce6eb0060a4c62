"""Teach a chat model to answer in emoji, from eight demonstrations, in a minute or two on a CPU.

    python examples/quickstart.py
    python examples/quickstart.py --model HuggingFaceTB/SmolLM2-360M-Instruct     # needs a network

LoReFT interventions of rank 4 edit the last prompt token at a few layers, and nothing else is
trained; layers and learning rates are those that pyreft recommends. The script prints answers
before and after, saves the adapter, loads it into a fresh model, checks that it answers the same
there, and draws the loss curve.
"""

import argparse
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

import pyreft
from base_model import smollm2

DEMONSTRATIONS = [
    ("Who are you?", "🤖💬"),
    ("What do cats like?", "🐱🐟💤"),
    ("How do I bake a cake?", "🥚🥛🎂"),
    ("What is winter like?", "⛄🧣"),
    ("Tell me about the ocean.", "🌊🐠🐋"),
    ("What grows in a garden?", "🌱🌻🍅"),
    ("What happens at night?", "🌙⭐🦉"),
    ("How can I stay healthy?", "🏃🥗💧"),
]
UNSEEN = ["What do dogs like?", "What is summer like?", "How do I bake bread?"]


def load(name: str | None):
    """The base model and its tokenizer, from a directory or the Hub."""
    name = name or smollm2()
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), tokenizer


def prompt(tokenizer, question: str) -> str:
    """The question in the model's chat template, or plain for a model that has none."""
    if tokenizer.chat_template is None:
        return f"Question: {question}\nAnswer:"
    chat = [{"role": "user", "content": question}]
    if "SmolLM2" in tokenizer.name_or_path:
        # Short, where the template's own would be two thirds of every prompt.
        chat = [{"role": "system", "content": "Chat."}, *chat]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def answer(model, tokenizer, questions: list[str], tokens: int = 20) -> list[str]:
    """Greedy answers to all questions, in one left-padded batch."""
    prompts = [prompt(tokenizer, question) for question in questions]
    batch = tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    ids = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def show(title: str, answers: list[str]) -> None:
    print(f"\n{title}")
    for question, text in zip(UNSEEN, answers, strict=True):
        print(f"  {question:<26} {' '.join(text.split())[:80]}")


def draw(history: list[dict], path: Path) -> None:
    """The loss curve, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.semilogy(*zip(*steps, strict=True))
    axes.set(xlabel="step", ylabel="loss", title="LoReFT on eight demonstrations")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to edit; some by default")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--no-reuse", action="store_true", help="compute what is frozen each time")
    parser.add_argument("--out", type=Path, default=Path("out/quickstart"))
    arguments = parser.parse_args()
    set_seed(42)

    base, tokenizer = load(arguments.model)
    chosen = pyreft.recommended(base)
    layers = arguments.layers or chosen.config.layers
    config = pyreft.ReftConfig(layers=layers, positions="l1", rank=arguments.rank)
    model = pyreft.get_reft_model(base, config)
    print(model)
    model.print_trainable_parameters()
    with model.disable_adapter():
        before = answer(model, tokenizer, UNSEEN)

    examples = Dataset.from_dict(
        {
            "prompt": [prompt(tokenizer, question) for question, _ in DEMONSTRATIONS],
            "completion": [emoji for _, emoji in DEMONSTRATIONS],
        }
    )
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=len(examples),
            learning_rate=chosen.learning_rate,
            logging_steps=2,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=pyreft.make_examples(examples, tokenizer),
        processing_class=tokenizer,
        learning_rate_ratios=chosen.learning_rate_ratios,
        reuse_frozen=not arguments.no_reuse,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    loss = next(e["loss"] for e in reversed(trainer.state.log_history) if "loss" in e)

    after = answer(model, tokenizer, UNSEEN)
    show("Before", before)
    show("After", after)

    adapter = arguments.out / "adapter"
    model.save_pretrained(adapter)
    draw(trainer.state.log_history, arguments.out / "loss.png")
    size = sum(file.stat().st_size for file in adapter.iterdir())

    reloaded = pyreft.ReftModel.from_pretrained(load(arguments.model)[0], adapter)
    if answer(reloaded, tokenizer, UNSEEN) != after:
        raise SystemExit("the reloaded adapter answers otherwise")
    print(f"\nThe reloaded adapter answers the same ({size / 1024:.0f} KiB in {adapter}).")
    print(f"Trained in {seconds:.1f} s to a loss of {loss:.4f}: {arguments.out / 'loss.png'}")


if __name__ == "__main__":
    main()
