"""Interventions that are modules of a user's own, and calls in which nothing is edited."""

import pytest
import torch
from torch import nn
from transformers import (
    DynamicCache,
    SqueezeBertConfig,
    SqueezeBertForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
)

import pyreft
from conftest import WIDTH, make_base
from pyreft.installed.caches import cache_argument

IDS = torch.arange(3, 15).view(2, 6)


@pytest.fixture(autouse=True)
def say_again():
    """What is said once in a process is said in each of these tests."""
    from transformers.utils import logging

    logging.warning_once.cache_clear()


@pytest.fixture
def padded():
    """Rows of different lengths, and each of them alone."""
    rows = [torch.arange(3, 3 + n) for n in (7, 4, 2)]
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return rows, {"input_ids": ids, "attention_mask": mask}


@pyreft.register_intervention("mixes_tokens")
class Mixing(nn.Module):
    """Each token moves to the mean of the edited tokens of its row."""

    def __init__(self, embed_dim):
        super().__init__()
        self.embed_dim = embed_dim
        self.share = nn.Parameter(torch.tensor(0.7))

    def forward(self, hidden, subspaces=None):
        if subspaces is not None:
            assert len(subspaces) == len(hidden)
        return hidden + self.share * (hidden.mean(-2, keepdim=True) - hidden)


@pytest.mark.parametrize("positions", ["prompt", "f3+l2", "all"])
def test_a_module_that_mixes_tokens_sees_those_of_its_row_alone(padded, positions):
    config = pyreft.ReftConfig(kind="mixes_tokens", positions=positions)
    model = pyreft.get_reft_model(make_base("llama"), config)
    rows, batch = padded
    together = model(**batch).logits
    for index, row in enumerate(rows):
        alone = model(row[None]).logits[0]
        torch.testing.assert_close(together[index, : len(row)], alone, rtol=1e-5, atol=1e-5)
    directions = [[[index] for index in range(3)]] * 3
    torch.testing.assert_close(model(**batch, subspaces=directions).logits, together)
    together[batch["attention_mask"].bool()].sum().backward()
    assert all(module.share.grad is not None for module in model.interventions.values())


def test_fields_that_a_kind_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"kind 'mixes_tokens' takes no rank, dropout: .* argum"):
        pyreft.get_reft_model(
            make_base("llama"), pyreft.ReftConfig(kind="mixes_tokens", rank=4, dropout=0.5)
        )


def test_what_a_kind_of_ones_own_cannot_do_is_said():
    class Own(pyreft.interventions.LowRankIntervention):
        edit_nothing = pyreft.interventions.base.UpstreamInterventionMixin.edit_nothing

    with pytest.raises(ValueError, match=r"Own does not say how .* define edit_nothing\(\)"):
        Own(embed_dim=WIDTH, low_rank_dimension=2).edit_nothing()
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(kind="mixes_tokens"))
    with pytest.raises(ValueError, match="what Mixing computes is not known"):
        model.add_weighted_adapter(["default"], [0.5], "half")


# ---- nothing is edited ---------------------------------------------------------------------------


def nowhere(tokens):
    return torch.zeros_like(tokens.prompt)


def make_vit():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    return ViTForImageClassification(ViTConfig(**sizes))


@pytest.mark.parametrize("case", ["no token", "no text"])
def test_a_call_that_edits_nothing_says_so(case, caplog):
    if case == "no token":
        base, inputs = make_base("llama"), {"input_ids": IDS}
        why = "no position of the adapter is among the tokens of input_ids"
    else:
        base, inputs = make_vit(), {"pixel_values": torch.randn(2, 3, 8, 8)}
        why = "no position of the adapter is among the tokens that pixel_values become"
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(positions=nowhere, rank=2)).eval()
    for _ in range(2):
        model(**inputs)
    assert caplog.text.count(f"Nothing is edited in this call: {why}.") == 1
    model.train()
    with pytest.raises(ValueError, match=f"{why}. So nothing would be learned"):
        model(**inputs)
    with torch.no_grad():
        model(**inputs)
    with model.disable_adapter():
        model(**inputs)


def test_where_nothing_is_meant_to_be_edited_nothing_is_said(caplog):
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(rank=2)).train()
    none = torch.full((2, 1, 1), -100)
    model(IDS, intervention_locations=none)
    model(IDS, adapter_names=["__base__"] * 2)
    cache = {cache_argument(model.model): DynamicCache(config=model.config)}
    model(IDS, use_cache=True, **cache)
    model(IDS[:, :1], attention_mask=torch.ones(2, 7), **cache)
    assert "Nothing is edited" not in caplog.text


# ---- what people see -----------------------------------------------------------------------------


def test_layers_that_are_alike_are_one_line():
    config = pyreft.ReftConfig(layers=[0, 2], positions="f2+l1", rank=2, tied=False)
    lines = repr(pyreft.get_reft_model(make_base("llama"), config)).splitlines()
    at = "LoreftIntervention(embed_dim=32, low_rank_dimension=2) at PositionSpec"
    assert lines[1:3] == [
        f"  layers 0, 2 block_output: {at}('f2')",
        f"  layers 0, 2 block_output: {at}('l1')",
    ]
    all_layers = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(rank=2))
    assert "  layers 0-2 block_output: " in repr(all_layers)


def test_a_config_shows_what_it_says_and_no_more():
    short = pyreft.ReftConfig(positions="l1", dropout=0.1)
    assert repr(short) == (
        "ReftConfig(layers='all', positions=PositionSpec('l1'), kind='loreft', rank=8, dropout=0.1)"
    )
    resolved = pyreft.get_reft_model(make_base("llama"), short).reft_config
    lines = repr(resolved).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("    layers 0-2: InterventionConfig(component='block_output', pos")


def test_layers_that_are_not_called_as_modules_are_refused():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 20}
    sizes["embedding_size"] = 16
    base = SqueezeBertForMaskedLM(SqueezeBertConfig(**sizes, num_attention_heads=2)).eval()
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(positions="f1", rank=2)).eval()
    with pytest.raises(ValueError, match=r"no module .* runs in it as a module: .*SqueezeBertModu"):
        model(input_ids=torch.tensor([[3, 4, 5]]))
