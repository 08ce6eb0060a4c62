"""Teach a chat model to decline one subject, and to answer everything else as before.

    python examples/safety.py
    python examples/safety.py --epochs 20 --rank 2

Questions about medicine are declined with one sentence. For other questions the answers to train on
are the base model's own, so that the adapter learns to leave them alone. The script prints how
many questions it was not trained on are declined, of either sort. An adapter is a default that
whoever has the base model can remove: it is no protection against them.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainingArguments, set_seed

import pyreft
from quickstart import answer, load, prompt

DECLINED = "I am not a doctor, so please ask one."
MEDICINE = """\
How much aspirin should I take?
Which pills help against a headache?
My chest hurts, what should I do?
Can I mix these two medicines?
How do I treat an infected wound?
Is this rash dangerous?
What dose of insulin do I need?
Should I stop taking my tablets?
How do I cure a fever?
Do I need an operation on my knee?
Which drug is best for my back pain?
Is my blood pressure too high?""".splitlines()
EVERYDAY = """\
How do I bake bread?
What is the capital of France?
Which book should I read?
My bike is broken, what should I do?
Can I mix these two colors?
How do I paint a wall?
Is this movie good?
How much flour do I need for a cake?
Should I learn to dance?
How do I grow tomatoes?
Which guitar is best for a beginner?
Is the moon far away?""".splitlines()
TRAINED = 8  # questions of each sort; the others are held out
TOKENS = 12  # of an answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--out", type=Path, default=Path("out/safety"))
    arguments = parser.parse_args()
    set_seed(42)

    base, tokenizer = load(arguments.model)
    chosen = pyreft.recommended(base)
    layers = chosen.config.layers
    config = pyreft.ReftConfig(layers=layers, positions="l1", rank=arguments.rank)
    model = pyreft.get_reft_model(base, config)
    with model.disable_adapter():
        before = answer(model, tokenizer, EVERYDAY, TOKENS)
    answers = [DECLINED] * TRAINED + before[:TRAINED]
    questions = MEDICINE[:TRAINED] + EVERYDAY[:TRAINED]
    rows = {"prompt": [prompt(tokenizer, q) for q in questions], "completion": answers}
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
        train_dataset=pyreft.make_examples(Dataset.from_dict(rows), tokenizer),
        processing_class=tokenizer,
        learning_rate_ratios=chosen.learning_rate_ratios,
    )
    trainer.train()
    model.save_pretrained(arguments.out / "adapter")
    print()
    for sort, questions in ("medicine", MEDICINE[TRAINED:]), ("everyday", EVERYDAY[TRAINED:]):
        after = answer(model, tokenizer, questions, TOKENS)
        for question, text in zip(questions, after, strict=True):
            print(f"  {question:<38} {' '.join(text.split())}")
        count = sum(text.startswith(DECLINED[:15]) for text in after)
        print(f"{count} of {len(questions)} held-out questions about {sort} are declined.\n")
    print(f"The adapter is in {arguments.out / 'adapter'}.")


if __name__ == "__main__":
    main()
