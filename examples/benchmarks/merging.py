"""Logits of a merged model, and of an exported LoRA in PEFT, against those of the edited model.

python examples/benchmarks/merging.py

Fresh interventions of every kind, rank 8, edit every token at the MLP of one layer, or of all.
"""

import copy
import tempfile
from pathlib import Path

import torch
from peft import PeftModel

import harness
import pyreft

# How far logits may be: in float32 with one edited layer, in float64 with all.
TOLERANCE = 1e-4
KINDS = ("loreft", "noreft", "direft", "nodireft", "consreft", "lobireft")


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    """(B, T, V), without dropout."""
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def compare(config: pyreft.ReftConfig, ids: torch.Tensor, arguments) -> dict[str, float]:
    """How far the bare model, the merged one and the exported LoRA are from the edited model.

    Args:
        config: What to edit, on every token.
        ids: (B, T).
        arguments: As of `harness.parse`.
    """
    base = harness.load(arguments)
    bare = logits(base, ids)
    model = pyreft.get_reft_model(base, config)
    edited = logits(model, ids)
    exact = copy.deepcopy(model).double()
    exactly = distance(logits(exact, ids), logits(exact.merge_and_unload(add_bias=True), ids))
    with tempfile.TemporaryDirectory() as folder:
        model.export_lora(Path(folder) / "lora")
        merged = logits(model.merge_and_unload(add_bias=True), ids)
        lora = logits(PeftModel.from_pretrained(harness.load(arguments), f"{folder}/lora"), ids)
    others = {"bare": bare, "merged": merged, "lora": lora}
    found = {name: distance(other, edited) for name, other in others.items()}
    return found | {"merged in float64": exactly}


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def main() -> None:
    arguments = harness.parse(
        __doc__,
        [],
        ("--batch", {"type": int, "default": 2}),
        ("--tokens", {"type": int, "default": 64}),
    )
    torch.manual_seed(0)
    base = harness.load(arguments)
    shape = (arguments.batch, arguments.tokens)
    ids = torch.randint(3, base.config.vocab_size, shape, device=arguments.device)
    rounding = distance(logits(base, ids), logits(base.double(), ids))
    rows = [["none, in float64", "", f"{rounding:.1e}", "", "", ""]]
    figures: dict = {"rounding": rounding}
    for place, layers in {"one layer": [base.config.num_hidden_layers // 2], "all": "all"}.items():
        for kind in KINDS:
            where = {"component": "mlp_output", "layers": layers, "positions": "all", "rank": 8}
            found = compare(pyreft.ReftConfig(kind=kind, **where), ids, arguments)
            figures[f"{kind}, {place}"] = found
            rows.append([kind, place, f"{found['bare']:.1f}"])
            rows[-1] += [f"{found[way]:.1e}" for way in ("merged", "lora", "merged in float64")]
            if place == "one layer" and max(found["merged"], found["lora"]) > TOLERANCE:
                raise SystemExit(f"{kind} in one layer: logits are too far apart, {found}.")
            if found["merged in float64"] > TOLERANCE:
                raise SystemExit(f"{kind} in float64: logits are too far apart, {found}.")
    head = ["kind", "layers", "edited, from bare"]
    head += ["merged, from edited", "LoRA, from edited", "merged, in float64"]
    harness.publish("merging", arguments, figures, harness.table(head, rows))


if __name__ == "__main__":
    main()
