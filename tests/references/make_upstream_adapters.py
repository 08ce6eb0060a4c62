"""Adapters as stanfordnlp/pyreft 0.1.0 saves them, for tests/compat to load.

Not run by the tests: what it writes is kept. To write it anew, in the environment of
make_upstream.py, whose Llama and batch these adapters are for:

    upstream/bin/python tests/references/make_upstream_adapters.py

It writes into upstream_adapters/ beside itself

    CASE/config.json, CASE/intkey_*.bin     what upstream's save wrote; pytorch_model.bin of a head
    expected.safetensors                    logits of the Llama with each adapter; the metadata
                                            say where each acts and what its files do not say
"""

import json
import shutil

import torch
from make_upstream import FIRST_LAST_TWO, HERE, ONE_EACH, at, make, model_and_batch, wrap
from safetensors.torch import load_file, save_file

import pyreft

FOLDER = HERE / "upstream_adapters"
LAYER_1 = (1, "block_output")
F2_L2 = {"places": [LAYER_1], "locations": [FIRST_LAST_TWO], "positions": ["f2+l2"]}
INDEX_2_3 = {"locations": ONE_EACH, "positions": None}
CASES = {
    **{
        kind: {"kind": kind, **F2_L2}
        for kind in ("loreft", "noreft", "direft", "nodireft", "consreft", "lobireft")
    },
    "loreft_relu_dropout": {"kind": "loreft", "act_fn": "relu", "dropout": 0.25, **F2_L2},
    "noreft_bias_gelu": {"kind": "noreft", "act_fn": "gelu", "add_bias": True, **F2_L2},
    "direft_tanh": {"kind": "direft", "act_fn": "tanh", **F2_L2},
    "nodireft_bias_silu": {"kind": "nodireft", "act_fn": "silu", "add_bias": True, **F2_L2},
    "direft_bfloat16": {"kind": "direft", "dtype": "bfloat16", **F2_L2},
    "direft_full_rank": {"kind": "direft", "rank": 16, **F2_L2},
    "not_orthonormal": {"kind": "loreft", "trained_after_load": True, **F2_L2},
    "with_head": {"kind": "loreft", "head": True, **F2_L2},
    "every_layer": {
        "kind": "loreft",
        "places": [(layer, "block_output") for layer in range(3)],
        "locations": [FIRST_LAST_TWO] * 3,
        "positions": ["f2+l2"] * 3,
    },
    "prefix_and_suffix": {
        "kind": "loreft",
        "places": [LAYER_1, LAYER_1],
        "locations": [[[0, 1], [0, 1]], [[5, 6], [3, 4]]],
        "positions": ["f2", "l2"],
    },
    **{
        name: {"kind": "loreft", "places": [(1, name)], **INDEX_2_3}
        for name in ("block_input", "mlp_output", "attention_output")
    },
    "path": {"kind": "loreft", "places": [(None, "model.layers[1].mlp.output")], **INDEX_2_3},
    "path_direft": {
        "kind": "direft",
        "places": [(None, "model.layers[1].self_attn.output")],
        **INDEX_2_3,
    },
}
# What upstream's files do not say.
UNSAID = ("act_fn", "dropout")


def train_after_load(intervention):
    """What upstream makes of R when training goes on after its load_state_dict."""
    intervention.load_state_dict(intervention.state_dict())
    optimizer = torch.optim.Adam(intervention.parameters(), lr=0.05)
    for _ in range(20):
        hidden = torch.randn(8, 16)
        (intervention(hidden) - hidden.roll(1, -1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return intervention


def interventions_of(case):
    """One for each place, evaluating: upstream's eval() does not reach them."""
    given = {name: case[name] for name in ("act_fn", "dropout", "add_bias") if name in case}
    if "dtype" in case:
        given["dtype"] = getattr(torch, case["dtype"])
    made = [make(case["kind"], rank=case.get("rank", 3), **given) for _ in case["places"]]
    if case.get("trained_after_load"):
        made = [train_after_load(intervention) for intervention in made]
    return [intervention.eval() for intervention in made]


def main():
    torch.manual_seed(0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    stored = load_file(HERE / "upstream.safetensors")
    logits = {}
    for name, case in CASES.items():
        base, ids, mask = model_and_batch(stored)
        places = [(case["kind"], *place) for place in case["places"]]
        model = wrap(base, places, interventions_of(case), case.get("rank", 3))
        if case.get("head"):
            base.lm_head.requires_grad_(True)
            with torch.no_grad():
                base.lm_head.weight.add_(0.1 * torch.randn_like(base.lm_head.weight))
        with torch.no_grad():
            batch = {"input_ids": ids, "attention_mask": mask}
            _, outputs = model(batch, unit_locations=at(case["locations"]))
        logits[name] = outputs.logits.contiguous()
        model.save(FOLDER / name, include_model=bool(case.get("head")))
    about = {
        name: {
            "kind": case["kind"],
            "locations": case["locations"],
            "positions": case["positions"],
            "unsaid": {key: case[key] for key in UNSAID if key in case},
        }
        for name, case in CASES.items()
    }
    metadata = {"cases": json.dumps(about), "version": pyreft.__name__ + " 0.1.0"}
    save_file(logits, FOLDER / "expected.safetensors", metadata=metadata)


if __name__ == "__main__":
    main()
