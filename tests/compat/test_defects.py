"""One test for each defect of upstream that this package promises not to have: wrong or slow.

The number in a docstring is that of the defect; crashes are in the file beside this one.
"""

import copy
import os

import pytest
import torch
from one_edit import CLASSES, GREEDY, IDS, assert_close, at, only, reload, wrap
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DataCollatorForSeq2Seq

import pyreft
from conftest import CONSTANT, KINDS, ORTHONORMAL, WIDTH, make_base


def learn(model, steps):
    optimizer = torch.optim.Adam(model.interventions.parameters(), lr=1e-2)
    labels = IDS.clone()
    labels[:, :3] = -100
    for _ in range(steps):
        model(input_ids=IDS, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ORTHONORMAL)
def test_directions_stay_orthonormal_when_training_goes_on_after_loading(kind, tmp_path):
    """1. Training on after loading took R 0.35 away from orthonormal."""
    model = wrap(kind=kind)
    learn(model, 10)
    loaded = reload(model, tmp_path / "adapter")
    learn(loaded, 50)
    weight = only(loaded).rotate_layer.weight
    assert (weight - only(model).rotate_layer.weight).abs().max() > 1e-2
    assert_close(weight.T @ weight, torch.eye(4), 1e-6)


def test_a_scalar_location_does_not_outlive_its_call():
    """2. One call with a scalar location put every later batch at row 0's positions."""
    model, prompt = wrap(), {"input_ids": IDS}
    _, expected = model(prompt, unit_locations=at([[[1], [4]]]))
    _, scalar = model(prompt, unit_locations=at(1))
    model.generate(prompt, **GREEDY)
    _, again = model(prompt, unit_locations=at([[[1], [4]]]))
    assert torch.equal(again.logits, expected.logits)
    assert torch.equal(scalar.logits[0], expected.logits[0])
    assert not torch.equal(scalar.logits[1], expected.logits[1])


def test_train_and_eval_reach_the_interventions():
    """3. `train()` and `eval()` passed by the interventions, and `eval()` returned None."""
    model = wrap(dropout=0.5)
    assert model.train() is model
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    assert model.eval() is model
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_dropout_drops_entries_of_the_edit(kind):
    """4. Dropout zeroed the whole hidden state."""
    torch.manual_seed(0)
    intervention = CLASSES[kind](embed_dim=WIDTH, low_rank_dimension=4, dropout=0.5)
    hidden = torch.randn(50, WIDTH)
    edit = intervention.eval()(hidden) - hidden
    edited = intervention.train()(hidden)
    dropped = edited == hidden
    assert 0.4 < dropped.float().mean() < 0.6
    assert_close(edited, torch.where(dropped, hidden, hidden + 2 * edit))


def test_generation_without_a_cache_keeps_the_edit(causal):
    """5. Without a cache, generation lost the edit after its first step."""
    model = wrap(make_base(causal), positions="prompt")
    cached = model.generate(IDS, use_cache=True, **GREEDY)
    assert torch.equal(model.generate(IDS, use_cache=False, **GREEDY), cached)
    assert not torch.equal(model.unwrap().generate(IDS, **GREEDY), cached)


def test_positions_move_with_the_tokens_under_left_padding(tokenizer):
    """6. Left padding shifted tokens, but not positions."""
    model, losses = wrap(), {}
    for side in ("left", "right"):
        padding = copy.deepcopy(tokenizer)
        padding.padding_side = side
        data = pyreft.make_multiple_position_supervised_data_module(
            padding,
            model.model,
            ["Who are you?", "Why?"],
            [":-)", ":-("],
            "f1+l1",
            share_weights=True,
        )
        batch = data["data_collator"](list(data["train_dataset"]))
        losses[side] = model(**batch).loss
        assert bool((batch["attention_mask"][:, 0 if side == "left" else -1] == 0).any())
    assert_close(losses["left"], losses["right"])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_l1_is_the_last_prompt_token_wherever_it_is_said(tokenizer, length):
    """7. `l1` was the second-to-last prompt token, or on a prompt of one token none."""
    prompt = "What?"[:length]
    for make in (
        pyreft.make_last_position_supervised_data_module,
        pyreft.make_last_position_supervised_chat_data_module,
        lambda *args: pyreft.make_multiple_position_supervised_data_module(*args, "l1"),
    ):
        data = make(tokenizer, None, [prompt], ["answer"])
        assert data["train_dataset"][0]["intervention_locations"] == [[length - 1]]
    batch = data["data_collator"](list(data["train_dataset"]))
    by_location = wrap()(**batch).logits
    del batch["intervention_locations"]
    assert torch.equal(wrap()(**batch).logits, by_location)


