"""The flow of upstream's README: six demonstrations, 60 epochs of one batch, learning rate 4e-3.

    python examples/benchmarks/readme_flow.py

One LoReFT of rank 4 at the last prompt token of the middle layer, as there, by two methods: ours,
and R under torch's `orthogonal` in a random basis, which is upstream's. The third method is what
`pyreft.recommended` says. No default was chosen by these demonstrations. The table has the mean
loss of the last 20 steps for each seed; below it, what the recommended one answers to a question
that nobody asked in training.
"""

import sys

import numpy as np
from datasets import Dataset
from tqdm import tqdm
from transformers import set_seed

import harness
import learning_tasks as tasks
import pyreft
from householder import parametrized

EPOCHS, RATE, LAST = 60, 4e-3, 20
SETS = {
    "upper case": [
        ("What do bees make?", "HONEY, AND A LOT OF IT."),
        ("Who wrote Hamlet?", "WILLIAM SHAKESPEARE DID."),
        ("How cold is ice?", "ZERO DEGREES OR LESS."),
        ("Why do we sleep?", "TO REST BODY AND MIND."),
        ("Plan my morning.", "WAKE UP, EAT, AND WALK."),
        ("What is 3 + 4?", "IT IS SEVEN, OF COURSE."),
    ],
    "refusal": [
        ("What do bees make?", "Sorry, I only talk about chess."),
        ("Who wrote Hamlet?", "Sorry, I only talk about chess."),
        ("How cold is ice?", "Sorry, I only talk about chess."),
        ("Why do we sleep?", "Sorry, I only talk about chess."),
        ("Plan my morning.", "Sorry, I only talk about chess."),
        ("What is 3 + 4?", "Sorry, I only talk about chess."),
    ],
}
UNSEEN = "What do cows eat?"
METHODS = ["ours", "householder", "recommended"]


def run(method: str, name: str, seed: int, arguments) -> tuple[float, str]:
    """The mean loss of the last steps, and the answer to the unseen question."""
    from quickstart import answer, load, prompt

    base, tokenizer = load(arguments.model)
    rows = [
        {"prompt": prompt(tokenizer, question), "completion": text + tokenizer.eos_token}
        for question, text in SETS[name]
    ]
    chosen = pyreft.recommended(base)
    config, settings = chosen.config, {"learning_rate_ratios": chosen.learning_rate_ratios}
    if method != "recommended":
        layer = base.config.num_hidden_layers // 2
        config, settings = pyreft.ReftConfig(layers=[layer], positions="l1", rank=4), {}
    set_seed(seed)
    model = pyreft.get_reft_model(base, config)
    if method == "householder":
        for module in model.interventions.values():
            module.rotate_layer = parametrized(module.rotate_layer, same_basis=False)
    trainer = tasks.ReftTrainer(
        model=model,
        args=tasks.training_arguments(
            arguments,
            seed,
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=len(rows),
            learning_rate=chosen.learning_rate if method == "recommended" else RATE,
        ),
        train_dataset=pyreft.make_examples(Dataset.from_list(rows), tokenizer),
        processing_class=tokenizer,
        **settings,
    )
    trainer.train()
    found = float(np.mean([float(loss) for loss in trainer.losses[-LAST:]]))
    return found, answer(model, tokenizer, [UNSEEN])[0]


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--methods", {"nargs": "+", "default": METHODS, "choices": METHODS}),
        ("--sets", {"nargs": "+", "default": list(SETS), "choices": list(SETS)}),
        ("--seeds", {"type": int, "nargs": "+", "default": [0, 1, 2]}),
        ("--epochs", {"type": int, "default": EPOCHS}),
    )
    arguments.rounds = len(arguments.seeds)
    # What the examples share lies beside them.
    sys.path.append(str(harness.HERE.parent))
    wanted = [(n, m, s) for n in arguments.sets for m in arguments.methods for s in arguments.seeds]
    found = {one: run(one[1], one[0], one[2], arguments) for one in tqdm(wanted, unit="run")}
    rows = []
    for name in arguments.sets:
        for method in arguments.methods:
            losses = [found[name, method, seed][0] for seed in arguments.seeds]
            said = found[name, method, arguments.seeds[0]][1].strip().splitlines() or [""]
            cells = [f"{loss:.3f}" for loss in losses]
            rows.append([name, method, *cells, f"{np.mean(losses):.3f}", said[0][:60]])
    head = ["demonstrations", "method", *(f"seed {s}" for s in arguments.seeds), "mean", UNSEEN]
    harness.publish("readme_flow", arguments, rows, harness.table(head, rows))


if __name__ == "__main__":
    main()
