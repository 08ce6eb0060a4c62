"""Store a text in one vector: how many of its tokens can a single edit of one token give back?

    python examples/memorisation.py
    python examples/memorisation.py --text alice.txt --tokens 256 --steps 600

LobiReFT of rank 1 adds one learned vector to the hidden state of the last prompt token, at one
layer; it does not depend on the input. The prompt is one word, and the model is frozen. What the
model then writes is compared with the text, token by token. Upstream's example of this name asks
the same of larger models.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, set_seed

import pyreft
from base_model import smollm2

TEXT = """\
The lighthouse keeper counted ships as other people count sheep. On the first night of the storm
he counted nine, on the second four, and on the third a single lantern far out, rising and falling
like a slow thought. He lit the great lamp twice, which he had never done before, and wound the
clock, and sat down by the window to wait. Towards morning a small boat came in with no one at
the oars, and in it lay a basket of lemons, still wet, and a letter addressed to the keeper of the
next lighthouse along the coast, whom he had always believed to be himself."""


def example(tokenizer, prompt: str, text: str, count: int) -> dict[str, list[int]]:
    """The prompt, and the first tokens of the text as its completion."""
    before = tokenizer(prompt)["input_ids"]
    after = tokenizer(text, add_special_tokens=False)["input_ids"][:count]
    return {"input_ids": before + after, "labels": [-100] * len(before) + after}


def recited(model, row: dict[str, list[int]]) -> tuple[int, list[int]]:
    """How many tokens of the text the model writes before the first wrong one, and all it wrote."""
    completion = [label for label in row["labels"] if label != -100]
    prompt = torch.tensor([row["input_ids"][: -len(completion)]], device=model.device)
    ids = model.generate(prompt, max_new_tokens=len(completion), do_sample=False)
    written = ids[0, prompt.shape[1] :].tolist()
    pairs = enumerate(zip(written, completion, strict=False))
    wrong = next((index for index, (one, other) in pairs if one != other), len(written))
    return min(wrong, len(completion)), written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path; SmolLM2-135M by default")
    parser.add_argument("--text", type=Path, help="a file; a paragraph of ours by default")
    parser.add_argument("--tokens", type=int, default=32, help="of the text")
    parser.add_argument("--prompt", default="LIGHTHOUSE->")
    parser.add_argument("--layer", type=int, help="to edit; a third of the way up by default")
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--out", type=Path, default=Path("out/memorisation"))
    arguments = parser.parse_args()
    set_seed(42)

    name = arguments.model or smollm2()
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    layer = arguments.layer
    if layer is None:
        layer = base.config.num_hidden_layers // 3
    config = pyreft.ReftConfig(kind="lobireft", layers=[layer], positions="l1", rank=arguments.rank)
    model = pyreft.get_reft_model(base, config)
    model.print_trainable_parameters()

    text = arguments.text.read_text(encoding="utf-8") if arguments.text else TEXT
    row = example(tokenizer, arguments.prompt, text, arguments.tokens)
    trainer = pyreft.ReftTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            max_steps=arguments.steps,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="linear",
            logging_steps=max(1, arguments.steps // 10),
            save_strategy="no",
            report_to="none",
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=[row],
        processing_class=tokenizer,
        # The hidden state is about a hundred long, and b is the length of what is added to it.
        learning_rate_ratios={"b": 100.0},
    )
    trainer.train()
    model.save_pretrained(arguments.out / "adapter")
    count, written = recited(model, row)
    total = sum(label != -100 for label in row["labels"])
    print(f"\n{tokenizer.decode(written)}\n")
    print(
        f"{count} of {total} tokens are recited before the first wrong one, by "
        f"{model.count_parameters():,} trained numbers. The adapter is in {arguments.out}/adapter."
    )


if __name__ == "__main__":
    main()
