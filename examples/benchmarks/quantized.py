"""The loss curve of LoReFT on quantized base models, beside that on the base model in float32.

    python examples/benchmarks/quantized.py

bitsandbytes and torchao make the weights of 8 and of 4 bits, where they are installed
(`pip install bitsandbytes torchao`). SmolLM2 learns 32 answers in two styles, in the same order on
each base model.
"""

import importlib.util
import time
from argparse import Namespace
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    TorchAoConfig,
    set_seed,
)

import harness
import learning_tasks as tasks
import pyreft

# The steps of one point of a curve.
STEPS = 4


def torchao_8bit() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


# Name -> the package that it needs, and how the base model is loaded with it.
BASES: dict[str, tuple[str, Any]] = {
    "float32": ("torch", dict),
    "bfloat16": ("torch", lambda: {"dtype": torch.bfloat16}),
    "8 bit, torchao": ("torchao", lambda: {"quantization_config": torchao_8bit()}),
    "8 bit, bitsandbytes": (
        "bitsandbytes",
        lambda: {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    ),
    "4 bit, bitsandbytes": (
        "bitsandbytes",
        lambda: {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)},
    ),
    # 4 bits whose values are spread as weights are.
    "4 bit (nf4), bitsandbytes": (
        "bitsandbytes",
        lambda: {
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        },
    ),
}


def load(name: str, arguments: Namespace) -> PreTrainedModel:
    settings = {"dtype": torch.float32, "device_map": arguments.device, **BASES[name][1]()}
    return AutoModelForCausalLM.from_pretrained(arguments.model, **settings)


def examples(tokenizer) -> Dataset:
    """Each question twice: to be answered by a pirate, and in JSON."""
    pairs = [
        (f"{style}\nQuestion: {question}\nAnswer:", f" {text}")
        for question, *answers in tasks.ANSWERS
        for style, text in zip(("As a pirate.", "In JSON."), answers, strict=True)
    ]
    prompts, completions = zip(*pairs, strict=True)
    rows = Dataset.from_dict({"prompt": prompts, "completion": completions})
    return pyreft.make_examples(rows, tokenizer)


def train(base: PreTrainedModel, tokenizer, arguments: Namespace) -> list[float]:
    """The losses of all steps."""
    set_seed(0)
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(positions="f2+l2", rank=4))
    trainer = tasks.ReftTrainer(
        model=model,
        args=tasks.training_arguments(
            arguments,
            seed=42,
            max_steps=arguments.steps,
            per_device_train_batch_size=8,
            learning_rate=5e-4,
            lr_scheduler_type="constant",
        ),
        train_dataset=examples(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train()
    return [float(loss) for loss in trainer.losses]


def points(losses: list[float]) -> list[float]:
    """The curve: the mean of each few steps."""
    starts = range(0, len(losses) - STEPS + 1, STEPS)
    return [sum(losses[i : i + STEPS]) / STEPS for i in starts]


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--steps", {"type": int, "default": 24}),
        ("--bases", {"nargs": "+", "default": list(BASES), "choices": list(BASES)}),
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows, figures = [], {}
    for name in arguments.bases:
        package = BASES[name][0]
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed.")
            continue
        base = load(name, arguments)
        start = time.perf_counter()
        losses = train(base, tokenizer, arguments)
        seconds = (time.perf_counter() - start) / len(losses)
        figures[name] = {"losses": losses, "seconds per step": seconds}
        curve, exact = points(losses), points(figures[arguments.bases[0]]["losses"])
        apart = max(abs(a - b) / b for a, b in zip(curve, exact, strict=True))
        shown = f"{curve[0]:.3f} -> {curve[-1]:.3f}"
        rows.append([name, shown, f"{apart:.1%}", f"{seconds:.2f} s"])
        print(rows[-1], [round(loss, 3) for loss in losses])
    head = [
        "base model",
        "loss, first and last steps",
        "farthest from the first",
        "step",
    ]
    harness.publish("quantized", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
