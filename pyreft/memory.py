"""Memory of this machine, and of the container that it may be."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import torch
from accelerate.utils.modeling import convert_file_size_to_int

# The share of free memory that is used by default.
SHARE = 0.5


def in_bytes(memory: int | str) -> int:
    """Convert a size such as "2GB" to bytes.

    Raises:
        ValueError: If it is not a size.
    """
    try:
        size = int(convert_file_size_to_int(memory))
    except ValueError:
        size = -1
    if size < 0:
        raise ValueError(
            f'reuse_memory is a number of bytes or a text such as "2GB" or "500MB", got {memory!r}.'
        )
    return size


def share_of_memory(held: int) -> int:
    """The bytes that one process may use: its share of free memory, and what it already holds."""
    return int((free_memory() * SHARE) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))) + held


def require_memory(device: torch.device, size: int) -> None:
    """Raise torch.OutOfMemoryError if so many bytes are not free; other devices than CPUs do so.

    A process that takes more of a CPU's memory than there is gets no error: it is killed.
    """
    if device.type == "cpu" and size > (free := free_memory()):
        raise torch.OutOfMemoryError(f"{size} bytes are needed, and {free} are free.")


def free_memory() -> int:
    """Free bytes on this machine, or in the container if its limit is lower."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        allowed = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if allowed == "max" else max(0, min(free, int(allowed) - used))
