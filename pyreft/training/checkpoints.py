"""Checkpoints that hold the adapter in place of the model, and are there whole or not at all.

run/.unfinished/checkpoint-20    while it is written
run/checkpoint-20                renamed, when all of it is there
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

logger = logging.get_logger(__name__)

UNFINISHED = ".unfinished"


class AdapterCheckpoints(_Trainer):
    """Stands before a Trainer class, any that saves and resumes as the transformers Trainer does.

        class ReftDPOTrainer(AdapterCheckpoints, DPOTrainer): ...

    Without it a Trainer writes every weight, the base model's too, or fails where weights are
    tied: it calls `save_pretrained` of a PreTrainedModel or a PeftModel alone.

    A checkpoint is the adapter with the optimiser's and the trainer's state. It is written into a
    folder of its own and renamed, so that a run that is killed leaves complete checkpoints only;
    an older one is deleted when the new one is there.
    """

    # Where the checkpoint that is being written lies.
    _unfinished: Path | None = None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not self.args.should_save:
            return
        directory = output_dir if output_dir is not None else str(self.args.output_dir)
        os.makedirs(directory, exist_ok=True)
        model: Any = self.model
        # Whatever else is there: a run must not end with its result refused.
        model.save_pretrained(directory, allow_other_files=True)
        tokenizer: Any = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        torch.save(self.args, os.path.join(directory, TRAINING_ARGS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        reft_model: Any = self.model
        reft_model.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best, reft_model = self.state.best_model_checkpoint, self.model
        logger.info(f"Loading best model from {best} (score: {self.state.best_metric}).")
        reft_model.load_weights(best)  # type: ignore[union-attr, operator]

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(self._get_output_dir(trial))
        unfinished, name = run / UNFINISHED, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._unfinished = unfinished
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            newest = get_last_checkpoint(str(run)) if run.is_dir() else None
            logger.error(
                f"{name} could not be saved; the newest complete checkpoint is {newest or 'none'}."
            )
            raise
        finally:
            self._unfinished = None
        self.accelerator.wait_for_everyone()
        # The Trainer took the folder's passing name for that of the best model.
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == unfinished / name:
            self.state.best_model_checkpoint = str(run / name)
        if self.args.should_save:
            self.state.save_to_json(str(unfinished / name / TRAINER_STATE_NAME))
            _publish(unfinished, run, name)
            kept = {run / name, Path(self.state.best_model_checkpoint or run / name)}
            _delete_old(run, kept, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(run / name))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait with it until the folder has its name: uploads go on in the background."""


def _publish(unfinished: Path, run: Path, name: str) -> None:
    """Give a finished checkpoint its name, in place of one of that name if there is one."""
    if (run / name).exists():
        os.replace(run / name, unfinished / "replaced")
    os.replace(unfinished / name, run / name)
    shutil.rmtree(unfinished, ignore_errors=True)


def _delete_old(run: Path, kept: set[Path], limit: int | None) -> None:
    """Delete the oldest checkpoints over the limit, but none of those kept."""
    if not limit or limit < 1:
        return
    others = [p for p in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p not in kept]
    others.sort(key=lambda path: path.stat().st_mtime)
    for old in others[: max(0, len(others) + len(kept) - limit)]:
        shutil.rmtree(old, ignore_errors=True)
