"""The keys and values of tokens before the first computed one, as a transformers cache.

Nothing is written to it: a step's own keys and values are appended to a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

KeysValues = tuple[Tensor, Tensor]


class FrozenPrefix(Cache):
    """The keys and values of earlier tokens in each layer.

    Args:
        layers: For each layer of the model its keys and values, (B, heads, P, width) each; None
            for a layer that does not run.
        length: P, the same for all rows: the attention mask hides the padding of shorter ones.
    """

    def __init__(self, layers: Sequence[KeysValues | None], length: int) -> None:
        super().__init__(layers=[_FrozenLayer(known, length) for known in layers])


class _FrozenLayer(DynamicLayer):  # type: ignore[no-untyped-call, unused-ignore]
    # Every layer has the whole prefix: masks are those of full attention, and a sliding window is
    # applied to them by the distance between tokens.
    is_sliding = False

    def __init__(self, known: KeysValues | None, length: int) -> None:
        begin: Callable[[], None] = super().__init__
        begin()
        self._known, self._length = known, length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> KeysValues:
        assert self._known is not None, "a skipped layer runs"
        keys, values = self._known
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, *args: object) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        # Older transformers pass the indices of the queries, not their number.
        queries = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self._length + queries, 0


class RecordingCache(Cache):
    """Records the keys and values of layers that run; layers never read them from it.

    Args:
        layers: The number of layers of the model.
        last: The last layer whose keys and values are needed: after them it raises `Recorded`.

    Attributes:
        known: The keys and values of each layer that ran.
    """

    def __init__(self, layers: int, last: int) -> None:
        super().__init__(layers=[_FrozenLayer(None, 0) for _ in range(layers)])
        self.known: dict[int, KeysValues] = {}
        self._last = last

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> KeysValues:
        self.known[layer_idx] = key_states, value_states
        if layer_idx == self._last:
            raise Recorded
        return key_states, value_states


class Recorded(Exception):  # noqa: N818 - nothing went wrong
    """Everything that was needed is recorded."""
