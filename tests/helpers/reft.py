"""A model with an adapter that edits strongly, batches for it, and its gradients."""

import torch
from transformers import Cache

from conftest import VOCAB, randomize
from pyreft import ReftConfig, get_reft_model
from pyreft.installed.caches import cache_argument

# A row of six tokens of prompt and four of completion.
IDS = torch.arange(3, 13)[None]
LABELS = IDS.clone()
LABELS[:, :6] = -100


def wrap(base, **config):
    """An adapter at every layer, of the same weights at each call."""
    torch.manual_seed(0)
    config = ReftConfig(**{"rank": 4, "positions": "f2+l1"} | config)
    return randomize(get_reft_model(base, config), 0.2)


def passing(cache, model):
    """The arguments that pass a cache to a model, by the name that the installed release has."""
    return {cache_argument(getattr(model, "model", model)): cache}


def cache_of(outputs):
    """The cache that a forward pass or `generate` returned."""
    return next(value for value in outputs.values() if isinstance(value, Cache))


def batch(base, seed=0):
    """Three rows, right-padded, with the labels that the base model takes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (3, 10), generator=generator)
    mask = (torch.arange(10) < torch.tensor([[10], [7], [9]])).long()
    ids = ids.masked_fill(mask == 0, 0)
    if base.config.model_type == "bert":
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 2, 1])}
    labels = ids.masked_fill((mask == 0) | (torch.arange(10) < 5), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def no_dropout(base):
    """Training mode without chance, so that two passes can be compared."""
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    for name in ("attention_probs_dropout_prob", "attn_pdrop", "attention_dropout"):
        if hasattr(base.config, name):
            setattr(base.config, name, 0.0)
    return base


def gradients(model, *inputs):
    """The gradients of the interventions after one backward pass through all the forward passes."""
    model.zero_grad()
    losses = [model(**one).loss for one in inputs]
    sum((index + 1) * loss for index, loss in enumerate(losses)).backward()
    found = {name: p.grad for name, p in model.interventions.named_parameters()}
    assert all(grad is not None and grad.abs().max() > 0 for grad in found.values())
    return {name: grad.clone() for name, grad in found.items()}


def assert_same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, one in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(one, expected[name], rtol=tolerance, atol=tolerance * scale)


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits
