"""Edits of parts that read no text, planned when their hidden states are there.

attention_mask (B, samples)   the call's argument, which counts no frames
attention_mask (B, T)         what the model makes of it, for the modules around the edited one
pixel_values (B, C, H, W)     the picture, of whose shape the grid of patches is
hidden (B, T, D)              T tokens, of which the mask admits some
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from pyreft.annotations import Arguments
from pyreft.editing.edits import SiteEdits

# The height and the width of a picture, or of its grid of patches.
Picture: TypeAlias = tuple[int, int]
# (site, tokens that are not padding (B, T), picture) -> the edits there, if any.
PlanSite = Callable[[int, Tensor, Picture | None], SiteEdits | None]


class TowerEdits:
    """The edits of all towers in one forward pass.

    Args:
        plan: Plans the edits of a site, when its tokens are known.
        sites: The sites.
        of_text: Those of them whose tokens are made of a text, which may have padding.

    Attributes:
        edited: Whether any token of a hidden state was edited.
    """

    def __init__(self, plan: PlanSite, sites: Sequence[int], of_text: Sequence[int] = ()) -> None:
        self._plan, self._sites, self._of_text = plan, frozenset(sites), frozenset(of_text)
        # T -> the tokens of the rows that are not padding, (B, T), as the model said last.
        self._masks: dict[int, Tensor] = {}
        self._planned: dict[tuple[int, tuple[int, ...]], SiteEdits | None] = {}
        # Whether the module that ran last was given no mask, and so no padding.
        self._unmasked = False
        self._picture: Picture | None = None
        self.edited = False

    def __contains__(self, site: int) -> bool:
        return site in self._sites

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def see(self, names: Sequence[str], args: Sequence[object], kwargs: Arguments) -> None:
        """Note attention masks and pictures among the arguments of a module around an edited one.

        Args:
            names: The names of its positional arguments.
            args, kwargs: The arguments.
        """
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for name, value in given.items():
            if name.endswith("attention_mask"):
                self._unmasked = value is None
            if not isinstance(value, Tensor):
                continue
            if name == "pixel_values" and value.dim() == 4:
                self._picture = value.shape[2], value.shape[3]
            if not name.endswith("attention_mask"):
                continue
            if (text := _tokens_admitted(value)) is not None:
                self._masks[text.shape[1]] = text

    @torch.compiler.disable  # type: ignore[untyped-decorator, unused-ignore]
    def at(self, site: int, hidden: Tensor) -> SiteEdits | None:
        """The edits of a hidden state, (B, T, D) or (B, H, W, D); None if none of it is edited.

        A second hidden state of the same site and shape, of a pass whose parts are computed again,
        has the same edits.
        """
        key = (site, tuple(hidden.shape[:-1]))
        if key not in self._planned:
            rows, count = len(hidden), hidden.shape[1:-1].numel()
            grid = hidden.shape[1], hidden.shape[2]
            text = self._masks.get(count)
            if text is None or len(text) != rows:
                self._refuse_padding(site, count)
                text = torch.ones(rows, count, dtype=torch.bool)
            picture = grid if hidden.dim() == 4 else self._picture
            self._planned[key] = edits = self._plan(site, text.to(hidden.device), picture)
            calls = () if edits is None else edits.calls
            self.edited |= any(call.slots.scatter.numel() for call in calls)
        return self._planned[key]

    def _refuse_padding(self, site: int, count: int) -> None:
        padded = any(not bool(mask.all()) for mask in self._masks.values())
        if site in self._of_text and padded and not self._unmasked:
            raise ValueError(
                f"a layer that is edited has {count} tokens for each text of this batch, and the "
                "model does not say which of them are padding. Call it with texts of one length, "
                "or edit layers that have all tokens of the text."
            )


class MaskWatch:
    """A hook on a module around an edited one, which notes its attention masks.

    Args:
        current: The edits of towers in the pass that is running, None if there are none.
        names: The names of the positional arguments of the module.
    """

    def __init__(self, current: Callable[[], TowerEdits | None], names: Sequence[str]) -> None:
        self._current, self._names = current, names

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: Arguments) -> None:
        if (edits := self._current()) is not None:
            edits.see(self._names, args, kwargs)


def _tokens_admitted(mask: Tensor) -> Tensor | None:
    """An attention mask (B, T), or (B, 1, Q, T) of which token attends to which -> (B, T) bool."""
    if mask.dim() == 2:
        return mask > _LOWEST if mask.is_floating_point() and bool((mask < 0).any()) else mask != 0
    if mask.dim() != 4:
        return None
    # Of the masks of its heads, the first; additive ones are zero or nearly so where they admit.
    one = mask[:, 0]
    admitted = one > _LOWEST if one.is_floating_point() else one.bool()
    # A row of padding may attend to everything, because it may not attend to nothing.
    some = admitted & ~admitted.all(-1, keepdim=True)
    partial = some.any(1)
    return torch.where(partial.any(1, keepdim=True), partial, admitted.any(1))


# Above what additive masks put on padding, below any bias of positions.
_LOWEST = -1000.0
