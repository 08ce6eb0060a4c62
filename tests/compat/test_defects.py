"""One test for each defect of upstream that this package promises not to have.

The number in a docstring is that of the list in docs/migration.md.
"""

import copy
import os

import datasets
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BloomConfig, BloomForCausalLM, OPTConfig, OPTForCausalLM, TrainingArguments

import pyreft
from conftest import KINDS, WIDTH, make_base

IDS = torch.arange(3, 15).view(2, 6)
GREEDY = {"max_new_tokens": 5, "do_sample": False}
CLASSES = {kind: getattr(pyreft, f"{kind.capitalize()}Intervention") for kind in KINDS}
ORTHONORMAL = ["loreft", "direft", "consreft", "lobireft"]


def wrap(base=None, kind="loreft", positions="l1", **arguments):
    """A tiny model with one intervention, of the same weights at each call."""
    base = base or make_base("llama")
    torch.manual_seed(1)
    config = pyreft.ReftConfig(kind=kind, layers=[1], positions=positions, rank=4, **arguments)
    return pyreft.get_reft_model(base, config).eval()


def only(model):
    (intervention,) = model.interventions.values()
    return intervention


def learn(model, steps):
    optimizer = torch.optim.Adam(model.interventions.parameters(), lr=1e-2)
    labels = IDS.clone()
    labels[:, :3] = -100
    for _ in range(steps):
        model(input_ids=IDS, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def at(positions):
    return {"sources->base": (None, positions)}


def reload(model, folder, base=None):
    model.save(folder)
    return pyreft.ReftModel.load(folder, base or make_base("llama"))


def assert_close(one, other, tolerance=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.fixture
def trainer(tokenizer, tmp_path):
    """A trainer of two examples."""
    model = wrap()
    data = pyreft.make_last_position_supervised_data_module(
        tokenizer, model, ["Who are you?", "Why?"], [":-)", ":-("]
    )
    data["eval_dataset"] = data["train_dataset"]
    return make_trainer(model, tmp_path, tokenizer=tokenizer, **data)


def make_trainer(model, folder, epochs=2, **arguments):
    args = TrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=epochs,
        learning_rate=1e-2,
        save_strategy="epoch",
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    return pyreft.ReftTrainerForCausalLM(model=model, args=args, **arguments)


# ---- silent wrong results ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ORTHONORMAL)
def test_directions_stay_orthonormal_when_training_goes_on_after_loading(kind, tmp_path):
    """1."""
    model = wrap(kind=kind)
    learn(model, 10)
    loaded = reload(model, tmp_path / "adapter")
    learn(loaded, 50)
    weight = only(loaded).rotate_layer.weight
    assert (weight - only(model).rotate_layer.weight).abs().max() > 1e-2
    assert_close(weight.T @ weight, torch.eye(4), 1e-6)


def test_a_scalar_location_does_not_outlive_its_call():
    """2."""
    model, prompt = wrap(), {"input_ids": IDS}
    _, expected = model(prompt, unit_locations=at([[[1], [4]]]))
    _, scalar = model(prompt, unit_locations=at(1))
    model.generate(prompt, **GREEDY)
    _, again = model(prompt, unit_locations=at([[[1], [4]]]))
    assert torch.equal(again.logits, expected.logits)
    assert torch.equal(scalar.logits[0], expected.logits[0])
    assert not torch.equal(scalar.logits[1], expected.logits[1])


def test_train_and_eval_reach_the_interventions():
    """3."""
    model = wrap(dropout=0.5)
    assert model.train() is model
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    assert model.eval() is model
    assert torch.equal(model(IDS).logits, model(IDS).logits)


def test_dropout_drops_entries_of_the_edit(kind):
    """4."""
    torch.manual_seed(0)
    intervention = CLASSES[kind](embed_dim=WIDTH, low_rank_dimension=4, dropout=0.5)
    hidden = torch.randn(50, WIDTH)
    edit = intervention.eval()(hidden) - hidden
    edited = intervention.train()(hidden)
    dropped = edited == hidden
    assert 0.4 < dropped.float().mean() < 0.6
    assert_close(edited, torch.where(dropped, hidden, hidden + 2 * edit))


def test_generation_without_a_cache_keeps_the_edit(causal):
    """5."""
    model = wrap(make_base(causal))
    cached = model.generate(IDS, use_cache=True, **GREEDY)
    assert torch.equal(model.generate(IDS, use_cache=False, **GREEDY), cached)
    assert not torch.equal(model.unwrap().generate(IDS, **GREEDY), cached)


def test_positions_move_with_the_tokens_under_left_padding(tokenizer):
    """6."""
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
    """7."""
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
    """8."""
    data = pyreft.make_multiple_position_supervised_data_module(
        tokenizer, None, ["What?"[:length]], ["answer"], "f7+l7", 2, share_weights=share_weights
    )
    rows = data["train_dataset"][0]["intervention_locations"]
    chosen = [[p for p in row if p != -100] for row in rows]
    expected = list(range(length))
    assert chosen == [expected] * 2 if share_weights else sum(chosen, []) == expected


def test_positions_that_do_not_fit_are_errors():
    """9."""
    model = wrap()
    with pytest.raises(ValueError, match="position 6 .* outside the prompt"):
        model(IDS, intervention_locations=torch.tensor([[[5, 6]], [[5, 6]]]))
    with pytest.raises(ValueError, match="num_interventions is 3"):
        pyreft.get_intervention_locations(last_position=9, positions="f1+l1", num_interventions=3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_of_an_intervention_is_saved(kind, tmp_path):
    """11."""
    arguments = {"dropout": 0.25, "dtype": torch.bfloat16, "add_bias": True}
    if kind not in ("consreft", "lobireft"):
        arguments["act_fn"] = "gelu"
    model = wrap(kind=kind, **arguments)
    loaded = reload(model, tmp_path / "adapter")
    assert only(loaded).dropout.p == 0.25
    assert {name: p.dtype for name, p in only(loaded).named_parameters()} == {
        name: p.dtype for name, p in only(model).named_parameters()
    }
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_saving_over_an_adapter_replaces_it(trainer, tmp_path):
    """12."""
    trainer.save_model(str(tmp_path / "adapter"))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = pyreft.ReftModel.load(tmp_path / "adapter", make_base("llama"))
    assert torch.equal(loaded(IDS).logits, trainer.model.eval()(IDS).logits)
    assert not torch.equal(loaded(IDS).logits, wrap()(IDS).logits)


# ---- crashes ----------------------------------------------------------------------------


@pytest.mark.parametrize("add_bias", [{}, {"add_bias": True}])
@pytest.mark.parametrize("kind", ["noreft", "nodireft"])
def test_free_projections_can_be_loaded(kind, add_bias, tmp_path):
    """13."""
    model = wrap(kind=kind, **add_bias)
    loaded = reload(model, tmp_path / "adapter")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_interventions_as_they_come_fit_every_model(kind, dtype):
    """14."""
    hidden = torch.randn(2, 3, WIDTH, dtype=dtype)
    edited = CLASSES[kind](embed_dim=WIDTH, low_rank_dimension=4)(hidden)
    assert edited.dtype == dtype
    assert not torch.equal(edited, hidden)


def test_a_representation_without_a_rank_can_be_loaded(tmp_path):
    """15."""
    place = {"layer": 1, "component": "block_output"}
    place["intervention"] = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=4)
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(representations=place))
    _, outputs = reload(model, tmp_path / "adapter")({"input_ids": IDS}, unit_locations=at(5))
    _, expected = model.eval()({"input_ids": IDS}, unit_locations=at(5))
    assert torch.equal(outputs.logits, expected.logits)


def test_training_resumes_where_there_is_no_gpu(trainer, tmp_path, tokenizer):
    """16."""
    trainer.train()
    data = {"train_dataset": trainer.train_dataset, "data_collator": trainer.data_collator}
    resumed = make_trainer(wrap(), tmp_path, epochs=4, tokenizer=tokenizer, **data)
    resumed.train(resume_from_checkpoint=True)
    assert (trainer.state.global_step, resumed.state.global_step) == (2, 4)


def make_opt():
    sizes = {"hidden_size": WIDTH, "ffn_dim": 48, "num_hidden_layers": 2, "vocab_size": 99}
    sizes |= {"num_attention_heads": 4, "word_embed_proj_dim": WIDTH}
    return OPTForCausalLM(OPTConfig(**sizes, max_position_embeddings=64))


def make_bloom():
    return BloomForCausalLM(BloomConfig(vocab_size=99, hidden_size=WIDTH, n_layer=2, n_head=4))


@pytest.mark.parametrize("make", [make_opt, make_bloom, lambda: make_base("bert")])
def test_an_architecture_that_upstream_does_not_list_can_be_loaded(make, tmp_path):
    """17."""
    base = make().eval()
    model = wrap(base)
    expected = model(IDS).logits
    loaded = reload(model, tmp_path / "adapter", model.unwrap())
    assert torch.equal(loaded(IDS).logits, expected)
    assert not torch.equal(loaded.unwrap()(IDS).logits, expected)


def test_a_sequence_classifier_trains_and_evaluates(tokenizer, tmp_path):
    """18."""
    rows = [{"input_ids": IDS[0].tolist(), "labels": 2}, {"input_ids": [4, 5], "labels": 0}]
    data = datasets.Dataset.from_list(rows)
    model = wrap(make_base("bert"), positions="f1")
    trainer = make_trainer(
        model, tmp_path, epochs=10, tokenizer=tokenizer, train_dataset=data, eval_dataset=data
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_a_causal_language_model_is_evaluated(trainer):
    """19."""
    batch = trainer.data_collator(list(trainer.eval_dataset))
    loss = trainer.model.eval()(**batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss), abs=1e-5)


def test_a_trainer_saves_without_being_told_where(trainer):
    """20."""
    trainer.save_model()
    loaded = pyreft.ReftModel.load(trainer.args.output_dir, make_base("llama"))
    assert torch.equal(loaded(IDS).logits, wrap()(IDS).logits)


def test_beams_of_a_batch_are_those_of_its_rows(causal):
    """21."""
    model, beams = wrap(make_base(causal)), {"num_beams": 3, **GREEDY}
    where = {"intervene_on_prompt": True, **beams}
    _, batch = model.generate({"input_ids": IDS}, unit_locations=at([[[1], [4]]]), **where)
    for row, position in enumerate([1, 4]):
        prompt = {"input_ids": IDS[row : row + 1]}
        _, alone = model.generate(prompt, unit_locations=at([[[position]]]), **where)
        assert torch.equal(batch[row : row + 1], alone)


def test_hooks_of_the_user_survive():
    """22."""
    model, calls = wrap(), []
    layer = model.model.model.layers[1]
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    for _ in range(2):
        model({"input_ids": IDS}, unit_locations=at([[[1], [4]]]))
        model.generate(IDS, max_new_tokens=1)
    assert calls == ["before", "after"] * 4


def test_parameters_and_gradients_are_told_as_torch_tells_them():
    """24."""
    model = wrap()
    model.enable_model_gradients()
    as_torch = dict(nn.Module.named_parameters(model))
    assert dict(model.named_parameters(prefix="", recurse=True, remove_duplicate=True)) == as_torch
    assert not list(model.named_parameters(recurse=False))
    assert set(map(id, model.model.parameters())) < set(map(id, as_torch.values()))
    model(input_ids=IDS, labels=IDS.index_fill(1, torch.arange(3), -100)).loss.backward()
    model.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in as_torch.values() if p.grad is not None)
    model.zero_grad()
    assert all(p.grad is None for p in as_torch.values())


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
    """25."""
    intervention = CLASSES[kind](embed_dim=WIDTH, low_rank_dimension=4)
    with Counted() as counted:
        intervention(torch.randn(2, 3, WIDTH))
    decompositions = [name for name in counted.names if "qr" in name or "householder" in name]
    assert len(decompositions) == 1


def test_nothing_as_large_as_width_squared_is_held_or_saved(kind, tmp_path):
    """26."""
    model = wrap(make_base("llama", hidden_size=128), kind=kind)
    assert all(tensor.numel() <= 128 * 4 for tensor in only(model).state_dict().values())
    model.save(tmp_path / "adapter")
    saved = sum(os.path.getsize(file) for file in (tmp_path / "adapter").iterdir())
    assert saved < 128 * 128 * 4


@pytest.mark.parametrize("training", [True, False])
def test_an_edit_neither_copies_the_hidden_state_nor_lists_positions(training, monkeypatch):
    """27."""
    model = wrap().train(training)
    locations = torch.tensor([[[1, 2]], [[0, 4]]])
    with Counted(entries=IDS.numel() * WIDTH) as bare, model.disable_adapter():
        model(IDS)
    monkeypatch.delattr(torch.Tensor, "tolist")
    with Counted(entries=IDS.numel() * WIDTH) as edited:
        model(IDS, intervention_locations=locations)
    assert edited.names.count("clone") == bare.names.count("clone")
    assert edited.names.count("copy_") == bare.names.count("copy_")
