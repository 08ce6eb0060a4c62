"""adapter <-> Hugging Face Hub, through `huggingface_hub` alone.

    "user/repo" --find_adapter--> a directory of the cache, all files of one commit --> read_adapter
    save_adapter --> a directory --push_directory--> one commit of "user/repo"

Only the files that are read are downloaded from a repository.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pyreft.sharing.card import CARD_NAME, is_own_card, rename_card
from pyreft.sharing.checkpoint import CONFIG_NAME, WEIGHTS_NAME, AdapterError

logger = logging.getLogger(__name__)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_LOG_IN = "log in with `hf auth login`, or pass token="


@dataclass(frozen=True)
class HubSource:
    """How an adapter is read from the Hub.

    Args:
        revision: A branch, a tag or a commit; the newest commit of "main" by default.
        token: Of a user who may read the repository; that of the log-in by default.
        subfolder: Where in the repository, or in a directory.
        cache_dir: Where files are kept; the cache of `huggingface_hub` by default.
        local_files_only: Look into the cache alone, as with HF_HUB_OFFLINE=1.
    """

    revision: str | None = None
    token: str | bool | None = None
    subfolder: str | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False


# The newest commit, as whoever is logged in.
NEWEST = HubSource()


@dataclass
class HubFiles:
    """The files of a repository on the Hub, all of one commit.

    Args:
        repo_id: "owner/name".
        source: How they are read. With the first file its revision becomes the commit that this
            was, so that all others are of the same.
    """

    repo_id: str
    source: HubSource = NEWEST

    def fetch(self, name: str) -> Path:
        """The path of a file in the cache, downloaded if it is not there.

        Raises:
            AdapterError: If it cannot be downloaded, with the Hub's answer and advice.
        """
        source = self.source
        place = self.repo_id + (f", revision {source.revision!r}," if source.revision else "")
        path = "/".join([*self._folders(), name])
        with _explained(
            f"{path} of {place} cannot be downloaded from the Hub ({constants.ENDPOINT})"
        ):
            found = _api(self.source.token).hf_hub_download(
                self.repo_id,
                path,
                revision=self.source.revision,
                cache_dir=self._cache(),
                local_files_only=self.source.local_files_only,
            )
        # The cache has a folder for each commit: <cache>/models--.../snapshots/<commit>/<path>.
        commit = Path(found).parents[len(self._folders())].name
        self.source = replace(source, revision=commit)
        return Path(found)

    def fetch_matching(self, patterns: Sequence[str]) -> Path:
        """The folder of the repository in the cache, with all files whose names match.

        Args:
            patterns: Names of files with wildcards.

        Raises:
            AdapterError: As for `fetch`.
        """
        with _explained(f"{self.repo_id} cannot be downloaded from the Hub ({constants.ENDPOINT})"):
            found = _api(self.source.token).snapshot_download(
                self.repo_id,
                revision=self.source.revision,
                cache_dir=self._cache(),
                local_files_only=self.source.local_files_only,
                allow_patterns=["/".join([*self._folders(), pattern]) for pattern in patterns],
            )
        return Path(found, *self._folders())

    def _cache(self) -> Path | None:
        return None if self.source.cache_dir is None else Path(self.source.cache_dir)

    def _folders(self) -> list[str]:
        return [part for part in (self.source.subfolder or "").split("/") if part]


def is_repo_id(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a repository, "owner/name" or "name", rather than a path.

    If a directory has the owner's name, it is not a repository, but a path with a typing error in
    its last part.
    """
    if not isinstance(name, str) or not _REPO_ID.fullmatch(name) or ".." in name:
        return False
    owner, slash, _ = name.partition("/")
    return not (slash and Path(owner).is_dir())


def find_adapter(
    name: str | os.PathLike[str], source: HubSource = NEWEST, others: Sequence[str] = ()
) -> Path:
    """The directory of an adapter: the local one, else one downloaded from the Hub.

    Args:
        name: A directory, or a repository on the Hub, see `is_repo_id`.
        source: How it is read from the Hub.
        others: Patterns of the files of other libraries' adapters, which are downloaded from a
            repository that holds none of ours.

    Raises:
        AdapterError: If neither exists.
    """
    if Path(name).exists() or not is_repo_id(name):
        if source.revision is not None and Path(name).exists():
            raise AdapterError(
                f"{os.fspath(name)!r} is a directory here, which has no revisions: leave out "
                f"revision={source.revision!r}, or run elsewhere to load that repository."
            )
        return Path(name, source.subfolder or "")
    logger.warning(f"There is no directory {name!r} here: asking the Hub ({constants.ENDPOINT}).")
    try:
        return download_adapter(HubFiles(str(name), source), others)
    except AdapterError as error:
        raise AdapterError(f"there is no directory {name!r} here, and {error}") from error


