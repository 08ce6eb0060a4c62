"""A user's script with an intervention that is registered nowhere, run as a process of its own.

python own_kind.py train DIRECTORY     trains, from the last checkpoint if there is one
python own_kind.py load DIRECTORY      prints the logits of the adapter there
"""

import json
import sys

import torch
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

import pyreft
from conftest import WIDTH, make_base, make_tokenizer
from pyreft.interventions import (
    DistributedRepresentationIntervention,
    LowRankRotateLayer,
    SourcelessIntervention,
    TrainableIntervention,
)

STEPS = 8
IDS = torch.arange(3, 15).view(2, 6)


class Scaled(pyreft.LoreftIntervention):
    """On a kind of pyreft's, with an argument of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        self.scale = kwargs["scale"]
        assert isinstance(kwargs["dtype"], torch.dtype)

    def forward(self, base, source=None, subspaces=None):
        return base + self.scale * (super().forward(base) - base)


class Rotated(SourcelessIntervention, TrainableIntervention, DistributedRepresentationIntervention):
    """On pyvene's base classes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs, keep_last_dim=True)
        rotate = LowRankRotateLayer(self.embed_dim, kwargs["low_rank_dimension"], init_orth=True)
        self.rotate_layer = torch.nn.utils.parametrizations.orthogonal(rotate)
        self.learned_source = torch.nn.Linear(self.embed_dim, kwargs["low_rank_dimension"])
        self.learned_source.to(kwargs["dtype"])

    def forward(self, base, source=None, subspaces=None):
        difference = self.learned_source(base) - self.rotate_layer(base)
        return (base + difference @ self.rotate_layer.weight.T).to(base.dtype)


class Shifted(torch.nn.Module):
    """On nothing but torch, its arguments kept nowhere."""

    def __init__(self, *sizes):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(*sizes))

    def forward(self, hidden):
        return hidden + self.shift


def make_model():
    torch.manual_seed(1)
    made = [
        Scaled(embed_dim=WIDTH, low_rank_dimension=2, scale=0.5, dtype=torch.float32),
        Rotated(embed_dim=WIDTH, low_rank_dimension=2, dtype=torch.float32),
        Shifted(WIDTH),
    ]
    representations = [
        {"layer": layer, "component": "block_output", "intervention": module, "positions": "f1+l2"}
        for layer, module in enumerate(made)
    ]
    return pyreft.get_reft_model(
        make_base("llama"), pyreft.ReftConfig(representations=representations)
    )


def train(directory):
    from runs import make_trainer  # beside the tests of training

    settings = {"max_steps": STEPS, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(make_model(), make_tokenizer(), directory, **settings)
    set_seed(trainer.args.seed)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(directory))
    trainer.save_model()


def load(directory):
    kinds = {"Scaled": Scaled, "Rotated": Rotated, "Shifted": lambda: Shifted(WIDTH)}
    model = pyreft.ReftModel.from_pretrained(make_base("llama"), directory, kinds=kinds)
    print(json.dumps(model(IDS).logits.tolist()))


if __name__ == "__main__":
    {"train": train, "load": load}[sys.argv[1]](sys.argv[2])
