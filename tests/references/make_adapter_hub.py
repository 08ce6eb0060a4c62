"""Adapters as adapter-hub's adapters 1.3.0 saves them, for tests/compat to load.

Not run by the tests: what it writes is kept. To write it anew, in an environment of its own:

    python3.11 -m venv adapters
    adapters/bin/pip install torch==2.13.0
    adapters/bin/pip install adapters==1.3.0
    adapters/bin/python tests/references/make_adapter_hub.py

The base model is the Llama of make_upstream.py, on the first row of its batch, which has no
padding. It writes into adapter_hub/ beside itself

    CASE/adapter_config.json, CASE/pytorch_adapter.bin or adapter.safetensors
    expected.safetensors       logits of the Llama with each adapter, as it was and as it is when
                               adapters loads it again; the metadata say what each case is
"""

import json
import shutil
from pathlib import Path

import adapters
import torch
from adapters import DiReftConfig, LoReftConfig, NoReftConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
FOLDER = HERE / "adapter_hub"
CLASSES = {"loreft": LoReftConfig, "noreft": NoReftConfig, "nodireft": DiReftConfig}
F2_L2 = {"prefix_positions": 2, "suffix_positions": 2, "r": 3}
CASES = {
    "loreft": {"kind": "loreft", **F2_L2},
    "noreft": {"kind": "noreft", **F2_L2},
    "direft": {"kind": "nodireft", **F2_L2},
    "tied": {"kind": "loreft", "tied_weights": True, "layers": [0, 2], **F2_L2},
    "relu": {"kind": "loreft", "non_linearity": "relu", "dropout": 0.1, "layers": [1], **F2_L2},
    "leaky": {"kind": "noreft", "non_linearity": "leakyrelu", "layers": [1], **F2_L2},
    "prefix": {"kind": "loreft", "prefix_positions": 3, "r": 2, "layers": [1]},
    "suffix": {"kind": "loreft", "prefix_positions": 0, "suffix_positions": 1, "layers": [1]},
    "safetensors": {"kind": "loreft", "layers": [2], **F2_L2},
}


def llama_and_row():
    stored = load_file(HERE / "upstream.safetensors")
    with safe_open(HERE / "upstream.safetensors", "pt") as file:
        config = json.loads(file.metadata()["llama"])
    base = LlamaForCausalLM(LlamaConfig(**config)).eval()
    base.load_state_dict({name: stored[f"llama/{name}"] for name in base.state_dict()})
    adapters.init(base)
    return base, stored["input_ids"][:1]


def logits_of(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.contiguous()


@torch.no_grad()
def learn(model):
    """Move the weights; of a parametrized projection, what is above its diagonal is free."""
    for name, parameter in model.named_parameters():
        if "refts" in name:
            change = 0.2 * torch.randn_like(parameter)
            parameter.add_(change.triu(1) if name.endswith("original") else change)


def main():
    torch.manual_seed(0)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    expected = {}
    for name, case in CASES.items():
        model, ids = llama_and_row()
        given = {key: value for key, value in case.items() if key != "kind"}
        model.add_adapter("mine", config=CLASSES[case["kind"]](**given))
        model.set_active_adapters("mine")
        learn(model)
        expected[f"{name}/trained"] = logits_of(model, ids)
        written = {"use_safetensors": name == "safetensors", "with_head": False}
        model.save_adapter(str(FOLDER / name), "mine", **written)
        again, ids = llama_and_row()
        again.load_adapter(str(FOLDER / name), load_as="mine", set_active=True, **written)
        expected[f"{name}/loaded"] = logits_of(again, ids)
    save_file(expected, FOLDER / "expected.safetensors", metadata={"cases": json.dumps(CASES)})


if __name__ == "__main__":
    main()
