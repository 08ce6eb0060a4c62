"""Evaluation, callbacks, logs, hyperparameter search: what the Trainer offers, it offers here."""

import numpy as np
import optuna
import pytest
import torch
from datasets import Dataset
from runs import (
    COMPLETIONS,
    PROMPTS,
    assert_equal,
    logged,
    losses,
    make_examples,
    make_trainer,
    reft_model,
    weights,
)
from transformers import DataCollatorForSeq2Seq, EarlyStoppingCallback, TrainerCallback

import pyreft
from conftest import make_base


def test_evaluation_gives_a_loss_and_predictions(tokenizer, tmp_path):
    model = reft_model(dropout=0.5)
    trainer = make_trainer(model, tokenizer, tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    evaluated = trainer.evaluate()
    assert evaluated["eval_loss"] == trainer.evaluate()["eval_loss"]  # no dropout
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) >= 2
    predicted = trainer.predict(make_examples(tokenizer))
    assert predicted.predictions.shape[0] == len(PROMPTS)
    assert np.isfinite(predicted.metrics["test_loss"])


def accuracy(prediction):
    predictions, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    return {"accuracy": float((predictions == labels)[labels != -100].mean())}


def test_metrics_are_computed_from_what_is_kept_of_the_logits(tokenizer, tmp_path):
    trainer = make_trainer(
        reft_model(),
        tokenizer,
        tmp_path,
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        per_device_eval_batch_size=3,
    )
    right = []
    for row in make_examples(tokenizer):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        chosen = trainer.model(input_ids=ids, labels=labels).logits.argmax(-1)[0, :-1]
        right += (chosen == labels[0, 1:])[labels[0, 1:] != -100].tolist()
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(np.mean(right))


def test_several_evaluation_sets_have_metrics_of_their_own(tokenizer, tmp_path):
    rows = make_examples(tokenizer)
    sets = {"one": rows.select(range(3)), "two": rows.select(range(3, 8))}
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "best"}
    settings |= {"metric_for_best_model": "two_loss", "load_best_model_at_end": True}
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, eval_dataset=sets, **settings)
    trainer.train()
    assert len(logged(trainer, "eval_one_loss")) == len(logged(trainer, "eval_two_loss")) == 2
    assert trainer.evaluate()["eval_two_loss"] == pytest.approx(trainer.state.best_metric)
    assert trainer.evaluate(sets["one"])["eval_loss"] != trainer.state.best_metric


def test_a_run_stops_early(tokenizer, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best"}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "max_steps": 30}
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, callbacks=[stop], **settings)
    trainer.train()
    assert trainer.state.global_step == 3
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


class Recorder(TrainerCallback):
    """Stands for an integration: it gets what report_to sends."""

    def __init__(self):
        self.events, self.logs = [], []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append("log")
        self.logs.append(logs)

    def on_save(self, args, state, control, **kwargs):
        # What is announced is there.
        pyreft.ReftModel.from_pretrained(
            make_base("llama"), f"{args.output_dir}/checkpoint-{state.global_step}"
        )
        self.events.append("save")

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append("step")

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append("evaluate")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("end")


def test_callbacks_are_called_in_order_and_get_the_logs(tokenizer, tmp_path):
    recorder = Recorder()
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, callbacks=[recorder], **settings)
    trainer.train()
    step = ["step", "log", "log", "evaluate", "save"]
    assert recorder.events == [*step, *step, "log", "end"]
    first = recorder.logs[0]
    assert {"loss", "grad_norm", "intervention_norm", "orthonormality_error"} <= first.keys()
    norm = torch.stack([p.norm() for p in trainer.model.interventions.parameters()]).norm()
    assert logged(trainer, "intervention_norm")[-1] == pytest.approx(norm.item())
    assert 0 <= first["orthonormality_error"] <= 1e-6


def test_kinds_without_directions_have_no_orthonormality(tokenizer, tmp_path):
    trainer = make_trainer(reft_model(kind="nodireft"), tokenizer, tmp_path, max_steps=1)
    trainer.train()
    assert logged(trainer, "intervention_norm")
    assert not logged(trainer, "orthonormality_error")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("plain_collator", [False, True])
def test_columns_that_nobody_reads_change_nothing(streams, plain_collator, tokenizer, tmp_path):
    rows = make_examples(tokenizer)
    more = rows.add_column("text", PROMPTS).add_column("id", [f"row {i}" for i in range(8)])
    collator = DataCollatorForSeq2Seq(tokenizer)
    settings = {"data_collator": collator} if plain_collator else {}
    runs = []
    for data in (rows, more):
        data = data.to_iterable_dataset() if streams else data
        trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=data, **settings)
        trainer.train()
        runs.append(weights(trainer.model))
    assert_equal(*runs)


@pytest.mark.filterwarnings("ignore:.*experimental:optuna._experimental.ExperimentalWarning")
def test_a_search_trains_a_model_for_each_trial(tokenizer, tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    module = pyreft.make_last_position_supervised_data_module(tokenizer, None, PROMPTS, COMPLETIONS)

    def make_model():
        representation = {"layer": 1, "low_rank_dimension": 4}
        config = pyreft.ReftConfig(representations=representation)
        return pyreft.get_reft_model(make_base("llama"), config)

    module["eval_dataset"] = module["train_dataset"]
    trainer = make_trainer(
        None,
        tokenizer,
        tmp_path,
        model_init=make_model,
        save_strategy="steps",
        save_steps=4,
        eval_strategy="steps",
        eval_steps=4,
        **module,
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("rate", [0.0, 0.1])},
        backend="optuna",
        n_trials=2,
        sampler=optuna.samplers.GridSampler({"rate": [0.0, 0.1]}, seed=0),
    )
    assert best.hyperparameters == {"rate": 0.1}
    for number in range(2):
        loaded = pyreft.ReftModel.from_pretrained(
            make_base("llama"), tmp_path / f"run-{number}" / "checkpoint-4"
        )
        assert str(loaded.reft_config.representations[0].positions) == "l1"


def test_model_init_must_make_a_reft_model(tmp_path):
    with pytest.raises(TypeError, match="model_init must return a ReftModel"):
        pyreft.ReftTrainer(model_init=lambda: make_base("llama"))


def test_streams_are_trained_on(tokenizer, tmp_path):
    rows = Dataset.from_dict({"prompt": PROMPTS, "completion": COMPLETIONS})
    stream = pyreft.make_examples(rows.to_iterable_dataset(), tokenizer)
    trainer = make_trainer(reft_model(), tokenizer, tmp_path, train_dataset=stream, max_steps=5)
    trainer.train()
    assert len(losses(trainer)) == 5
