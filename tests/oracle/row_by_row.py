"""The reference: a bare copy of the base model with plain hooks, run on one row without padding."""

import contextlib
import dataclasses
from typing import Any

import torch
from bases import HEADS, START, bare, cache_name, place
from position_rules import RefusedError, columns, edits_completion


@dataclasses.dataclass(frozen=True)
class Turn:
    """From a token on, how positions are found.

    Args:
        start: The index of the first token of the turn; those before are as they were.
        prompt: How many tokens are the prompt, or None if all of the turn are generated ones.
    """

    start: int
    prompt: int | None


@dataclasses.dataclass(frozen=True)
class Edit:
    """One intervention at work on a row.

    Args:
        parameters: Its `Parameters`.
        weight: How much of it is done.
        config: Its place and positions, a plain dict.
        beside: The specs of its adapter at the same place.
        adapter: The index of its adapter: interventions of one must not meet.
        positions: Explicit positions in place of the spec's.
        directions: Of the subspace; all by default.
    """

    parameters: Any
    weight: float
    config: dict
    beside: tuple
    adapter: int = 0
    positions: tuple | None = None
    directions: tuple | None = None

    def columns(self, turns, t, ids):
        """The positions edited of t tokens."""
        found = set()
        for turn, following in zip(turns, [*turns[1:], Turn(t, None)], strict=True):
            span = range(turn.start, min(t, following.start))
            found |= self._of(turn, t, ids) & set(span)
        return sorted(found)

    def _of(self, turn, t, ids):
        spec = self.config["positions"]
        if turn.prompt is None:
            return set(range(t)) if edits_completion(spec) else set()
        if self.positions is None:
            return columns(spec, self.beside, turn.prompt, t, ids)
        chosen = [p for p in self.positions if p != -100]
        if any(not -turn.prompt <= p < turn.prompt for p in chosen):
            raise RefusedError("an explicit position is outside the prompt")
        return {p % turn.prompt for p in chosen}

    def added(self, hidden, heads, chosen):
        """What is added to (B, T, D) hidden states."""
        picked = hidden[:, chosen]
        if heads is not None:
            picked = picked.unflatten(-1, (heads, -1))
        change = self.parameters.edit(picked, self.directions)
        if heads is not None:
            kept = torch.zeros(heads, 1, dtype=hidden.dtype)
            kept[self.config.get("heads") or list(range(heads))] = 1.0
            change = (change * kept).flatten(-2)
        whole = torch.zeros_like(hidden)
        whole[:, chosen] = self.weight * change
        return whole


def refuse(architecture, edits, turns, t, ids=None, read=0):
    """Raise RefusedError if a position is not there, or two edits of one adapter meet.

    Returns whether any token is edited.

    Args:
        architecture: Of the base model.
        edits, turns, t, ids: As for `Edit.columns`.
        read: How many tokens an encoder reads.
    """
    seen = {}
    for edit in edits:
        path, side, _, _, stack = place(
            architecture, edit.config["layer"], edit.config["component"]
        )
        of = [Turn(0, read)] if stack == "encoder" else turns
        found = edit.columns(of, read if stack == "encoder" else t, ids)
        chosen = {(c, h) for c in found for h in edit.config.get("heads") or range(HEADS)}
        others = seen.setdefault((path, side, edit.adapter), set())
        if chosen & others:
            raise RefusedError("two interventions edit one token")
        others |= chosen
    return any(seen.values())


