"""Load adapters and their base models by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import transformers

from pyreft.base_model.loading import load_named_base
from pyreft.compat.formats import read_any
from pyreft.compat.model import ReftModel
from pyreft.compat.upstream_files import is_upstream, read_upstream
from pyreft.sharing import Adapter, AdapterError, HubSource
from pyreft.sharing.checkpoint import CONFIG_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_ours(directory: Path) -> bool:
    """Whether an adapter is in our format."""
    return (directory / CONFIG_NAME).is_file()


def load_model(
    directory: Path,
    base: str | None = None,
    token: str | None = None,
    positions: Sequence[str] = (),
    act_fn: str | None = None,
) -> ReftModel:
    """Load an adapter of any format on its base model.

    Args:
        directory: The directory of the adapter.
        base: Name of the base model; the one that the adapter names by default.
        token: Token of the Hub, for the base model.
        positions, act_fn: For upstream's files, which lack them, see `read_foreign`.

    Raises:
        AdapterError: If it cannot be read, or does not fit.
        ValueError: If its format does not take an argument.
    """
    if is_ours(directory):
        if positions or act_fn is not None:
            raise ValueError("this adapter says its positions and activation: leave them out.")
        adapter = read_any(directory)
        return ReftModel.from_pretrained(_load_base(adapter, base, token), directory)
    adapter = read_foreign(directory, positions, act_fn)
    return ReftModel.from_pretrained(_load_base(adapter, base, token), adapter)


def read_foreign(directory: Path, positions: Sequence[str], act_fn: str | None) -> Adapter:
    """Read an adapter of another library.

    Args:
        directory: The directory of the adapter.
        positions: For upstream's adapters, whose files lack them: one spec for all interventions,
            or one for each of several equal blocks. Upstream lists first the interventions at the
            beginning of the prompt, then those at its end.
        act_fn: For upstream's adapters, whose files lack it.

    Raises:
        AdapterError: If it cannot be read.
        ValueError: If the interventions cannot be divided among the positions.
    """
    if not is_upstream(directory):
        if positions or act_fn is not None:
            raise ValueError("positions and activation are for adapters of stanfordnlp/pyreft.")
        return read_any(directory)
    count = len(list(directory.glob("intkey_*.bin")))
    if positions and count % len(positions):
        raise ValueError(f"{count} interventions cannot be divided among {len(positions)} specs.")
    specs = [spec for spec in positions for _ in range(count // len(positions))]
    return read_upstream(directory, specs or None, None if act_fn is None else {"act_fn": act_fn})


def _load_base(adapter: Adapter, name: str | None, token: str | None) -> PreTrainedModel:
    if name is None and not adapter.base:
        raise AdapterError(f"{adapter.origin} does not say what its base model is: give --base.")
    if name is None:
        return load_named_base(adapter, HubSource(token=token))
    if adapter.base.get("task"):
        said = adapter.base | {"name_or_path": name, "revision": None}
        return load_named_base(replace(adapter, base=said), HubSource(token=token))
    config = transformers.AutoConfig.from_pretrained(name, token=token)
    cls = getattr(transformers, (config.architectures or [""])[0], None)
    if cls is None:
        raise AdapterError(f"the class of {name} is unknown: its config has no architecture.")
    model: PreTrainedModel = cls.from_pretrained(name, token=token)
    return model
