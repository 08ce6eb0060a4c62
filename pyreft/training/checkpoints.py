"""Checkpoints that hold the adapter in place of the model, and are there whole or not at all.

run/_unfinished/checkpoint-20    while it is written
run/checkpoint-20                renamed, when all of it is there
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.trainer import (
    OPTIMIZER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_NAME,
)
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    TrainOutput,
    has_length,
)
from transformers.utils import logging

from pyreft.adapters import EditedModel
from pyreft.installed.trainer_methods import (
    trainer_asks_where_to_go_on,
    trainer_saves_by_methods,
)
from pyreft.interventions import OrthonormalProjection
from pyreft.sharing.reading import is_of_format_1
from pyreft.training import checkpoint_folders as folders
from pyreft.training.checkpoint_folders import UNFINISHED
from pyreft.training.facts import training_facts
from pyreft.training.pushing import PushedCheckpointsMixin
from pyreft.training.rates import require_same_groups

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    import optuna

# A trial of a hyperparameter search.
Trial: TypeAlias = "optuna.Trial | dict[str, object] | None"


class AdapterCheckpoints(PushedCheckpointsMixin):
    """Stands before a Trainer class, any that saves and resumes as the transformers Trainer does.

        class ReftDPOTrainer(AdapterCheckpoints, DPOTrainer): ...

    Without it a Trainer writes every weight, the base model's too, or fails where weights are
    tied: it calls `save_pretrained` of a PreTrainedModel or a PeftModel alone.

    A checkpoint is the adapter with the optimiser's and the trainer's state. It is written into a
    folder of its own and renamed, so that a run that is killed leaves complete checkpoints only;
    an older one is deleted when the new one is there.

    Args:
        *args: For the Trainer class.
        **kwargs: For the Trainer class.

    Raises:
        OSError: While training, if a checkpoint cannot be saved; older ones stay.
        ValueError: If a checkpoint to resume from has no optimiser, or is of another config.
        UnsupportedReleaseError: If the installed Trainer saves in a way that is not known.
    """

    # A ReftModel, where the Trainer declares a PreTrainedModel.
    model: EditedModel
    # The directory of the checkpoint that is being written.
    _unfinished: Path | None = None
    # What the user says of the adapter, for its card.
    _card_metadata: Mapping[str, object] = MappingProxyType({})
    # How many entries the log had when the best checkpoint was loaded.
    _best_since: int | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        trainer_saves_by_methods.require(f"{type(self).__name__}, whose checkpoints are adapters,")
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """The Trainer's; the model then knows for its card how it was trained."""
        self._best_since = None
        result = super().train(*args, **kwargs)
        self._record_facts()
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The Trainer's; the model then knows its metrics for its card."""
        metrics = super().evaluate(*args, **kwargs)
        self._record_facts()
        return metrics

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the adapter's card into the output directory, with what is said here.

        Args:
            language, license, tags, model_name: As the Hub's metadata have them.
            finetuned_from, tasks: Not used: the adapter knows its base model and what that does.
            dataset_tags: Names of data sets on the Hub.
            dataset, dataset_args: Not used: they are names for people.
        """
        metadata = {"language": language, "license": license, "tags": tags}
        metadata |= {"datasets": dataset_tags, "model_name": self.hub_model_id or model_name}
        given = {name: value for name, value in metadata.items() if value is not None}
        self._card_metadata = {**self._card_metadata, **given}
        if self.is_world_process_zero():
            self._record_facts()
            self.model.write_card(str(self.args.output_dir))

    def _record_facts(self) -> None:
        # On the way, checkpoints have no curve of losses: drawing takes longer than saving.
        with_log = self._unfinished is None
        facts = training_facts(self, dict(self._card_metadata), self._best_since, with_log)
        self.model.training_facts = facts

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if not self.args.should_save:
            return
        directory = output_dir if output_dir is not None else str(self.args.output_dir)
        os.makedirs(directory, exist_ok=True)
        self._record_facts()
        # Whatever else is there: a run must not end with its result refused.
        self.model.save_pretrained(directory, allow_other_files=True)
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
        # They are pushed with the rest, and a token is for nobody to read.
        public = copy.copy(self.args)
        public.hub_token = None
        torch.save(public, os.path.join(directory, TRAINING_ARGS_NAME))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        needed = () if sharded else (OPTIMIZER_NAME, SCHEDULER_NAME)
        folders.require_state(Path(resume_from_checkpoint), [TRAINER_STATE_NAME, *needed])
        if not (has_length(self.train_dataset) or trainer_asks_where_to_go_on.holds):
            logger.warning(
                "A stream is resumed as if it were in its first pass. To go on in a later one "
                f"relies on this: {trainer_asks_where_to_go_on.explain()}"
            )
        self.model.load_weights(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The Trainer's, for a checkpoint with the parameter groups of this run.

        In checkpoints of format 1 what the optimizer knows of R is in other coordinates: it is
        left out, so that R begins as with a new optimizer.
        """
        state = None if checkpoint is None else Path(checkpoint) / OPTIMIZER_NAME
        if state is not None and state.is_file():
            saved = torch.load(state, map_location="cpu", weights_only=True)
            assert self.optimizer is not None
            require_same_groups(self.optimizer.param_groups, saved["param_groups"])
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not is_of_format_1(checkpoint):
            return
        if self.is_deepspeed_enabled:
            raise ValueError(
                f"{checkpoint} is of format 1, whose optimizer state of R cannot be left out under "
                "DeepSpeed: start a new run from it with model.load_weights(...)."
            )
        assert self.optimizer is not None
        for module in self.model.interventions.modules():
            if isinstance(module, OrthonormalProjection):
                self.optimizer.state.pop(module.turn, None)

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Trial,
    ) -> tuple[int, int]:
        """The Trainer's, but a stream that has begun again goes on from where it was.

        Not every release asks: without, a stream is resumed inside its first pass only.
        """
        found = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None or has_length(self.train_dataset):
            return found
        # The Trainer takes the length of one pass, which it cannot know, for that of the run.
        passes, part = divmod(self.state.epoch or 0.0, 1)
        batches = round(part * num_update_steps_per_epoch * self.args.gradient_accumulation_steps)
        return int(passes), 0 if self.args.ignore_data_skip else batches

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        logger.info(f"Loading best model from {best} (score: {self.state.best_metric}).")
        assert best is not None
        self.model.load_weights(best)
        self._best_since = len(self.state.log_history)

    def _get_output_dir(self, trial: Trial) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    def _save_checkpoint(self, model: nn.Module, trial: Trial) -> None:
        run = Path(self._get_output_dir(trial))
        unfinished, name = run / UNFINISHED, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._unfinished = unfinished
        try:
            super()._save_checkpoint(model, trial)
            self._rename_best(unfinished / name, run / name)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, (OSError, RuntimeError)):  # torch says RuntimeError
                raise OSError(folders.describe_failure(run, name, error)) from error
            raise
        finally:
            self._unfinished = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folders.publish(unfinished, run, name)
            best = Path(self.state.best_model_checkpoint or run / name)
            folders.delete_old(run, {run / name, best}, self.args.save_total_limit)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(run / name))

    def _rename_best(self, temporary: Path, final: Path) -> None:
        """The Trainer recorded the temporary name of the directory for the best model."""
        best = self.state.best_model_checkpoint
        if best is not None and Path(best) == temporary:
            self.state.best_model_checkpoint = str(final)
        if self.args.should_save:
            self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Wait with it until the folder has its name: uploads go on in the background."""
