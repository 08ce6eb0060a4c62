"""The folders of a run's checkpoints: published at one moment, and deleted when they are old."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

# The Trainer pushes nothing of its directory that begins so.
UNFINISHED = "_unfinished"


def publish(unfinished: Path, run: Path, name: str) -> None:
    """Give a finished checkpoint its name, in place of one of that name if there is one."""
    if (run / name).exists():
        os.replace(run / name, unfinished / "replaced")
    os.replace(unfinished / name, run / name)
    shutil.rmtree(unfinished, ignore_errors=True)


def delete_old(run: Path, kept: set[Path], limit: int | None) -> None:
    """Keep so many checkpoints of a run, the newest ones and these.

    Args:
        run: The directory of the run.
        kept: Checkpoints that stay.
        limit: `save_total_limit`; all stay without.
    """
    if limit is None or limit <= 0:
        return
    others = sorted(set(run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")) - kept, key=_age)
    for old in others[: max(0, len(others) + len(kept) - limit)]:
        # Under another name, since deleting takes more than a moment.
        (run / UNFINISHED).mkdir(exist_ok=True)
        os.replace(old, run / UNFINISHED / old.name)
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def _age(checkpoint: Path) -> tuple[int, int]:
    """Of an earlier run in the same directory, steps may be higher; so time comes first."""
    number = checkpoint.name.rpartition("-")[2]
    return checkpoint.stat().st_mtime_ns, int(number) if number.isdecimal() else -1


def describe_failure(run: Path, name: str, error: Exception) -> str:
    find: Callable[[str], str | None] = get_last_checkpoint
    newest = find(str(run)) if run.is_dir() else None
    return (
        f"{name} could not be saved: {error}. The newest complete checkpoint is "
        f"{newest or 'none'}. Make room on the disk, or set save_total_limit."
    )


def require_state(checkpoint: Path, names: list[str]) -> None:
    """Raise ValueError unless a run can go on from there."""
    if not checkpoint.is_dir():
        raise ValueError(f"there is no checkpoint {str(checkpoint)!r} to resume from.")
    if missing := [name for name in names if not (checkpoint / name).is_file()]:
        raise ValueError(
            f"cannot resume from {checkpoint}: it has no {', '.join(missing)}. It was saved with "
            "save_only_model, or is an adapter alone: start a new run from it with "
            "model.load_weights(...)."
        )
