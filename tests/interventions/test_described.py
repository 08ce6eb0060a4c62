"""What a kind can do is what its class says: none is taken for the kind that it derives from."""

import pytest
import torch

import pyreft
from conftest import WIDTH, make_base, randomize
from pyreft.interventions import built_in_kinds, scale, stacks_with
from pyreft.interventions.forms import has_form

IDS = torch.arange(3, 15).view(2, 6)


@pyreft.register_intervention("described_twice")
class Twice(pyreft.NodireftIntervention):
    """NodiReFT's edit, twice as far: what computes it is inherited from nobody."""

    def coefficients(self, hidden, basis):
        return 2 * super().coefficients(hidden, basis)


class Renamed(pyreft.NodireftIntervention):
    """Nothing of its own, which nobody can know of a subclass."""


def test_the_six_say_what_they_compute():
    for kind in ("consreft", "direft", "lobireft", "loreft", "nodireft", "noreft"):
        assert has_form(built_in_kinds()[kind](embed_dim=8, low_rank_dimension=2))


@pytest.mark.parametrize("cls", [Twice, Renamed])
def test_a_subclass_says_so_itself(cls):
    module = cls(embed_dim=8, low_rank_dimension=2)
    assert not has_form(module)
    assert stacks_with(module) is None
    with pytest.raises(ValueError, match=f"what {cls.__name__} computes is not known"):
        scale(module, 2.0)
    assert type(scale(module, 1)) is cls


def test_prefix_and_suffix_of_a_subclass_run_its_own_formula():
    config = pyreft.ReftConfig(kind="described_twice", positions="f2+l2", rank=3, tied=False)
    model = pyreft.get_reft_model(make_base("llama"), config)
    with torch.no_grad():
        randomize(model, 0.3)
    plain = pyreft.get_reft_model(
        make_base("llama"),
        pyreft.ReftConfig(kind="nodireft", positions="f2+l2", rank=3, tied=False),
    )
    plain.interventions.load_state_dict(model.interventions.state_dict())
    with torch.no_grad():
        for module in plain.interventions.values():
            module.learned_source.weight.mul_(2)
            module.learned_source.bias.mul_(2)
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits)


def test_a_forward_that_a_script_put_on_a_class_runs(monkeypatch):
    before = pyreft.DireftIntervention.forward
    config = pyreft.ReftConfig(kind="direft", positions="f1+l1", rank=2, tied=False)
    model = pyreft.get_reft_model(make_base("llama"), config)
    calls = []

    def forward(self, base, source=None, subspaces=None):
        calls.append(base.shape[-1])
        return before(self, base, source, subspaces)

    monkeypatch.setattr(pyreft.DireftIntervention, "forward", forward)
    model(IDS)
    assert calls == [WIDTH] * len(model.interventions)