class Reference:
    """A base model whose rows are run one by one.

    Args:
        base: A copy of the base model of its own.
        architecture: Its name.
    """

    def __init__(self, base, architecture):
        self.base, self.architecture = base, architecture
        self.two_stacks = bare(base).config.is_encoder_decoder

    def place(self, config):
        return place(self.architecture, config["layer"], config["component"])

    @contextlib.contextmanager
    def editing(self, edits, turns, ids=None, in_place=False):
        """Edit in forward passes on one text inside the block.

        Args:
            edits: The `Edit`s.
            turns: The `Turn`s of the text, or of the decoder's.
            ids: (t,), of the text.
            in_place: Whether to overwrite outputs, so that transformers' record of hidden states,
                which early 5.x makes before any hook, has the edited ones.
        """
        sites, handles = {}, []
        for edit in edits:
            path, side, _, heads, stack = self.place(edit.config)
            sites.setdefault((path, side, stack), []).append((edit, heads))

        def change(hidden, here, stack):
            t = hidden.shape[1]
            of = [Turn(0, t)] if stack == "encoder" else turns
            chosen = [(edit, heads, edit.columns(of, t, ids)) for edit, heads in here]
            changes = [edit.added(hidden, heads, cols) for edit, heads, cols in chosen if cols]
            return sum(changes, hidden) if changes else hidden

        for (path, side, stack), here in sites.items():
            module = bare(self.base).get_submodule(path)

            def before(module, args, kwargs, here=here, stack=stack):
                if args:
                    return (change(args[0], here, stack), *args[1:]), kwargs
                hidden = change(kwargs["hidden_states"], here, stack)
                return args, {**kwargs, "hidden_states": hidden}

            def after(module, args, output, here=here, stack=stack):
                hidden = output if isinstance(output, torch.Tensor) else output[0]
                changed = change(hidden, here, stack)
                changed = hidden.copy_(changed) if in_place else changed
                return changed if output is hidden else (changed, *output[1:])

            if side == "input":
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            else:
                handles.append(module.register_forward_hook(after, prepend=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def run(self, edits, turns, ids, read=None, cache=False, **options):
        """Whole rows of one text's beginning, without padding -> the outputs of the model.

        Args:
            edits, turns: The `Edit`s of the text, and its `Turn`s.
            ids: (t,), or (B, t) of several continuations; of the decoder, if there is one.
            read: (t,), what an encoder reads.
            cache: Whether to return one.
            **options: For the base model.
        """
        ids = torch.atleast_2d(ids)
        texts = {"input_ids": ids}
        if self.two_stacks:
            texts = {"input_ids": read[None].expand(len(ids), -1), "decoder_input_ids": ids}
        if bare(self.base).can_generate():
            texts["use_cache"] = cache
        with self.editing(edits, turns, ids[0], in_place="output_hidden_states" in options):
            # Not called, so that `answering` does not answer.
            return bare(self.base).forward(**texts, **options)

    @contextlib.contextmanager
    def answering(self, edits, rows, mask):
        """Give the logits of each row by itself for those of a batch, inside the block.

        What transformers makes of logits - processors, samples, beams, end tokens - is then what
        it makes of the reference's, in the padded batch that it was given.

        Args:
            edits: The `Edit`s of each row.
            rows: (ids, n, labels, read) of each row, as in `batch`.
            mask: (B, W), which columns of the prompts are text.
        """

        def answer(module, args, kwargs, outputs):
            ids = kwargs["decoder_input_ids" if self.two_stacks else "input_ids"]
            copies, width = len(ids) // len(rows), mask.shape[1]
            for row, (_, n, _, read) in enumerate(rows):
                here = slice(row * copies, (row + 1) * copies)
                text = ids[here]
                if not self.two_stacks:
                    text = torch.cat([text[:, :width][:, mask[row].bool()], text[:, width:]], 1)
                logits = self.run(edits[row], [Turn(0, n)], text, read).logits
                outputs.logits[here, -1] = logits[:, -1]
            return outputs

        handle = bare(self.base).register_forward_hook(answer, with_kwargs=True)
        try:
            yield bare(self.base)
        finally:
            handle.remove()


def shifted(labels):
    """What a decoder reads to predict labels: the start token, then all but the last."""
    return torch.cat([torch.tensor([START]), labels[:-1].clamp(min=0)])


def keys_and_values(model, outputs):
    """[(keys, values)] of each layer of the cache in outputs, (B, heads, tokens, width)."""
    cache = getattr(outputs, cache_name(model))
    cache = getattr(cache, "self_attention_cache", cache)
    return [(layer.keys, layer.values) for layer in cache.layers]
