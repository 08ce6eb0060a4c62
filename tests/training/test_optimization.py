"""What a step is made of: the loss, its scale, the gradient, the optimiser."""

import dataclasses

import pytest
import torch
from runs import (
    assert_close,
    assert_equal,
    logged,
    losses,
    make_examples,
    make_trainer,
    reft_model,
    weights,
)
from transformers import TrainingArguments

import pyreft
from conftest import make_base

FIELDS = {field.name for field in dataclasses.fields(TrainingArguments)}


def trained(tokenizer, directory, model=None, **changes):
    trainer = make_trainer(model or reft_model(), tokenizer, directory, **changes)
    trainer.train()
    return trainer


def test_gradient_accumulation_equals_the_large_batch(tokenizer, tmp_path):
    """Also where rows have different numbers of labels."""
    runs = [
        trained(tokenizer, tmp_path, per_device_train_batch_size=size, **steps)
        for size, steps in ((8, {}), (2, {"gradient_accumulation_steps": 4}))
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
    assert_close(*(weights(run.model) for run in runs))


def loss_by_hand(model, rows, smoothing):
    """The mean over all labels of the batch, in float64."""
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        logits = model(input_ids=ids, labels=labels).logits[0, :-1].double()
        log_p, targets = logits.log_softmax(-1), labels[0, 1:]
        kept = targets != -100
        own = -log_p[kept].gather(1, targets[kept, None])[:, 0]
        uniform = -log_p[kept].mean(-1)
        total += ((1 - smoothing) * own + smoothing * uniform).sum().item()
        count += int(kept.sum())
    return total / count


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_mean_over_the_labels(smoothing, tokenizer, tmp_path):
    rows = make_examples(tokenizer).to_list()
    expected = loss_by_hand(reft_model(), rows, smoothing)
    settings = {"label_smoothing_factor": smoothing, "per_device_train_batch_size": 8}
    trainer = trained(tokenizer, tmp_path, max_steps=1, **settings)
    assert losses(trainer) == pytest.approx([expected], rel=1e-5)
    evaluated = make_trainer(
        reft_model(), tokenizer, tmp_path, per_device_eval_batch_size=8, **settings
    ).evaluate()
    assert evaluated["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_clipped(tokenizer, tmp_path):
    settings = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "warmup_steps": 0}
    before = weights(reft_model())
    trainer = trained(tokenizer, tmp_path, max_grad_norm=0.01, **settings)
    after = weights(trainer.model)
    moved = torch.stack([(after[name] - before[name]).norm() for name in before]).norm()
    assert moved.item() == pytest.approx(0.01, rel=1e-3)
    assert logged(trainer, "grad_norm")[0] > 0.01  # as it was before


@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd", "adafactor", "rmsprop"])
def test_optimizers_lower_the_loss_and_keep_r_orthonormal(optimizer, tokenizer, tmp_path):
    rate = {"sgd": 1.0}.get(optimizer, 0.05)
    settings = {"optim": optimizer, "learning_rate": rate, "max_steps": 8}
    model = reft_model(layers="all", positions="all")
    trainer = trained(tokenizer, tmp_path, model, per_device_train_batch_size=8, **settings)
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.2
    assert max(logged(trainer, "orthonormality_error")) <= 1e-6


# bitsandbytes says that a CPU is slow, and torchao what it deprecates.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("package", "optimizer"), [("bitsandbytes", "adamw_bnb_8bit"), ("torchao", "adamw_torch_8bit")]
)
def test_optimizers_of_8_bits_follow_that_of_32(package, optimizer, tokenizer, tmp_path):
    pytest.importorskip(package, reason=f"{package} is not installed")
    # Smaller parameters have a state of 32 bits.
    width, rank = 1024, 4
    runs = []
    for name in ("adamw_torch", optimizer):
        torch.manual_seed(1)
        base = make_base("llama", hidden_size=width)
        config = pyreft.ReftConfig(layers=[1], positions="all", rank=rank)
        model = pyreft.get_reft_model(base, config)
        settings = {"optim": name, "learning_rate": 0.01, "max_steps": 8}
        runs.append(trained(tokenizer, tmp_path, model, **settings))
    states = runs[1].optimizer.state.values()
    assert any(t.element_size() == 1 for state in states for t in _parts(state))
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=0.02)
    assert max(logged(runs[1], "orthonormality_error")) <= 1e-6


