"""One test for each defect of upstream that this package promises not to have: crashes.

The number in a docstring is that of the defect.
"""

import datasets
import pytest
import torch
from one_edit import CLASSES, GREEDY, IDS, at, reload, wrap
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    TrainingArguments,
)

import pyreft
from conftest import WIDTH, make_base


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


def test_saving_over_an_adapter_replaces_it(trainer, tmp_path):
    """12. `save_model` into a directory that is not empty saved nothing."""
    trainer.save_model(str(tmp_path / "adapter"))
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = pyreft.ReftModel.load(tmp_path / "adapter", make_base("llama"))
    assert torch.equal(loaded(IDS).logits, trainer.model.eval()(IDS).logits)
    assert not torch.equal(loaded(IDS).logits, wrap()(IDS).logits)


@pytest.mark.parametrize("add_bias", [{}, {"add_bias": True}])
@pytest.mark.parametrize("kind", ["noreft", "nodireft"])
def test_free_projections_can_be_loaded(kind, add_bias, tmp_path):
    """13. NoReFT and NodiReFT could not be loaded, nor made without `add_bias`."""
    model = wrap(kind=kind, **add_bias)
    loaded = reload(model, tmp_path / "adapter")
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_interventions_as_they_come_fit_every_model(kind, dtype):
    """14. The default bfloat16 failed on every float32 model."""
    hidden = torch.randn(2, 3, WIDTH, dtype=dtype)
    edited = CLASSES[kind](embed_dim=WIDTH, low_rank_dimension=4)(hidden)
    assert edited.dtype == dtype
    assert not torch.equal(edited, hidden)


def test_a_representation_without_a_rank_can_be_loaded(tmp_path):
    """15. `load` needed a `low_rank_dimension` beside the intervention that has it."""
    place = {"layer": 1, "component": "block_output"}
    place["intervention"] = pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=4)
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(representations=place))
    _, outputs = reload(model, tmp_path / "adapter")({"input_ids": IDS}, unit_locations=at(5))
    _, expected = model.eval()({"input_ids": IDS}, unit_locations=at(5))
    assert torch.equal(outputs.logits, expected.logits)


def test_training_resumes_where_there_is_no_gpu(trainer, tmp_path, tokenizer):
    """16. Resuming asked for `cuda:0`."""
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
    """17. `load` knew a table of architectures."""
    base = make().eval()
    model = wrap(base)
    expected = model(IDS).logits
    loaded = reload(model, tmp_path / "adapter", model.unwrap())
    assert torch.equal(loaded(IDS).logits, expected)
    assert not torch.equal(loaded.unwrap()(IDS).logits, expected)


def test_a_sequence_classifier_trains_and_evaluates(tokenizer, tmp_path):
    """18. Sequence classification could neither train nor evaluate."""
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
    """19. `evaluate()` of a causal language model crashed."""
    batch = trainer.data_collator(list(trainer.eval_dataset))
    loss = trainer.model.eval()(**batch).loss
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_a_trainer_saves_without_being_told_where(trainer):
    """20. `trainer.save_model()` needed an argument."""
    trainer.save_model()
    loaded = pyreft.ReftModel.load(trainer.args.output_dir, make_base("llama"))
    assert torch.equal(loaded(IDS).logits, wrap()(IDS).logits)


def test_beams_of_a_batch_are_those_of_its_rows(causal):
    """21. Beams with a batch of two crashed."""
    model, beams = wrap(make_base(causal)), {"num_beams": 3, **GREEDY}
    where = {"intervene_on_prompt": True, **beams}
    _, batch = model.generate({"input_ids": IDS}, unit_locations=at([[[1], [4]]]), **where)
    for row, position in enumerate([1, 4]):
        prompt = {"input_ids": IDS[row : row + 1]}
        _, alone = model.generate(prompt, unit_locations=at([[[position]]]), **where)
        assert torch.equal(batch[row : row + 1], alone)


def test_hooks_of_the_user_survive():
    """22. Every forward removed all hooks on the model."""
    model, calls = wrap(), []
    layer = model.model.model.layers[1]
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    for _ in range(2):
        model({"input_ids": IDS}, unit_locations=at([[[1], [4]]]))
        model.generate(IDS, max_new_tokens=1)
    assert calls == ["before", "after"] * 4


def test_a_model_spread_over_devices_is_edited_where_its_parts_run(tmp_path):
    """23. A model spread over devices could not be wrapped; a disk is a device all have."""
    make_base("llama").save_pretrained(tmp_path / "base")
    names = ["embed_tokens", "layers.0", "layers.2", "norm", "rotary_emb"]
    where = {f"model.{name}": "cpu" for name in names} | {
        "lm_head": "cpu",
        "model.layers.1": "disk",
    }
    base = LlamaForCausalLM.from_pretrained(
        tmp_path / "base", device_map=where, offload_folder=str(tmp_path / "offload")
    )
    assert torch.equal(wrap(base)(IDS).logits, wrap()(IDS).logits)


def test_parameters_and_gradients_are_told_as_torch_tells_them():
    """24. `named_parameters` and `zero_grad` had signatures of their own."""
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
