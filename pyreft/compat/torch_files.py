"""Files of torch.save <-> tensors by name. No code in a file is run."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pyreft.sharing import AdapterError


def read_torch_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a state dict.

    Raises:
        AdapterError: If the file contains anything but complete tensors by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.save compresses nothing, so a compressed file may be a decompression bomb.
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("its content is compressed")
        found = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(found, Mapping):
            raise TypeError(f"it holds a {type(found).__name__}, not tensors by name")
        return {name: _whole(name, tensor) for name, tensor in found.items()}
    # A malicious pickle can raise any exception.
    except Exception as error:
        raise AdapterError(f"cannot read {os.fspath(path)}: {error}") from error


def write_torch_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict as torch.save does."""
    torch.save({name: tensor.detach().clone() for name, tensor in tensors.items()}, path)


def _whole(name: object, tensor: object) -> Tensor:
    if not isinstance(name, str) or type(tensor) not in (Tensor, torch.nn.Parameter):
        raise TypeError(f"{name!r} is not a tensor by name")
    assert isinstance(tensor, Tensor)
    # With strides of zero, one number makes a tensor of any size.
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise TypeError(f"{name} is not a plain tensor")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"{name} is larger than its stored data")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is not finite (NaN or infinite)")
    return tensor.detach()
