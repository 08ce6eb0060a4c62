"""The tensors of one intervention as upstream saves them <-> our arguments and tensors.

Upstream saves its LoReFT as R and the linear map of the hidden state. It saves its other kinds as
the state dict of their modules, with R as torch's parametrization, which has a D x D matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyreft.annotations import Json
from pyreft.interventions.parametrized import is_orthonormal, read_parametrized, write_parametrized
from pyreft.interventions.projection import turned_factor
from pyreft.interventions.shapes import (
    has_constant_source,
    has_orthonormal_rows,
    require_tensors,
)

_ROTATION = "rotate_layer."
_DIRECTIONS, _TURN = "rotate_layer.original", "rotate_layer.turn"
# LoReFT: upstream's name -> our name.
_OF_LOREFT = {
    "weight": "learned_source.weight",
    "bias": "learned_source.bias",
    "rotate_layer": _DIRECTIONS,
}
_SIZES = ("embed_dim", "interchange_dim")
_WITHOUT_R = {"loreft": "noreft", "direft": "nodireft"}


def read_intervention(
    kind: str, saved: Mapping[str, Tensor]
) -> tuple[str, Json, dict[str, Tensor]]:
    """Read the tensors that upstream saved for an intervention.

    Returns:
        Its kind, its constructor arguments except those that upstream does not save, and its
        tensors. If upstream loads a LoReFT and trains it further, its directions are no longer
        orthonormal: it is then read as a NoReFT.

    Raises:
        ValueError: If a tensor is missing or unknown, or its shape or type does not fit.
    """
    tensors = _our_names(kind, saved)
    width, rank = require_tensors(kind, tensors)
    for name in _SIZES:
        if name in saved and (saved[name].numel() != 1 or int(saved[name]) != width):
            raise ValueError(f"its {name} is {saved[name].tolist()}, its directions have {width}")
    source = "learned_source" if has_constant_source(kind) else "learned_source.weight"
    dtype = tensors[source].dtype
    if has_orthonormal_rows(kind) and not is_orthonormal(tensors[_DIRECTIONS]):
        if kind not in _WITHOUT_R:
            raise ValueError("its directions are not orthonormal")
        kind, dtype = _WITHOUT_R[kind], torch.float32
        tensors["proj_layer.weight"] = tensors.pop(_DIRECTIONS).mT.contiguous()
    arguments = {
        "embed_dim": width,
        "low_rank_dimension": rank,
        "dtype": str(dtype).removeprefix("torch."),
        "add_bias": "proj_layer.bias" in saved,
    }
    if kind == "nodireft":
        # Upstream never reads it.
        tensors.pop("proj_layer.bias", None)
    return kind, arguments, tensors


def write_intervention(
    kind: str, arguments: Json, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors that upstream would save for an intervention with our tensors."""
    saved = dict(tensors)
    if has_orthonormal_rows(kind):
        start = saved.pop(_DIRECTIONS)
        turn = saved.pop(_TURN, torch.zeros_like(start))
        if start.dim() != 2 or turn.shape != start.shape:
            raise ValueError(
                f"the tensors {_DIRECTIONS} and {_TURN} must be matrices of one shape, they are "
                f"{tuple(start.shape)} and {tuple(turn.shape)}"
            )
        weight = turned_factor(start, turn)
        if kind == "loreft":
            named = saved | {_DIRECTIONS: weight}
            return {theirs: named[ours] for theirs, ours in _OF_LOREFT.items()}
        saved |= write_parametrized(weight, _ROTATION)
        width, rank = weight.shape
    else:
        rank, width = saved["proj_layer.weight"].shape
    if arguments.get("add_bias") and kind == "nodireft":
        saved["proj_layer.bias"] = saved["learned_source.bias"].new_zeros(rank)
    return {name: torch.tensor(width) for name in _SIZES} | saved


def _our_names(kind: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if kind == "loreft":
        return {
            _OF_LOREFT.get(name, name): tensor.float() if name == "rotate_layer" else tensor
            for name, tensor in saved.items()
        }
    tensors = {name: tensor for name, tensor in saved.items() if name not in _SIZES}
    if has_orthonormal_rows(kind):
        tensors = {n: tensor for n, tensor in tensors.items() if not n.startswith(_ROTATION)}
        tensors[_DIRECTIONS] = read_parametrized(saved, _ROTATION)
    return tensors
