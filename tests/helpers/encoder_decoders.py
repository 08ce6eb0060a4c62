"""Batches for encoder-decoder models, and edits made in them by hand."""

import torch
from by_hand import first_output, on_output
from encoder_decoder_models import PAD, START, make_generator
from torch.nn import functional

from conftest import VOCAB, randomize
from pyreft import ReftConfig, get_reft_model

STACKS_AT = {"t5": "{stack}.block", "bart": "model.{stack}.layers"}
BLOCKS = {"encoder": "block_output", "decoder": "decoder_block_output"}


def layers(base, stack):
    return base.get_submodule(STACKS_AT[base.config.model_type].format(stack=stack))


def wrap(base, stack="encoder", **config):
    """An adapter at every layer of a stack, of the same weights at each call."""
    torch.manual_seed(0)
    settings = {"component": BLOCKS[stack], "positions": "l1", "rank": 4} | config
    return randomize(get_reft_model(base, ReftConfig(**settings)).eval(), 1.0)


def ids(length, seed=0):
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def padded(rows, fill=PAD, side="right"):
    """Rows of ids -> (B, T) of them, and its mask."""
    width = max(len(row) for row in rows)
    batch = torch.full((len(rows), width), fill)
    mask = torch.zeros_like(batch)
    for index, row in enumerate(rows):
        where = slice(len(row)) if side == "right" else slice(width - len(row), width)
        batch[index, where], mask[index, where] = row, 1
    return batch, mask


def batch(prompts=(5, 8, 3), completions=(4, 2, 6), side="right"):
    """A batch of random texts: prompts at either side, labels of lengths of their own."""
    rows = [ids(length, seed=length) for length in prompts]
    targets = [ids(length, seed=50 + length) for length in completions]
    input_ids, attention_mask = padded(rows, side=side)
    labels, _ = padded(targets, fill=-100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@torch.no_grad()
def edited_tokens(model, inputs, stack, layer=0):
    """For each row, the columns that leave a layer other than bit-identical to what it made."""
    seen = []

    def see(module, args, output):
        seen.append(first_output(output).clone())

    module = layers(model.model, stack)[layer]
    handles = [module.register_forward_hook(see, prepend=first) for first in (True, False)]
    model(**inputs)
    for handle in handles:
        handle.remove()
    made, left = seen
    return [row.any(-1).nonzero().flatten().tolist() for row in made != left]


class Recomputation:
    """The same model built of a bare copy and plain hooks, run on whole texts without a cache.

    Args:
        architecture: Of the copy.
        model: The model whose interventions are used.
        columns: For a stack, (n, t) -> the columns edited there of t tokens, n of them prompt.
    """

    def __init__(self, architecture, model, columns):
        self.base, self.columns, self.edited = make_generator(architecture), columns, {}
        found = [(stack, layer) for stack in columns for layer in layers(self.base, stack)]
        for (stack, layer), module in zip(found, model.interventions.values(), strict=True):
            layer.register_forward_hook(self.edit_by(module, stack))

    def edit_by(self, intervention, stack):
        def edit(hidden):
            hidden, columns = hidden.clone(), self.edited[stack]
            hidden[:, columns] = intervention(hidden[:, columns])
            return hidden

        return on_output(edit)

    @torch.no_grad()
    def logits(self, prompt, decoded, decoder_prompt=1):
        """(T,) prompt and (B, t) tokens of the decoder -> (B, t, V)."""
        sizes = {
            "encoder": (len(prompt), len(prompt)),
            "decoder": (decoder_prompt, len(decoded[0])),
        }
        self.edited = {stack: columns(*sizes[stack]) for stack, columns in self.columns.items()}
        rows = prompt[None].expand(len(decoded), -1)
        return self.base(input_ids=rows, decoder_input_ids=decoded, use_cache=False).logits

    def greedy(self, prompt, steps, start=(START,)):
        """The generated tokens."""
        decoded = torch.tensor([list(start)])
        for _ in range(steps):
            last = self.logits(prompt, decoded, len(start))[:, -1]
            decoded = torch.cat([decoded, last.argmax(-1, keepdim=True)], dim=1)
        return decoded[0, len(start) :]

    def beams(self, prompt, width, steps):
        """Beam search without an end token: the `width` best, best first."""
        decoded, scores = torch.tensor([[START]]), torch.zeros(1)
        for _ in range(steps):
            last = self.logits(prompt, decoded)[:, -1]
            grown = scores[:, None] + last.log_softmax(-1)
            scores, best = grown.flatten().topk(width)
            decoded = torch.cat([decoded[best // VOCAB], (best % VOCAB)[:, None]], dim=1)
        return decoded[:, 1:]

    def samples(self, prompt, count, seed, temperature, steps):
        """`count` samples for one prompt."""
        torch.manual_seed(seed)
        decoded = torch.full((count, 1), START)
        for _ in range(steps):
            last = self.logits(prompt, decoded)[:, -1]
            chances = functional.softmax(last / temperature, -1)
            decoded = torch.cat([decoded, torch.multinomial(chances, 1)], dim=1)
        return decoded[:, 1:]
