"""Generation by a recomputation of the whole sequence for each new token, and its inputs."""

import torch
from by_hand import find_layers, on_output

from conftest import VOCAB, make_base, randomize
from pyreft import ReftConfig, get_reft_model

NEW = 6


def bare(architecture, seed=0):
    """A base model that does not repeat itself, as one with tied embeddings would."""
    return make_base(architecture, seed, tie_word_embeddings=False)


# Position spec -> the columns it edits in a sequence of t tokens, n of them prompt.
POSITIONS = {
    "f2+l1": lambda n, t: [0, 1, n - 1],
    "completion": lambda n, t: list(range(n, t)),
    "all": lambda n, t: list(range(t)),
}


def wrap(base, positions="f2+l1", **config):
    model = get_reft_model(base, ReftConfig(positions=positions, rank=4, **config)).eval()
    model.generation_config.eos_token_id = VOCAB  # never generated
    return randomize(model, 0.3)


class Recomputation:
    """The same model built of a bare copy and plain hooks, run on whole sequences without cache."""

    def __init__(self, architecture, model, columns):
        self.base, self.columns = bare(architecture), columns
        self.edited = None
        interventions = model.interventions.values()
        for layer, intervention in zip(find_layers(self.base), interventions, strict=False):
            layer.register_forward_hook(self.edit_by(intervention))

    def edit_by(self, intervention):
        def edit(hidden):
            hidden = hidden.clone()
            hidden[:, self.edited] = intervention(hidden[:, self.edited])
            return hidden

        return on_output(edit)

    @torch.no_grad()
    def logits(self, ids, prompt_length):
        """(T,) or (B, T) ids -> (V,) or (B, V) logits of the next token."""
        ids = torch.atleast_2d(ids)
        self.edited = self.columns(prompt_length, ids.shape[1])
        positions = torch.arange(ids.shape[1])[None]
        return self.base(ids, position_ids=positions, use_cache=False).logits[:, -1]

    def greedy(self, prompt, steps=NEW):
        """(T,) ids -> the generated tokens and the logits they were chosen by."""
        ids, logits = prompt, []
        for _ in range(steps):
            logits.append(self.logits(ids, len(prompt))[0])
            ids = torch.cat([ids, logits[-1].argmax()[None]])
        return ids[len(prompt) :], torch.stack(logits)

    def beams(self, prompt, width, steps=NEW):
        """Beam search without an end token: the `width` best continuations, best first."""
        ids, scores = prompt[None], torch.zeros(1)
        for _ in range(steps):
            grown = scores[:, None] + self.logits(ids, len(prompt)).log_softmax(-1)
            scores, best = grown.flatten().topk(width)
            ids = torch.cat([ids[best // VOCAB], (best % VOCAB)[:, None]], dim=1)
        return ids[:, len(prompt) :]

    def samples(self, prompts, seed, temperature, steps=NEW):
        """One sample for each of the prompts, all of one length."""
        torch.manual_seed(seed)
        ids, length = prompts, prompts.shape[1]
        for _ in range(steps):
            chances = (self.logits(ids, length) / temperature).softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1)], dim=1)
        return ids[:, length:]


def prompt(length, seed=0):
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def left_padded(rows):
    width = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :], mask[index, width - len(row) :] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, new=NEW, **inputs):
    """(B, new) generated ids."""
    ids = model.generate(max_new_tokens=new, **{"do_sample": False} | inputs)
    return ids[:, -new:]
