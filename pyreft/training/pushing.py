"""What `TrainingArguments(push_to_hub=True)` pushes to the Hub while a run goes on."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, run_as_future
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from pyreft.sharing import AdapterError, push_directory
from pyreft.sharing.card import CARD_NAME
from pyreft.sharing.hub import edited_card

logger = logging.get_logger(__name__)

# Files of a checkpoint that are the run's, and not the adapter's or the tokenizer's.
_OF_THE_RUN = re.compile(
    r"optimizer\..*|scheduler\.pt|scaler\.pt|rng_state.*|trainer_state\.json|training_args\.bin"
)


class PushedCheckpointsMixin(Trainer):
    """Pushes adapters in place of models, each checkpoint in one commit.

    The Trainer picks the files of a PreTrainedModel or a PeftModel by name, uploads them from
    where later checkpoints replace them, and says nothing of an upload that fails.
    """

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a finished checkpoint in the background; the strategy says whether all of it."""
        strategy, folder = self.args.hub_strategy, Path(checkpoint_folder)
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        # The Trainer sets it in the main process alone, and not before there is a repository.
        current = getattr(self, "push_in_progress", None)
        jobs: list[Future[None]] = [] if current is None else current.jobs
        if not self.args.hub_always_push and not all(job.done() for job in jobs):
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        # A copy, since later checkpoints may have this one deleted.
        copy = Path(tempfile.mkdtemp(prefix="pyreft-push-"))
        for path in folder.iterdir():
            if path.is_file() and not _OF_THE_RUN.fullmatch(path.name):
                shutil.copy2(path, copy)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            last = strategy == HubStrategy.CHECKPOINT
            shutil.copytree(folder, copy / ("last-checkpoint" if last else folder.name))
        job = run_as_future(self._push_copy, copy, folder.name, self.state.global_step)
        unfinished = [*(other for other in jobs if not other.done()), job]
        # It takes a list and declares one job, and the Trainer declares None.
        self.push_in_progress = PushInProgress(unfinished)  # type: ignore[arg-type, assignment]

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo:
        """The Trainer's; a card that was edited on the Hub is left as it is."""
        # Only if it is given: not every release takes it.
        new: dict[str, bool] = {} if private is None else {"private": private}
        if self.is_world_process_zero():
            if self.hub_model_id is None:
                self.init_hf_repo(token=token, **new)
            access = token or self.args.hub_token, revision or self.args.hub_revision
            edited = edited_card(str(self.hub_model_id), *access)
            if edited is not None:
                # Where the Trainer takes it from, and where it is left as it is.
                os.makedirs(str(self.args.output_dir), exist_ok=True)
                (Path(str(self.args.output_dir)) / CARD_NAME).write_bytes(edited)
        return super().push_to_hub(commit_message, blocking, token, revision, **new, **kwargs)

    def _push_copy(self, copy: Path, name: str, step: int) -> None:
        try:
            push_directory(
                copy,
                str(self.hub_model_id),
                token=self.args.hub_token,
                revision=self.args.hub_revision,
                commit_message=f"Training in progress, step {step}",
            )
        except AdapterError as error:
            logger.warning(
                f"{name} is not on the Hub: {error} The run goes on, and pushes its next "
                "checkpoint; push the result with trainer.push_to_hub()."
            )
        finally:
            shutil.rmtree(copy, ignore_errors=True)
