"""How `generate` calls a model: once for each step, with keyword arguments and its cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pyreft.annotations import Inputs
from pyreft.installed.caches import cached_tokens
from pyreft.installed.fact import fact, require_found


@fact("transformers")
def generate_calls_model() -> None:
    """Generate calls the model once for a step, with keyword arguments, one of which is a cache
    that counts the tokens before the step.
    """
    seen: list[tuple[int, int]] = []

    def see(module: nn.Module, args: tuple[object, ...], kwargs: Inputs) -> None:
        if args:
            raise TypeError("generate passes positional arguments")
        seen.append((cached_tokens(kwargs), kwargs["input_ids"].shape[1]))

    model = _tiny_model()
    model.register_forward_pre_hook(see, with_kwargs=True)
    ids = torch.tensor([[3, 4, 5]], device="cpu")
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
    )
    require_found(seen, [(0, 3), (3, 1), (4, 1)], "the tokens before and in each step")


def _tiny_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    # The user's random state is left as it was.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = LlamaForCausalLM(config)
    model.train(False)
    return model
