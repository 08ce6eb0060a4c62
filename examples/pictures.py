"""Train two adapters of one base model in a minute, and draw what they do.

    python examples/pictures.py
    python examples/pictures.py --pictures docs       # the pictures of docs/pictures.md

"emoji" answers in emoji: it edits the last prompt token. "pirate" answers as one: it edits the
first and last three prompt tokens. The script prints a summary, and writes a page with what
notebooks show, pictures.html, and four figures.
"""

import argparse
import io
from pathlib import Path

import torch
from datasets import Dataset
from PIL import Image
from transformers import TrainingArguments, set_seed

import pyreft
from quickstart import DEMONSTRATIONS, UNSEEN, load, prompt

HELD_OUT = {"emoji": ["🐶🦴", "☀🏖", "🍞🔥"], "pirate": ["Arr, bones!", "Arr, sun!", "Arr, flour!"]}
PIRATE = ["Arr, a pirate!", "Arr, fish!", "Arr, sugar!", "Arr, snow!", "Arr, salt!"]
PIRATE += ["Arr, roots!", "Arr, stars!", "Arr, rum!"]


def examples(tokenizer, questions, answers):
    rows = {"prompt": [prompt(tokenizer, q) for q in questions], "completion": answers}
    return pyreft.make_examples(Dataset.from_dict(rows), tokenizer)


def train(name: str, model, tokenizer, answers, chosen, arguments) -> list[dict]:
    """Train the active adapter, and return the log of the run."""
    questions = [question for question, _ in DEMONSTRATIONS]
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / name),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=len(questions),
            learning_rate=chosen.learning_rate / 2,
            logging_steps=1,
            eval_strategy="steps",
            eval_steps=5,
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=examples(tokenizer, questions, answers),
        eval_dataset=examples(tokenizer, UNSEEN, HELD_OUT[name]),
        processing_class=tokenizer,
        learning_rate_ratios=chosen.learning_rate_ratios,
    )
    trainer.train()
    return trainer.state.log_history


def save(figure, path: Path) -> None:
    """Write a PNG of 256 colours, which is small."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    Image.open(image).convert("RGB").quantize(256).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a chat model; SmolLM2-135M by default")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pictures", type=Path, help="where figures go; the same as --out")
    parser.add_argument("--out", type=Path, default=Path("out/pictures"))
    arguments = parser.parse_args()
    set_seed(42)

    base, tokenizer = load(arguments.model)
    chosen = pyreft.recommended(base)
    model = pyreft.get_reft_model(base, chosen.config, adapter_name="emoji")
    emoji = [answer for _, answer in DEMONSTRATIONS]
    runs = {"emoji": train("emoji", model, tokenizer, emoji, chosen, arguments)}
    pirate = pyreft.ReftConfig(layers=chosen.config.layers, positions="f3+l3", rank=4)
    model.add_adapter("pirate", pirate)
    model.set_adapter("pirate")
    runs["pirate"] = train("pirate", model, tokenizer, PIRATE, chosen, arguments)
    print(model.summary())

    text = prompt(tokenizer, UNSEEN[0])
    shown = {
        "edit_strengths": pyreft.edit_strengths(model, tokenizer, text),
        "logit_lens": pyreft.logit_lens(model, tokenizer, text, top=4),
        "subspace_angles": pyreft.subspace_angles(model, "emoji", "pirate"),
    }
    directory = arguments.pictures or arguments.out
    directory.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, one in shown.items():
        print(f"\n{one}")
        save(one.plot(), directory / f"{name}.png")
    save(pyreft.plot_runs(runs), directory / "plot_runs.png")
    page = "<hr>".join(one._repr_html_() for one in (model, *shown.values()))
    (arguments.out / "pictures.html").write_text(f'<meta charset="utf-8">{page}', encoding="utf-8")


if __name__ == "__main__":
    main()