def download_adapter(files: HubFiles, others: Sequence[str] = ()) -> Path:
    """The directory in the cache that holds an adapter of the Hub.

    Raises:
        AdapterError: If it cannot be downloaded.
    """
    try:
        config = files.fetch(CONFIG_NAME)
    except AdapterError as error:
        # A file that is missing in the cache may be missing on the Hub as well.
        missing = isinstance(error.__cause__, (EntryNotFoundError, LocalEntryNotFoundError))
        folder = files.fetch_matching(others) if missing and others else None
        if folder is None or not any(list(folder.glob(pattern)) for pattern in others):
            raise
        return folder
    files.fetch(WEIGHTS_NAME)
    return config.parent


def push_directory(
    directory: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    subfolder: str | None = None,
) -> CommitInfo:
    """Push all files of a directory to a repository, in one commit. See `ReftModel.push_to_hub`.

    Raises:
        AdapterError: If the Hub refuses; the repository is unchanged.
    """
    folder = "".join(f"{part}/" for part in (subfolder or "").split("/") if part)
    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {
        path.relative_to(directory).as_posix(): path for path in paths
    }
    api = _api(token)
    with _explained(f"{repo_id!r} cannot be pushed to the Hub ({constants.ENDPOINT})"):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        wants_branch = revision is not None and not create_pr
        if wants_branch and not api.revision_exists(repo_id, str(revision)):
            api.create_branch(repo_id, branch=str(revision), exist_ok=True)
        card = Path(directory) / CARD_NAME
        if CARD_NAME in files and is_own_card(content := card.read_bytes()):
            files[CARD_NAME] = rename_card(content, repo_id)
            if edited_card(repo_id, token, revision, folder) is not None:
                logger.warning(f"The {CARD_NAME} of {repo_id} was edited: it is left as it is.")
                del files[CARD_NAME]
        operations = [CommitOperationAdd(folder + name, file) for name, file in files.items()]
        # Not upload_folder, which may create several commits.
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or "Upload a ReFT adapter",
            revision=revision,
            create_pr=create_pr,
        )


def edited_card(
    repo_id: str, token: str | bool | None, revision: str | None, folder: str = ""
) -> bytes | None:
    """The card of a repository, if a user wrote or edited it."""
    try:
        found = _api(token).hf_hub_download(repo_id, folder + CARD_NAME, revision=revision)
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    content = Path(found).read_bytes()
    return None if is_own_card(content) else content


def _api(token: str | bool | None) -> HfApi:
    return HfApi(token=token, library_name="pyreft", library_version=version("pyreft"))


@contextmanager
def _explained(task: str) -> Iterator[None]:
    """Raise AdapterError for every error of the Hub, with advice.

    Every Exception is caught, because the HTTP library of `huggingface_hub` and its errors differ
    between versions.
    """
    try:
        yield
    except Exception as error:
        raise AdapterError(f"{task}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    # Errors of huggingface_hub that give no reason themselves.
    vague = isinstance(error, (LocalEntryNotFoundError, RuntimeError))
    if vague and error.__cause__ is not None:
        return _reason(error.__cause__)
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)):
        return (
            "it is not in the cache, and the Hub may not be asked (local_files_only, or "
            "HF_HUB_OFFLINE=1): load it once with a connection, or use a local directory."
        )
    if isinstance(error, GatedRepoError):
        return f"access is gated ({status}): ask for it on the repository's page, then {_LOG_IN}."
    if isinstance(error, DisabledRepoError):
        return f"the repository is disabled ({status})."
    if isinstance(error, RevisionNotFoundError):
        return f"there is no such revision ({status}): check the names of branches and tags."
    if isinstance(error, EntryNotFoundError):
        return f"there is no such file ({status}): check revision= and subfolder=."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no such repository, or it is private ({status}): check the spelling; for "
            f"a private one {_LOG_IN}."
        )
    if status == 401:
        return f"the token is not valid or missing (401): {_LOG_IN}."
    if status == 403:
        return f"the token may not do that (403): {_LOG_IN} of a user who may. {_said(error)}"
    if status in (409, 412):
        return f"another commit changed the repository meanwhile ({status}): push again."
    return _said(error)


def _said(error: BaseException) -> str:
    """The error in one line, with its cause if that adds something."""
    said, cause = f"{type(error).__name__}: {' '.join(str(error).split())}", error.__cause__
    if cause is None or isinstance(error, HfHubHTTPError) or str(cause) in str(error):
        return said
    return f"{said} ({_said(cause)})"
