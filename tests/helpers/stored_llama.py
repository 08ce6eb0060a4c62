"""The Llama and the batch of tests/references/make_upstream.py."""

import json
from pathlib import Path

from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

REFERENCES = Path(__file__).parents[1] / "references"


def read_tensors(path):
    """Tensors by name, and the metadata, which are JSON."""
    with safe_open(path, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        return tensors, stored.metadata()


TENSORS, _about = read_tensors(REFERENCES / "upstream.safetensors")
ABOUT = {name: json.loads(value) for name, value in _about.items()}


def stored_llama():
    base = LlamaForCausalLM(LlamaConfig(**ABOUT["llama"])).eval()
    base.load_state_dict({name: TENSORS[f"llama/{name}"] for name in base.state_dict()})
    return base


def batch():
    return {name: TENSORS[name] for name in ("input_ids", "attention_mask")}


def assert_logits(ours, expected):
    """Equal on tokens, and far from the bare model, so that the edit is what is compared."""
    text = TENSORS["attention_mask"].bool()
    assert (expected - TENSORS["bare/logits"])[text].abs().max() > 1e-2
    assert (ours - expected)[text].abs().max() <= 1e-5
