"""Preference tuning with TRL's DPOTrainer: LoReFT, or PEFT's LoRA by the same trainer.

    python examples/dpo.py                                 # a dozen pairs of its own
    python examples/dpo.py --data pairs.jsonl              # rows with prompt, chosen, rejected
    python examples/dpo.py --piqa piqa.json --limit 500    # PIQA as LLM-Adapters publishes it
    python examples/dpo.py --peft-lora                     # to compare with

The reference is the base model without the adapter, and there is one copy of it. Training starts at
the base model, so that the first loss is ln 2. The script prints, and writes as JSON, the reward
margin while training, and how often the right answer of held-out pairs is the likelier one.
"""

import argparse
import json
import re
from pathlib import Path

import peft
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig, DPOTrainer

import pyreft
from base_model import smollm2

# A short answer is preferred to a long one.
ANSWERS = [
    ("What is the capital of France?", "Paris.", "Well, that is a question that many ask."),
    ("How many legs has a spider?", "Eight.", "Spiders have quite a number of legs."),
    ("What color is snow?", "White.", "It depends on how you look at the snow."),
    ("What do bees make?", "Honey.", "Bees are busy and make all kinds of things."),
    ("Where do fish live?", "In water.", "There are several places where fish may live."),
    ("What is two plus two?", "Four.", "Adding two numbers is a matter of practice."),
    ("What do cows eat?", "Grass.", "Cows have four stomachs, so let us begin there."),
    ("What is ice made of?", "Water.", "Ice has been known to people for a long time."),
    ("When is noon?", "At twelve.", "Noon is a word with a long history, of course."),
    ("What is the opposite of hot?", "Cold.", "Opposites are harder than one may think."),
    ("What do we read?", "Books.", "We read a great many things, and it depends."),
    ("Who wrote Hamlet?", "Shakespeare.", "Many plays were written in those days."),
]


class ReftDPOTrainer(pyreft.AdapterCheckpoints, DPOTrainer):
    """TRL's trainer, whose checkpoints hold the adapter alone."""


def load_pairs(data: Path | None, piqa: Path | None) -> Dataset:
    """Rows with a prompt, and a chosen and a rejected completion."""
    if data is not None:
        return Dataset.from_json(str(data))
    if piqa is not None:
        return Dataset.from_list([read_piqa(row) for row in json.loads(piqa.read_text())])
    return Dataset.from_list([as_pair(*answer) for answer in ANSWERS])


def as_pair(question: str, chosen: str, rejected: str) -> dict[str, str]:
    prompt = f"Question: {question}\nAnswer:"
    return {"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}


def read_piqa(row: dict[str, str]) -> dict[str, str]:
    """A question with two solutions, one of them right -> a pair."""
    form = r"[^:]*: (.*)\n\nSolution1: (.*)\n\nSolution2: (.*)\n\nAnswer format:.*"
    found = re.fullmatch(form, row["instruction"], re.S)
    if found is None:
        raise SystemExit(f"this is no row of PIQA: {row['instruction']!r}")
    question, *solutions = found.groups()
    right = int(row["answer"].removeprefix("solution")) - 1
    return as_pair(question, solutions[right], solutions[1 - right])


def make_model(base, arguments) -> tuple:
    """The model to train, and the reference (None: TRL turns LoRA off for it by itself)."""
    if arguments.peft_lora:
        modules = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]
        lora = peft.LoraConfig(r=8, lora_alpha=16, target_modules=modules, task_type="CAUSAL_LM")
        return peft.get_peft_model(base, lora), None
    layers = arguments.layers or "all"
    config = pyreft.ReftConfig(layers=layers, positions=arguments.positions, rank=arguments.rank)
    model = pyreft.get_reft_model(base, config)
    for intervention in model.interventions.values():
        intervention.edit_nothing()
    return model, pyreft.ReferenceModel(model)


