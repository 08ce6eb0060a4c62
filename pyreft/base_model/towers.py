"""Parts of a model that read no text: towers for pictures or sound, or the whole model.

ViT, ConvNeXt, wav2vec2, AST      the model itself
Whisper, SpeechT5                 its encoder
CLIP, LLaVA                       the vision model inside it

Their tokens are patches of pictures or frames of sound. No argument of a call counts them, so they
are counted in the hidden state itself.
"""

from __future__ import annotations

import inspect
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

# The stack of the components in a tower: their tokens are those of no text.
TOWER = "tower"
# The arguments that towers take -> what these are.
_INPUTS = {"pixel_values": "image", "input_values": "audio", "input_features": "audio"}


def reads_no_text(model: nn.Module) -> bool:
    """Whether a part of a model takes pictures, sound or series, and no ids of tokens."""
    takes = _arguments(type(model))
    if any(name.endswith("input_ids") for name in takes):
        return False
    if not isinstance(model, PreTrainedModel):
        # In transformers 5.0 the towers of CLIP are plain modules.
        return hasattr(model, "config") and not _INPUTS.keys().isdisjoint(takes)
    return "text" not in _modalities(model) or model.main_input_name in takes


def towers_of(model: nn.Module) -> list[PreTrainedModel]:
    """The parts of a model that read no text, the outermost first."""
    return [cast("PreTrainedModel", part) for part in model.modules() if reads_no_text(part)]


def modalities_of(tower: nn.Module) -> str:
    """What a part of a model reads, such as "image" or "audio"; several joined by "or"."""
    if not isinstance(tower, PreTrainedModel):
        takes = _arguments(type(tower))
        return " or ".join(dict.fromkeys(_INPUTS[name] for name in takes if name in _INPUTS))
    return " or ".join(one for one in _modalities(tower) if one != "text") or "other"


def _arguments(cls: type[nn.Module]) -> tuple[str, ...]:
    """The names of the arguments of a module's forward, read once for each class."""
    if cls not in _known:
        _known[cls] = tuple(inspect.signature(cls.forward).parameters)
    return _known[cls]


_known: dict[type[nn.Module], tuple[str, ...]] = {}


def _modalities(model: PreTrainedModel) -> tuple[str, ...]:
    said = getattr(model, "input_modalities", "text")
    return (said,) if isinstance(said, str) else tuple(said)


def main_input(model: PreTrainedModel, inputs: object) -> str:
    """The argument of a model that its main input is: ids of tokens, pictures or sound."""
    of_numbers = isinstance(inputs, Tensor) and inputs.is_floating_point()
    return model.main_input_name if of_numbers else "input_ids"


def modules_around(root: nn.Module, module: nn.Module) -> tuple[nn.Module, ...]:
    """The modules from a root to a module inside it, both included, in the order of calls."""
    path = next(name for name, inside in root.named_modules() if inside is module)
    found = [root]
    for step in path.split(".") if path else ():
        found.append(found[-1].get_submodule(step))
    return tuple(found)