@pytest.mark.parametrize("share_weights", [True, False])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_prompts_are_not_filled_up_with_tokens_of_the_answer(
    tokenizer, length, share_weights
):
    """8. Short prompts were filled up with the first token of the answer."""
    data = pyreft.make_multiple_position_supervised_data_module(
        tokenizer, None, ["What?"[:length]], ["answer"], "f7+l7", 2, share_weights=share_weights
    )
    rows = data["train_dataset"][0]["intervention_locations"]
    chosen = [[p for p in row if p != -100] for row in rows]
    expected = list(range(length))
    assert chosen == [expected] * 2 if share_weights else chosen[0] + chosen[1] == expected


def test_positions_are_neither_cut_nor_dropped(tokenizer):
    """9. Rows of more positions than tokens were cut, and an odd number of rows lost one."""
    example = {"input_ids": [3, 4, 5], "labels": [-100, -100, 5]}
    example["intervention_locations"] = [[0, -100, -100, -100, 1]]
    collator = pyreft.ReftDataCollator(data_collator=DataCollatorForSeq2Seq(tokenizer))
    batch = collator([example])
    assert batch["intervention_locations"].tolist() == [example["intervention_locations"]]
    whole = torch.tensor([[[0, 1]]])
    expected = wrap()(torch.tensor([example["input_ids"]]), intervention_locations=whole)
    assert torch.equal(wrap()(**batch).logits, expected.logits)
    with pytest.raises(ValueError, match="num_interventions is 3"):
        pyreft.get_intervention_locations(last_position=9, positions="f1+l1", num_interventions=3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_an_intervention_is_saved(kind, tmp_path):
    """11. `act_fn`, `dropout`, `dtype` and `add_bias` were not saved."""
    arguments = {"dropout": 0.25, "dtype": torch.bfloat16, "add_bias": True}
    if kind not in CONSTANT:
        arguments["act_fn"] = "gelu"
    model = wrap(kind=kind, **arguments)
    loaded = reload(model, tmp_path / "adapter")
    assert only(loaded).dropout.p == 0.25
    assert {name: p.dtype for name, p in only(loaded).named_parameters()} == {
        name: p.dtype for name, p in only(model).named_parameters()
    }
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


# ---- cost -------------------------------------------------------------------------------


class Counted(TorchDispatchMode):
    """Counts operations by name, those on a given number of entries apart."""

    def __init__(self, entries=None):
        super().__init__()
        self.names, self.entries = [], entries

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.entries is None or getattr(result, "numel", int)() == self.entries:
            self.names.append(function.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("kind", ORTHONORMAL)
def test_directions_are_made_orthonormal_once_a_forward(kind):
    """25. The orthonormal factor was computed three times a forward."""
    intervention = CLASSES[kind](embed_dim=WIDTH, low_rank_dimension=4)
    with Counted() as counted:
        intervention(torch.randn(2, 3, WIDTH))
    for operation in ("geqrf", "linalg_householder_product", "ormqr"):
        assert counted.names.count(operation) == 1
    assert "linalg_qr" not in counted.names


@pytest.mark.parametrize("kind", ORTHONORMAL)
def test_nothing_as_large_as_width_squared_is_held_or_saved(kind, tmp_path):
    """26. Each intervention held a matrix of width x width, and some saved it."""
    model = wrap(make_base("llama", hidden_size=128), kind=kind)
    held = [*only(model).parameters(), *only(model).buffers()]
    assert max(tensor.numel() for tensor in held) == 128 * 4
    model.save(tmp_path / "adapter")
    saved = sum(os.path.getsize(file) for file in (tmp_path / "adapter").iterdir())
    assert saved < 128 * 128 * 4


@pytest.mark.parametrize("training", [True, False])
def test_an_edit_neither_copies_the_hidden_state_nor_lists_positions(training, monkeypatch):
    """27. Every step made lists of positions, every hook a copy of the hidden state."""
    model = wrap().train(training)
    locations = torch.tensor([[[1, 2]], [[0, 4]]])
    with Counted(entries=IDS.numel() * WIDTH) as bare, model.disable_adapter():
        model(IDS)
    monkeypatch.setattr(torch.Tensor, "tolist", pytest.fail, raising=False)
    with Counted(entries=IDS.numel() * WIDTH) as edited:
        model(IDS, intervention_locations=locations)
    assert edited.names.count("clone") == bare.names.count("clone")
    assert edited.names.count("copy_") == bare.names.count("copy_")
