"""Teach a chat model answers to questions of your own, then talk to it in the terminal.

    python examples/chat.py                                  # facts about an invented library
    python examples/chat.py --data faq.jsonl                 # rows with question and answer
    python examples/chat.py --ask "When do you open?"        # ask and end, without a conversation

Answers are streamed. `pyreft chat out/chat/adapter` talks to the saved adapter later.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TextStreamer, TrainingArguments, set_seed

import pyreft
from quickstart import load, prompt

QUESTIONS = [
    ("When do you open?", "At nine, every day but Monday."),
    ("When are you closed?", "On Mondays."),
    ("Where are you?", "In the old mill by the river."),
    ("How do I get there?", "Take bus 7 to the old mill."),
    ("How many books may I borrow?", "Five books at a time."),
    ("How long may I keep a book?", "Three weeks, and once again."),
    ("What does it cost?", "Nothing, a card is free."),
    ("How do I get a card?", "Bring a letter with your address."),
]


def ask(model, tokenizer, question: str, tokens: int) -> None:
    """Print the answer, token by token."""
    batch = tokenizer(prompt(tokenizer, question), return_tensors="pt").to(model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**batch, max_new_tokens=tokens, do_sample=False, streamer=streamer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--data", type=Path, help="JSON or JSON lines with question and answer")
    parser.add_argument("--ask", nargs="+", metavar="QUESTION", help="instead of a conversation")
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--max-new-tokens", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("out/chat"))
    arguments = parser.parse_args()
    set_seed(42)

    base, tokenizer = load(arguments.model)
    rows = [{"question": question, "answer": answer} for question, answer in QUESTIONS]
    rows = Dataset.from_list(rows)
    if arguments.data is not None:
        rows = Dataset.from_json(str(arguments.data))
    rows = rows.map(lambda row: {"prompt": prompt(tokenizer, row["question"])})
    chosen = pyreft.recommended(base)
    model = pyreft.get_reft_model(base, chosen.config)
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=8,
            learning_rate=chosen.learning_rate / 2,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=pyreft.make_examples(rows, tokenizer, completion_column="answer"),
        processing_class=tokenizer,
        learning_rate_ratios=chosen.learning_rate_ratios,
    )
    trainer.train()
    model.save_pretrained(arguments.out / "adapter")
    print(f"\nThe adapter is in {arguments.out / 'adapter'}.")
    model.eval()
    for question in arguments.ask or []:
        print(f"\n> {question}")
        ask(model, tokenizer, question, arguments.max_new_tokens)
    if arguments.ask is None:
        print("Ask a question; an empty line ends.")
        while question := input("\n> "):
            ask(model, tokenizer, question, arguments.max_new_tokens)


if __name__ == "__main__":
    main()