def _parts(state):
    """The tensors of an optimizer's state; torchao has several in one."""
    for value in state.values():
        if hasattr(value, "codes"):
            yield value.codes
        elif isinstance(value, torch.Tensor):
            yield value


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0.01, 0.0075, 0.005, 0.0025]),
        ("constant", [0.01] * 4),
        ("cosine", [0.01, 0.0085355, 0.005, 0.0014645]),
    ],
)
def test_schedules_set_the_learning_rate(schedule, rates, tokenizer, tmp_path):
    trainer = trained(tokenizer, tmp_path, lr_scheduler_type=schedule)
    assert logged(trainer, "learning_rate") == pytest.approx(rates, rel=1e-4)


@pytest.mark.parametrize("kind", ["loreft", "direft", "nodireft"])
def test_weight_decay_spares_biases(kind, tokenizer, tmp_path):
    trainer = make_trainer(reft_model(kind=kind), tokenizer, tmp_path, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay.keys() == weights(trainer.model).keys()
    assert {name for name, value in decay.items() if value == 0} == {
        name for name in decay if name.endswith("bias")
    }
    assert 0.1 in decay.values()


def test_weight_decay_leaves_r_orthonormal(tokenizer, tmp_path):
    """Upstream's R is zero after the first step of it."""
    trainer = trained(tokenizer, tmp_path, weight_decay=0.1)
    assert max(logged(trainer, "orthonormality_error")) <= 1e-6


# The first name is the only one of older versions, and warns in newer ones.
@pytest.mark.parametrize(
    "name", sorted({"gradient_checkpointing", "activation_checkpointing"} & FIELDS)
)
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing.*deprecated:FutureWarning")
def test_gradient_checkpointing_trains_the_same(name, tokenizer, tmp_path):
    plain = trained(tokenizer, tmp_path, reuse_frozen=False)
    settings = {"reuse_frozen": False, name: True, f"{name}_kwargs": {"use_reentrant": False}}
    checkpointed = trained(tokenizer, tmp_path, **settings)
    assert_equal(weights(plain.model), weights(checkpointed.model))


@pytest.mark.filterwarnings("ignore")  # the compiler warns of this and that
def test_compiled_models_have_equal_losses(tokenizer, tmp_path):
    """Rows of one length, so that one graph does."""
    rows = [row for row in make_examples(tokenizer).to_list() if len(row["input_ids"]) > 14][:4]
    settings = {"max_steps": 2, "train_dataset": rows, "eval_dataset": rows}
    runs = []
    for compiler in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        base = make_base("llama", num_hidden_layers=1)
        torch.manual_seed(1)
        model = pyreft.get_reft_model(base, pyreft.ReftConfig(layers=[0], positions="l1", rank=4))
        runs.append(trained(tokenizer, tmp_path, model, **settings, **compiler))
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)
    assert_close(*(weights(run.model) for run in runs))


def test_autocast_leaves_the_interventions_in_float32(tokenizer, tmp_path):
    plain, cast = trained(tokenizer, tmp_path), trained(tokenizer, tmp_path, bf16=True)
    assert losses(cast) == pytest.approx(losses(plain), rel=0.02)
    assert losses(cast) != losses(plain)
    assert {tensor.dtype for tensor in weights(cast.model).values()} == {torch.float32}


def test_neftune_trains_and_takes_its_noise_off(tokenizer, tmp_path):
    plain = trained(tokenizer, tmp_path)
    noisy = trained(tokenizer, tmp_path, neftune_noise_alpha=5.0)
    assert losses(noisy) != losses(plain)
    assert not noisy.model.model.get_input_embeddings()._forward_hooks


def test_batches_of_like_lengths_have_less_padding(tokenizer, tmp_path):
    rows = [{"input_ids": [5] * n, "labels": [-100] + [6] * (n - 1)} for n in [2, 9] * 16]
    tokens = {}
    grouped = {"train_sampling_strategy": "group_by_length"}
    if grouped.keys() - FIELDS:  # the name of older versions
        grouped = {"group_by_length": True}
    for strategy, changes in {"random": {}, "group_by_length": grouped}.items():
        settings = {"train_dataset": rows, **changes}
        settings |= {"include_num_input_tokens_seen": "all", "max_steps": 16}
        settings["per_device_train_batch_size"] = 2  # 16 steps see every row
        tokens[strategy] = trained(tokenizer, tmp_path, **settings).state.num_input_tokens_seen
    assert tokens["group_by_length"] < tokens["random"]


@pytest.mark.filterwarnings("ignore:To copy construct")  # transformers 5.0
def test_tokens_that_were_seen_are_counted(tokenizer, tmp_path):
    trainer = trained(tokenizer, tmp_path, include_num_input_tokens_seen="non_padding", max_steps=2)
    lengths = [len(row["input_ids"]) for row in make_examples(tokenizer)]
    assert trainer.state.num_input_tokens_seen == sum(lengths)
