"""Teach an encoder to tell complaints from praise, from a few dozen reviews, in seconds on a CPU.

    python examples/classification.py
    python examples/classification.py --data reviews.csv --text review --label stars
    python examples/classification.py --data glue/MRPC/train.tsv --text "#1 String" \\
        --pair "#2 String" --label Quality --rows 1000

LoReFT interventions of rank 4 edit the first three tokens at every layer of all-MiniLM-L6-v2; the
head is trained beside them and saved with them. A fifth of the rows is held out.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainingArguments,
    set_seed,
)

import pyreft
from base_model import minilm

PRAISE = """\
The soup was wonderful and the waiter made us laugh all evening.
I would buy this lamp again without a second thought.
A warm, clever film that I did not want to end.
The room was spotless and the view took my breath away.
Setup took two minutes and it has run quietly ever since.
Best haircut I have had in years, thank you!
The guide knew every bird by name, a perfect morning.
My parcel came a day early and well packed.
Crisp picture, rich sound, worth every cent.
They fixed my bike while I waited and charged nothing.
The bread alone is a reason to come back.
Such a moving concert, we stood and clapped for minutes.
The staff remembered my name and my coffee.
A comfortable chair, and beautiful too.
My daughter loves the book and reads it every night.
The app is fast, clear and never crashes.
Great battery, I charge it once a week.
A lovely garden, calm and full of colour.
The repair was quick, cheap and done with care.
I felt welcome from the first minute.
The tent stayed dry through three nights of rain.
Our vet was gentle, and the cat is well again.
These shoes fit as if they were made for me.
The museum was a joy, we stayed until it closed.
A smooth flight, and the crew could not do enough.
The pizza came hot, and it was superb.
The new knife cuts tomatoes like air.
An honest garage with fair prices.
The teacher made physics fun for my son.
The hotel kept its promise: silence, and a perfect bed.""".splitlines()
COMPLAINTS = """\
The soup was cold and nobody came when we called.
The lamp broke after two days and the shop will not answer.
A dull film, I fell asleep before the middle.
The room smelled of smoke and the sheets were dirty.
Setup took a whole day and it still fails every hour.
The worst haircut of my life, I wear a hat now.
The guide was late, rude and knew nothing.
My parcel came open and half of it was gone.
Blurry picture, tinny sound, a waste of money.
They kept my bike for a month and lost the saddle.
The bread was stale and the butter was rancid.
A lifeless concert, people left in the pause.
The staff ignored us and then got the bill wrong.
The chair creaks, wobbles and hurts my back.
My daughter threw the book away after one page.
The app is slow, confusing and crashes all the time.
Terrible battery, it dies before noon.
A neglected garden full of rubbish.
The repair was slow, expensive and did not hold.
I felt unwelcome from the first minute.
The tent leaked in the first rain, and we went home.
The vet was rough, and the cat is worse than before.
These shoes fell apart within a week.
The museum was half closed, and no refund was given.
A terrible flight, three hours late and not a word of why.
The pizza came cold, and the cheese was rubber.
The new knife was blunt when it came.
The garage charged me for work that nobody did.
The teacher shouted, and my son hates physics now.
The hotel lied: a road below the window, and a broken bed.""".splitlines()


def read(arguments) -> Dataset:
    """The rows as text, pair and label, labels as class indices."""
    if arguments.data is None:
        rows = [{"text": text, "label": "praise"} for text in PRAISE]
        rows += [{"text": text, "label": "complaint"} for text in COMPLAINTS]
        data = Dataset.from_list(rows)
    else:
        suffix = arguments.data.suffix.lstrip(".")
        options = {"sep": "\t", "quoting": csv.QUOTE_NONE} if suffix == "tsv" else {}
        loader = {"tsv": "csv", "jsonl": "json"}.get(suffix, suffix)
        data = load_dataset(loader, data_files=str(arguments.data), split="train", **options)
        names = {arguments.text: "text", arguments.pair: "pair", arguments.label: "label"}
        names.pop(None, None)
        if missing := set(names) - set(data.column_names):
            raise SystemExit(
                f"no column {missing.pop()!r}; {arguments.data} has {data.column_names}"
            )
        data = data.select_columns(list(names)).rename_columns(names)
    if not isinstance(data.features["label"], ClassLabel):
        data = data.class_encode_column("label")
    return data.shuffle(seed=0).select(range(min(arguments.rows or len(data), len(data))))


def accuracy(evaluated) -> dict[str, float]:
    return {"accuracy": float(np.mean(evaluated.predictions.argmax(-1) == evaluated.label_ids))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a csv, tsv, json, jsonl or parquet file")
    parser.add_argument("--text", default="text", help="its column of texts")
    parser.add_argument("--pair", help="its column of second texts, if it has one")
    parser.add_argument("--label", default="label", help="its column of labels")
    parser.add_argument("--rows", type=int, help="use so many rows; all by default")
    parser.add_argument("--model", help="an encoder; all-MiniLM-L6-v2 by default")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--out", type=Path, default=Path("out/classification"))
    arguments = parser.parse_args()
    set_seed(42)

    data = read(arguments)
    labels = data.features["label"].names
    name = arguments.model or minilm()
    tokenizer = AutoTokenizer.from_pretrained(name)

    def load():
        set_seed(42)  # the head starts at random
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=len(labels))

    def tokenize(rows: dict) -> dict:
        return tokenizer(rows["text"], rows.get("pair"), truncation=True, max_length=256)

    texts = [column for column in data.column_names if column != "label"]
    parts = data.map(tokenize, batched=True, remove_columns=texts).train_test_split(0.2, seed=0)

    config = pyreft.ReftConfig(
        positions="f3", rank=arguments.rank, dropout=0.05, modules_to_save=["classifier"]
    )
    model = pyreft.get_reft_model(load(), config)
    model.print_trainable_parameters()
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=8,
            learning_rate=arguments.learning_rate,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["test"],
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]

    adapter = arguments.out / "adapter"
    model.save_pretrained(adapter)
    trainer.model = trainer.model_wrapped = pyreft.ReftModel.from_pretrained(load(), adapter)
    if trainer.evaluate()["eval_accuracy"] != after:
        raise SystemExit("the reloaded adapter classifies otherwise")
    print(
        f"\n{len(parts['train'])} rows of {', '.join(labels)}. Accuracy on {len(parts['test'])} "
        f"others: {before:.2f} before, {after:.2f} after, and the same from {adapter}."
    )


if __name__ == "__main__":
    main()
