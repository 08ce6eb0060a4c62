"""What `ReftModel` puts on the Hub."""

from __future__ import annotations

import tempfile

from huggingface_hub import CommitInfo

from pyreft.adapters.saving import SavingMixin
from pyreft.sharing import push_directory


class PushingMixin(SavingMixin):
    """The part of `ReftModel` that pushes its adapter to the Hugging Face Hub."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        subfolder: str | None = None,
    ) -> CommitInfo:
        """Save the adapter into a repository of the Hugging Face Hub, in one commit.

        Readers see the adapter that was there, or this one. Other files of the repository stay.

        Args:
            repo_id: "owner/name", or "name" for a repository of one's own; made if there is none.
            private: Whether a new repository is private; the owner's default by default.
            token: Of a user who may write there; that of the log-in by default.
            revision: The branch, made if there is none; "main" by default.
            create_pr: Open a pull request with the commit.
            commit_message: The first line of the commit.
            subfolder: Where in the repository.

        Returns:
            The commit: `oid`, `commit_url`, and of a pull request `pr_url`.

        Raises:
            AdapterError: If the Hub refuses; the repository is as it was.
            ValueError: As for `save_pretrained`.
        """
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory)
            return push_directory(
                directory,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
                subfolder=subfolder,
            )
