"""A training step that is compiled in one graph, beside plain code and compiled base models.

    python examples/benchmarks/one_graph.py --threads 1 --markdown docs/performance.md

A step is forward and backward on one batch of SmolLM2's first layers, LoReFT of rank 4 at `f2+l2`
of each. All ways take steps in turn, after one that compiles.
"""

import warnings
from collections.abc import Callable

import torch
import transformers

import harness
import pyreft


def make_base(arguments) -> transformers.PreTrainedModel:
    base = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.float32, num_hidden_layers=arguments.layers
    )
    return base.to(arguments.device).requires_grad_(False).train()


def batch(base: transformers.PreTrainedModel, arguments) -> dict[str, torch.Tensor]:
    """Prompts of a half of the tokens, and their answers."""
    torch.manual_seed(0)
    shape = (arguments.batch, arguments.tokens)
    ids = torch.randint(3, base.config.vocab_size, shape, device=arguments.device)
    labels = ids.clone()
    labels[:, : arguments.tokens // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def edited(base) -> pyreft.ReftModel:
    torch.manual_seed(1)
    return pyreft.get_reft_model(base, pyreft.ReftConfig(rank=4, positions="f2+l2")).train()


def step(model, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = model(**inputs, use_cache=False).loss
    loss.backward()
    return loss.detach()


def ways_of(arguments) -> dict[str, tuple[Callable, dict[str, torch.Tensor]]]:
    """Name -> a model, and its inputs."""
    compiled = {"backend": arguments.backend}
    base = make_base(arguments)
    inputs = batch(base, arguments)
    # Without an adapter the gradients go to the embeddings of the tokens.
    bare = {name: value for name, value in inputs.items() if name != "input_ids"}
    bare["inputs_embeds"] = base.get_input_embeddings()(inputs["input_ids"]).requires_grad_()
    return {
        "plain code": (edited(base), inputs),
        "one graph": (
            torch.compile(edited(make_base(arguments)), fullgraph=True, **compiled),
            inputs,
        ),
        "compiled base model": (edited(torch.compile(make_base(arguments), **compiled)), inputs),
        "compiled base model, bare": (torch.compile(make_base(arguments), **compiled), bare),
        "base model, bare": (make_base(arguments), bare),
    }


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--layers", {"type": int, "default": 6}),
        ("--batch", {"type": int, "default": 4}),
        ("--tokens", {"type": int, "default": 64}),
        ("--backend", {"default": "inductor", "help": "of torch.compile"}),
    )
    warnings.simplefilter("ignore")
    # Of the layers that are left out.
    transformers.logging.set_verbosity_error()
    ways = ways_of(arguments)
    losses = {name: float(step(*way)) for name, way in ways.items()}
    of_edited = [loss for name, loss in losses.items() if "bare" not in name]
    if max(of_edited) - min(of_edited) > 1e-4 * max(of_edited):
        raise SystemExit(f"the losses differ: {losses}")
    timed = {
        name: lambda way=way: harness.seconds(lambda: step(*way), arguments.device)
        for name, way in ways.items()
    }
    taken = harness.in_turn(timed, arguments.rounds)
    figures = {name: harness.ratio(taken, name, "plain code") for name in ways}
    rows = [[name, f"{1000 * min(taken[name]):.0f} ms", f"{figures[name]:.2f}"] for name in ways]
    head = ["a step of", "fastest", "of plain code's time"]
    harness.publish("one_graph", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
