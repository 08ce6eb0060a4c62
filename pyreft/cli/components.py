"""What `pyreft components` shows: what can be edited in a model, from its config alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pyreft.annotations import Json

if TYPE_CHECKING:
    from pyreft.base_model.listing import ListedComponent


def components_of(name: str, revision: str | None, token: str | None) -> list[ListedComponent]:
    """The components of a model that a config describes; its weights are not read.

    Args:
        name: A directory with a config, or a repository of the Hub.
        revision, token: Of the repository.

    Raises:
        ValueError: If the model has no list of layers.
        OSError: If there is no config.
    """
    import torch
    import transformers

    from pyreft.base_model.listing import list_components

    config = transformers.AutoConfig.from_pretrained(
        name, revision=revision, token=token, trust_remote_code=False
    )
    names = config.architectures or []
    found = next((cls for one in names if (cls := getattr(transformers, one, None))), None)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config) if found is None else found(config)
    return list_components(model)


def as_json(components: list[ListedComponent]) -> list[Json]:
    """The same for programs."""
    return [asdict(one) for one in components]
