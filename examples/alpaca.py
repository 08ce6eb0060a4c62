"""Instruction tuning with Alpaca's prompts: LoReFT at the first and last prompt token.

    python examples/alpaca.py                                          # instructions of its own
    python examples/alpaca.py --data alpaca_data.json --rows 1000      # Alpaca's own file

The file has a list of rows with instruction, input (which may be empty) and output. The script
prints answers to instructions it was not trained on, before and after.
"""

import argparse
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed

import pyreft
from quickstart import load

ROWS = [
    ("List three fruits.", "", "1. Apples\n2. Pears\n3. Plums"),
    ("List three cities in Spain.", "", "1. Madrid\n2. Seville\n3. Valencia"),
    ("List three birds.", "", "1. Owls\n2. Robins\n3. Gulls"),
    ("List three tools of a carpenter.", "", "1. Hammers\n2. Saws\n3. Chisels"),
    ("List three hot drinks.", "", "1. Tea\n2. Coffee\n3. Cocoa"),
    ("List three kinds of weather.", "", "1. Rain\n2. Snow\n3. Fog"),
    ("Name the opposite of the word.", "hot", "cold"),
    ("Name the opposite of the word.", "big", "small"),
    ("Name the opposite of the word.", "open", "closed"),
    ("Name the opposite of the word.", "early", "late"),
    ("Write the word in capital letters.", "river", "RIVER"),
    ("Write the word in capital letters.", "cloud", "CLOUD"),
    ("Write the word in capital letters.", "stone", "STONE"),
    ("Write the word in capital letters.", "music", "MUSIC"),
]
UNSEEN = [
    ("List three vegetables.", ""),
    ("Name the opposite of the word.", "dark"),
    ("Write the word in capital letters.", "house"),
]


def data_set(rows, tokenizer, **options) -> pyreft.ReftSupervisedDataset:
    """Alpaca's prompts of the rows of a file or a list; only the outputs have labels."""
    path, rows = (rows, None) if isinstance(rows, Path) else (None, rows)
    options |= {"instruction_field": "instruction", "input_field": "input"}
    return pyreft.ReftSupervisedDataset(
        None, path, tokenizer, dataset=rows, output_field="output", **options
    )


def answers(model, tokenizer, examples) -> list[str]:
    """Greedy answers to the prompts of examples, without their outputs."""
    texts = []
    for example in examples:
        count = (torch.as_tensor(example["labels"]) == -100).sum()
        prompt = torch.as_tensor(example["input_ids"])[None, :count].to(model.device)
        ids = model.generate(prompt, max_new_tokens=24, do_sample=False)
        texts.append(tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True))
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a causal LM; SmolLM2-135M by default")
    parser.add_argument("--data", type=Path, help="a file with instruction, input and output")
    parser.add_argument("--rows", type=int, help="use so many rows; all by default")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to edit; some by default")
    parser.add_argument("--positions", default="f1+l1")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--epochs", type=float, default=12)
    parser.add_argument("--batch-size", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("out/alpaca"))
    arguments = parser.parse_args()
    set_seed(42)

    base, tokenizer = load(arguments.model)
    layers = arguments.layers or pyreft.recommended(base).config.layers[:4]
    config = pyreft.ReftConfig(layers=layers, positions=arguments.positions, rank=arguments.rank)
    model = pyreft.get_reft_model(base, config)
    model.print_trainable_parameters()

    columns = ("instruction", "input", "output")
    rows = arguments.data or [dict(zip(columns, row, strict=True)) for row in ROWS]
    unseen = [dict(zip(columns, (*row, "?"), strict=True)) for row in UNSEEN]
    unseen = data_set(unseen, tokenizer)
    with model.disable_adapter():
        before = answers(model, tokenizer, unseen)
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03,
            logging_steps=4,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=data_set(rows, tokenizer, max_n_example=arguments.rows),
        processing_class=tokenizer,
    )
    trainer.train()
    model.save_pretrained(arguments.out / "adapter")
    for row, *texts in zip(UNSEEN, before, answers(model, tokenizer, unseen), strict=True):
        print(f"\n{' '.join(row)}\n  before: {texts[0]!r}\n  after:  {texts[1]!r}")
    print(f"\nThe adapter is in {arguments.out / 'adapter'}.")


if __name__ == "__main__":
    main()
