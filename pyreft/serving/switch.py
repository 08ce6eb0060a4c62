"""Whether an engine serves ReFT adapters: it is asked to, in vLLM's additional config.

vllm serve MODEL --enable-lora --additional-config '{"pyreft": {}}' --lora-modules NAME=ADAPTER

{"pyreft": {"folder": "DIRECTORY"}} says where copies of adapters are kept, see `copies`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pyreft.installed.vllm import FACTS_OF_SERVING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SECTION, FOLDER = "pyreft", "folder"


def serves_reft(vllm_config: VllmConfig) -> bool:
    """Whether the adapters of an engine are ReFT's, in place of LoRAs."""
    given = vllm_config.additional_config
    return isinstance(given, dict) and SECTION in given


def folder_of(vllm_config: VllmConfig) -> Path | None:
    """Where copies of adapters are kept, None if it is not said."""
    given = vllm_config.additional_config[SECTION].get(FOLDER)
    return None if given is None else Path(given)


def require_possible(vllm_config: VllmConfig) -> None:
    """Raise if an engine that is asked to serve adapters cannot.

    Raises:
        ValueError: If its config does not allow it, with the reason.
        UnsupportedReleaseError: If a fact about the installed vLLM does not hold.
    """
    for one in FACTS_OF_SERVING:
        one.require("serving adapters on vLLM")
    settings = vllm_config.additional_config[SECTION]
    folder = settings.get(FOLDER, ".") if isinstance(settings, dict) else None
    if not isinstance(folder, str) or set(settings) - {FOLDER}:
        raise ValueError(
            f'"{SECTION}" in additional_config is {{}} or {{"{FOLDER}": DIRECTORY}}, '
            f"got {settings!r}."
        )
    if not Path(folder).is_dir():
        raise ValueError(f"there is no directory {folder!r} for the copies of adapters.")
    if vllm_config.lora_config is None:
        raise ValueError(
            "ReFT adapters take the place of LoRAs in vLLM: serve them with --enable-lora, "
            "--max-loras (adapters in one step), --max-cpu-loras (adapters in memory)."
        )
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("ReFT adapters are not served by a pipeline: use tensor parallelism.")