def keep_short(pairs: Dataset, tokenizer, max_length: int) -> Dataset:
    """The pairs that fit; one that is cut may lose what tells its answers apart."""

    def fits(row: dict[str, str]) -> bool:
        texts = [row["prompt"] + row[name] for name in ("chosen", "rejected")]
        return all(len(ids) < max_length for ids in tokenizer(texts)["input_ids"])

    return pairs.filter(fits, desc="Measuring")


@torch.no_grad()
def log_probs(trainer: DPOTrainer) -> torch.Tensor:
    """Of the chosen and the rejected completion of every held-out pair, (N, 2)."""
    model, found = trainer.model.eval(), []
    for batch in tqdm(trainer.get_eval_dataloader(), desc="Held-out pairs"):
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = model(**inputs, labels=labels).logits[:, :-1].float()
        picked = logits.log_softmax(-1).gather(2, batch["input_ids"][:, 1:, None])[..., 0]
        scores = (picked * batch["completion_mask"][:, 1:]).sum(1)
        found.append(torch.stack(scores.chunk(2), dim=1))
    return torch.cat(found).cpu()


def accuracy(scores: torch.Tensor) -> float:
    """How often the chosen one has the higher score: (N, 2) -> a fraction."""
    return float((scores[:, 0] > scores[:, 1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or path of a model; SmolLM2-135M by default")
    parser.add_argument("--data", type=Path, help="JSON lines with prompt, chosen and rejected")
    parser.add_argument("--piqa", type=Path, help="piqa/test.json of LLM-Adapters")
    parser.add_argument("--limit", type=int, help="number of pairs to take")
    parser.add_argument("--eval-fraction", type=float, default=0.4)
    parser.add_argument("--peft-lora", action="store_true", help="train PEFT's LoRA instead")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to edit; all by default")
    parser.add_argument("--positions", default="f3+l3")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch-size", type=int, default=4, help="pairs in a step")
    parser.add_argument("--max-length", type=int, default=64, help="tokens of an example")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=Path("out/dpo"))
    arguments = parser.parse_args()
    set_seed(arguments.seed)

    name = arguments.model or smollm2()
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    pairs = load_pairs(arguments.data, arguments.piqa).shuffle(seed=arguments.seed)
    pairs = keep_short(pairs, tokenizer, arguments.max_length)
    pairs = pairs.select(range(min(arguments.limit or len(pairs), len(pairs))))
    pairs = pairs.train_test_split(arguments.eval_fraction, seed=arguments.seed)
    model, reference = make_model(base, arguments)
    trainer = ReftDPOTrainer if reference is not None else DPOTrainer
    trainer = trainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=arguments.batch_size,
            per_device_eval_batch_size=arguments.batch_size,
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            beta=arguments.beta,
            max_length=arguments.max_length,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=pairs["train"],
        eval_dataset=pairs["test"],
        processing_class=tokenizer,
    )
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    before = log_probs(trainer)
    trained = trainer.train()
    after = log_probs(trainer)
    rewards = arguments.beta * (after - before)
    log = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    result = {
        "method": "LoRA" if arguments.peft_lora else "LoReFT",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()},
        "pairs": {split: len(pairs[split]) for split in pairs},
        "parameters": parameters,
        "loss": [entry["loss"] for entry in log],
        "margin": [entry["rewards/margins"] for entry in log],
        "held_out_margin": float((rewards[:, 0] - rewards[:, 1]).mean()),
        "held_out_reward_accuracy": accuracy(rewards),
        "held_out_accuracy_before": accuracy(before),
        "held_out_accuracy": accuracy(after),
        "seconds_per_step": trained.metrics["train_runtime"] / trainer.state.global_step,
    }
    model.save_pretrained(arguments.out / "adapter")
    (arguments.out / "result.json").write_text(json.dumps(result, indent=1))
    print(f"\n{result['method']}, {parameters:,} parameters, {result['pairs']} pairs")
    for name in ("loss", "margin"):
        print(f"  {name:<26} {result[name][0]:.4f} -> {result[name][-1]:.4f}")
    for name in [key for key in result if key.startswith(("held_out", "seconds"))]:
        print(f"  {name:<26} {result[name]:.4f}")


if __name__ == "__main__":
    main()
