"""Tiny encoder-decoder models, batches for them, and edits made in them by hand."""

import torch
from by_hand import first_output, on_output
from torch.nn import functional
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from conftest import VOCAB, WIDTH, enlarge, randomize
from pyreft import ReftConfig, get_reft_model

# Of different depth, so that no layer of one is taken for one of the other.
ENCODER_LAYERS, DECODER_LAYERS = 2, 3
LAYERS_OF = {"encoder": ENCODER_LAYERS, "decoder": DECODER_LAYERS}
START, PAD, EOS = 2, 0, 1
TOKENS = {"decoder_start_token_id": START, "pad_token_id": PAD, "eos_token_id": EOS}
TOKENS |= {"vocab_size": VOCAB, "tie_word_embeddings": False}
BART = {"d_model": WIDTH, "encoder_layers": ENCODER_LAYERS, "decoder_layers": DECODER_LAYERS}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48}
BART |= {"decoder_ffn_dim": 48, "max_position_embeddings": 64, "forced_eos_token_id": None}


def make_t5(**changes):
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_heads": 4}
    sizes |= {"num_layers": ENCODER_LAYERS, "num_decoder_layers": DECODER_LAYERS}
    return T5ForConditionalGeneration(T5Config(**sizes | TOKENS | changes))


def make_bart(**changes):
    return BartForConditionalGeneration(BartConfig(**BART | TOKENS | changes))


MAKERS = {"t5": make_t5, "bart": make_bart}
STACKS_AT = {"t5": "{stack}.block", "bart": "model.{stack}.layers"}
BLOCKS = {"encoder": "block_output", "decoder": "decoder_block_output"}


def make(architecture, seed=0, **changes):
    """A model in evaluation mode that generates no end token, the same one for the same seed."""
    torch.manual_seed(seed)
    model = enlarge(MAKERS[architecture](**changes).eval())
    if architecture == "t5":
        # Its weights begin larger than those of other models.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(0.3)
    model.generation_config.eos_token_id = VOCAB
    return model


def make_generator(architecture, seed=0):
    """The same with stacks of one depth: transformers makes T5's cache as deep as its encoder."""
    same_depth = {"t5": {"num_decoder_layers": ENCODER_LAYERS}, "bart": {}}
    return make(architecture, seed, **same_depth[architecture])


def layers(base, stack):
    return base.get_submodule(STACKS_AT[base.config.model_type].format(stack=stack))


def wrap(base, stack="encoder", **config):
    """An adapter at every layer of a stack, of the same weights at each call."""
    torch.manual_seed(0)
    settings = {"component": BLOCKS[stack], "positions": "l1", "rank": 4} | config
    return randomize(get_reft_model(base, ReftConfig(**settings)).eval(), 0.3)


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
