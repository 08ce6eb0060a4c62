"""The prefix cache: blocks of tokens are shared by all requests that edit them alike.

block        0 1 2 3 | 4 5 6 7 | 8 9             an adapter at l1
key            none  |   none  | (adapter, the edited tokens of the block)

What lies before the first edited token is shared with all others, and the base model. From there on
a block is known by what was edited: the same adapter edits other tokens of a longer prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from pyreft.serving.registry import REGISTRY, split_path
from pyreft.serving.served import EditedPrompt, ServedAdapter

if TYPE_CHECKING:
    from vllm.v1.request import Request

# Of requests that the scheduler has.
_prompts: WeakKeyDictionary[Request, tuple[ServedAdapter, EditedPrompt]] = WeakKeyDictionary()


def is_served(request: Request) -> bool:
    """Whether a request of the scheduler is for a ReFT adapter."""
    return request.lora_request is not None and _of(request) is not None


def keys_of_block(request: Request, start: int, stop: int) -> list[tuple[str, str]]:
    """What the cached states of a block depend on, beside its tokens and those before it.

    Args:
        request: The request of the scheduler.
        start, stop: The tokens of the block.
    """
    found = _of(request) if request.lora_request is not None else None
    if found is None:
        return []
    adapter, prompt = found
    edited = [
        f"{chosen.interventions}:{(positions - start).tolist()}"
        for positions, chosen in prompt.within(start, stop)
    ]
    return [("pyreft", " ".join([adapter.fingerprint, *edited]))] if edited else []


def _of(request: Request) -> tuple[ServedAdapter, EditedPrompt] | None:
    if request not in _prompts:
        path = request.lora_request.lora_path
        adapter = REGISTRY.known(path)
        if adapter is None:
            return None
        length = split_path(path)[1] or request.num_prompt_tokens
        prompt = adapter.place(length, request.prompt_token_ids)
        _prompts[request] = adapter, prompt
    return _prompts[request]
