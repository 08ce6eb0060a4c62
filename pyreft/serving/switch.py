"""Whether an engine serves ReFT adapters: it is asked to, in vLLM's additional config.

vllm serve MODEL --enable-lora --additional-config '{"pyreft": {}}' --lora-modules NAME=ADAPTER
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyreft.installed.vllm import FACTS_OF_SERVING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SECTION = "pyreft"


def serves_reft(vllm_config: VllmConfig) -> bool:
    """Whether the adapters of an engine are ReFT's, in place of LoRAs."""
    given = vllm_config.additional_config
    return isinstance(given, dict) and SECTION in given


def require_possible(vllm_config: VllmConfig) -> None:
    """Raise if an engine that is asked to serve adapters cannot.

    Raises:
        ValueError: If its config does not allow it, with the reason.
        UnsupportedReleaseError: If a fact about the installed vLLM does not hold.
    """
    for one in FACTS_OF_SERVING:
        one.require("serving adapters on vLLM")
    if settings := vllm_config.additional_config[SECTION]:
        raise ValueError(f'"{SECTION}" in additional_config has no settings, got {settings!r}.')
    if vllm_config.lora_config is None:
        raise ValueError(
            "ReFT adapters take the place of LoRAs in vLLM: serve them with --enable-lora, "
            "--max-loras (adapters in one step), --max-cpu-loras (adapters in memory)."
        )
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("ReFT adapters are not served by a pipeline: use tensor parallelism.")
