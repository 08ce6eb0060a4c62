"""Whether upstream computes with adapters that ours exported what ours does. Run by hand:

    python tests/references/check_upstream_export.py write FOLDER            (this pyreft)
    upstream/bin/python tests/references/check_upstream_export.py check FOLDER   (upstream's)

in the environment of make_upstream.py, whose Llama and batch these adapters are for. The first
writes adapters of every kind with `write_upstream`, and our logits; the second loads them with
upstream's code, prints how far its logits are from ours, and fails where that is over 1e-5.

Upstream's `ReftModel.load` makes learned sources of bfloat16, which do not run in a float32 model,
and knows neither activations nor NoReFT's `add_bias`. So what it loads is made float32, and read
once more; what it cannot make is made by hand, and read by `load_state_dict`, as in its
`load_intervention`, which works on a GPU alone. Of `direft_bfloat16` it is `load` and nothing else.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import pyreft

HERE = Path(__file__).parent
F2_L2 = [[[0, 1, 5, 6], [0, 1, 3, 4]]]
KINDS = ("loreft", "noreft", "direft", "nodireft", "consreft", "lobireft")
CASES = {
    **{kind: {"kind": kind} for kind in KINDS},
    "loreft_relu": {"kind": "loreft", "act_fn": "relu"},
    "noreft_bias_gelu": {"kind": "noreft", "add_bias": True, "act_fn": "gelu"},
    "nodireft_bias": {"kind": "nodireft", "add_bias": True},
    "direft_bfloat16": {"kind": "direft", "dtype": "bfloat16"},
    "direft_full_rank": {"kind": "direft", "rank": 16},
    "mlp_output": {"kind": "loreft", "component": "mlp_output"},
    "attention_output": {"kind": "direft", "component": "attention_output"},
}
# Kinds that upstream's load cannot make.
BY_HAND = ("noreft", "nodireft")


def llama_and_batch():
    stored = load_file(HERE / "upstream.safetensors")
    with safe_open(HERE / "upstream.safetensors", "pt") as file:
        config = json.loads(file.metadata()["llama"])
    base = LlamaForCausalLM(LlamaConfig(**config)).eval()
    base.load_state_dict({name: stored[f"llama/{name}"] for name in base.state_dict()})
    return base, {name: stored[name] for name in ("input_ids", "attention_mask")}


def write(folder):
    from pyreft.compat.upstream_files import write_upstream
    from pyreft.sharing import read_adapter

    torch.manual_seed(0)
    logits = {}
    for name, case in CASES.items():
        base, batch = llama_and_batch()
        config = pyreft.ReftConfig(**{"rank": 3, "layers": [0, 2], "positions": "f2+l2"} | case)
        model = pyreft.get_reft_model(base, config).eval()
        with torch.no_grad():
            for parameter in model.interventions.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            logits[name] = model(**batch).logits
        model.save_pretrained(folder / "ours" / name)
        write_upstream(read_adapter(folder / "ours" / name), folder / name)
    save_file(logits, folder / "ours" / "logits.safetensors")


def load(folder, base, case):
    """What upstream makes of a directory, in float32."""
    if case["kind"] in BY_HAND or case.get("act_fn"):
        model = make_by_hand(base, case)
    else:
        model = pyreft.ReftModel.load(str(folder), base)
    for key, intervention in model.interventions.items():
        if case.get("dtype") != "bfloat16":
            intervention.float()
            intervention.load_state_dict(torch.load(folder / f"intkey_{key}.bin"))
        intervention.eval()
    return model


def make_by_hand(base, case):
    cls = getattr(pyreft, f"{case['kind'].capitalize()}Intervention")
    given = {"embed_dim": 16, "low_rank_dimension": 3, "dtype": torch.float32}
    given |= {"act_fn": case.get("act_fn"), "add_bias": case.get("add_bias", False)}
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": 3,
            "intervention": cls(**given),
        }
        for layer in (0, 2)
    ]
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations))


def check(folder):
    ours = load_file(folder / "ours" / "logits.safetensors")
    worst = 0.0
    for name, case in CASES.items():
        base, batch = llama_and_batch()
        text = batch["attention_mask"].bool()
        bare = base(**batch).logits
        model = load(folder / name, base, case)
        with torch.no_grad():
            _, outputs = model(batch, unit_locations={"sources->base": (None, F2_L2 * 2)})
        difference = (outputs.logits - ours[name])[text].abs().max().item()
        edit = (outputs.logits - bare)[text].abs().max().item()
        print(f"{name:20} difference {difference:.1e}, where the edit changes logits by {edit:.1f}")
        worst = max(worst, difference)
    sys.exit(worst > 1e-5)


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
