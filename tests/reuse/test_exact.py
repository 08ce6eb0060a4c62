"""With reuse and without, a run has the same losses and ends with the same parameters."""

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from reused import SIZES, Rows, losses, make_model, make_trainer, weights

import pyreft
from conftest import make_base

# PEFT asks an old name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

# Shuffled, in ragged batches, the last of an epoch smaller.
FIFTY = {
    "right": {"max_steps": 50},
    "left": {"max_steps": 50, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
}


def run(directory, model, **changes):
    trainer = make_trainer(model, directory, **changes)
    trainer.train()
    return trainer


def assert_same(one, other):
    torch.testing.assert_close(losses(one), losses(other), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights(one.model), weights(other.model), rtol=0, atol=1e-5)


def check(directory, architecture, config=None, model=make_model, **changes):
    """The run with reuse, which must have been one."""
    runs = [
        run(directory, model(architecture, **config or {}), reuse_frozen=reuse, **changes)
        for reuse in (False, True)
    ]
    assert_same(*runs)
    assert runs[1].reuse.reason is None
    assert runs[1].reuse.report.batches > 0
    return runs[1]


@pytest.mark.parametrize("side", FIFTY)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "qwen3"])
def test_fifty_steps_are_the_same(architecture, side, tmp_path):
    trainer = check(tmp_path, architecture, side=side, **FIFTY[side])
    assert trainer.reuse.report.misses == len(Rows())


CONFIGS = {
    "first and last tokens": {"positions": "f2+l2"},
    "every completion": {"positions": "completion"},
    "every token": {"positions": "all"},
    "two specs at two layers": {
        "representations": [
            {"layer": layer, "positions": spec, "low_rank_dimension": 2}
            for layer, spec in [(1, "l2"), (2, "f3")]
        ]
    },
    "the input of a layer": {"component": "block_input", "positions": "l1"},
    "attention's output": {"component": "attention_output", "positions": "l1"},
    "the output of the first layer": {"layers": [0], "positions": "l1"},
    "the output of the last layer": {"layers": [2], "positions": "l1"},
    "inside the first layer": {"layers": [0], "component": "mlp_input", "positions": "l1"},
    "the final norm": {"layers": "all", "component": "model.norm.output", "positions": "l1"},
    "an intervention with dropout": {"positions": "l2", "dropout": 0.3},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_runs_are_the_same_wherever_the_edits_are(case, tmp_path):
    check(tmp_path, "llama", CONFIGS[case])


def test_explicit_positions_of_a_batch_are_edited(tmp_path):
    rows = Rows(intervention_locations=torch.tensor([[-1, -100]]))
    config = {"representations": [{"layer": 1, "low_rank_dimension": 2}]}
    check(tmp_path, "llama", config, rows=rows)


def test_runs_are_the_same_in_bfloat16(tmp_path):
    """Up to its rounding."""
    runs = [
        run(tmp_path, make_model("llama"), reuse_frozen=reuse, bf16=True) for reuse in (False, True)
    ]
    torch.testing.assert_close(*map(losses, runs), rtol=0, atol=2e-2)
    assert runs[1].reuse.report.batches > 0


def test_runs_are_the_same_with_label_smoothing(tmp_path):
    check(tmp_path, "llama", label_smoothing_factor=0.1)


def test_runs_are_the_same_with_a_trained_head(tmp_path):
    check(tmp_path, "llama", {"modules_to_save": ["lm_head"]})


def test_labels_on_prompts_are_learned(tmp_path):
    class Told(Rows):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            prompt, completion = self.lengths[index]
            said = torch.arange(prompt + completion) >= prompt
            return {"input_ids": row["input_ids"], "labels": row["input_ids"], "told": said.long()}

    rows = Told([(9, 3)] * 4)
    told = make_trainer(make_model(), tmp_path, rows=rows)
    batch = told.data_collator([rows[i] for i in range(4)])
    batch["completion_mask"] = batch.pop("told")
    plain = make_trainer(make_model(), tmp_path, rows=rows, reuse_frozen=False)
    found, expected = (t.compute_loss(t.model, dict(batch)) for t in (told, plain))
    torch.testing.assert_close(found, expected)


def test_a_resumed_run_is_the_run_that_was_not_stopped_bit_for_bit(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    whole = run(tmp_path / "whole", make_model(), **saving)
    resumed = make_trainer(make_model(seed=7), tmp_path / "resumed", **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert resumed.reuse.report.batches > 0
    found, expected = weights(resumed.model), weights(whole.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_random_numbers_of_a_run_are_its_own(tmp_path):
    """Comparing the first batch with the plain model draws none."""
    runs = [
        run(tmp_path, make_model(dropout=0.5), reuse_frozen=reuse, max_steps=3)
        for reuse in (False, True)
    ]
    torch.testing.assert_close(*map(losses, runs), rtol=0, atol=1e-5)


def test_the_loss_of_an_evaluation_is_the_same(tmp_path):
    evaluations = []
    for reuse in (False, True):
        trainer = run(tmp_path, make_model(), reuse_frozen=reuse)
        evaluations.append(trainer.evaluate()["eval_loss"])
    assert abs(evaluations[0] - evaluations[1]) < 1e-5


class Labelled(Rows):
    """One class for each text, of which the model sees all but the padding."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        return {"input_ids": row["input_ids"], "labels": torch.tensor(index % 3)}


def make_classifier(**config):
    sizes = {**SIZES, "num_labels": 3}
    torch.manual_seed(0)
    base = hf.Qwen3ForSequenceClassification(hf.Qwen3Config(**sizes)).eval()
    return make_model(base=base, modules_to_save=["score"], **config)


@pytest.mark.parametrize("positions", ["l1", "f2+l2"])
def test_classifiers_train_the_same(positions, tmp_path):
    runs = []
    for reuse in (False, True):
        model = make_classifier(positions=positions)
        runs.append(run(tmp_path, model, rows=Labelled(), side="left", reuse_frozen=reuse))
    assert_same(*runs)
    computed = runs[1].reuse.report
    assert computed.windows < computed.without / 2


def test_predictions_are_logits_of_all_tokens(tmp_path):
    trainer = make_trainer(make_model(), tmp_path, rows=Rows([(9, 3)] * 4))
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (4, 12, 99)


class Rescale(hf.TrainerCallback):
    """Writes to a frozen weight in the middle of a run."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                model.model.model.layers[0].mlp.down_proj.weight.mul_(1.5)


def test_what_is_known_is_dropped_when_a_frozen_weight_changes(tmp_path):
    trainer = check(tmp_path, "llama", callbacks=[Rescale()], max_steps=8)
    assert trainer.reuse.report.misses > len(Rows())


def other_adapter(model):
    """It edits a layer below those of the first one."""
    torch.manual_seed(2)
    model.add_adapter("other", pyreft.ReftConfig(layers=[0, 2], positions="f2", rank=2))


def unfreeze(model):
    model.model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)


def hook(model):
    model.model.model.layers[0].register_forward_hook(lambda module, args, output: output * 1.1)


CHANGES = {
    "another adapter": lambda model: model.set_adapter("other"),
    "two adapters": lambda model: model.set_adapter(["default", "other"]),
    "a trained layer": unfreeze,
    "a hook": hook,
    "a LoRA that is off": lambda model: model.model.disable_adapter_layers(),
}


class Change(hf.TrainerCallback):
    def __init__(self, change):
        self.change = change

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            self.change(model)


@pytest.mark.parametrize("case", CHANGES)
def test_what_a_callback_changes_is_noticed_in_the_next_step(case, tmp_path):
    runs = []
    for reuse in (False, True):
        base = make_base("llama")
        if "LoRA" in case:
            lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
            torch.manual_seed(3)
            base = get_peft_model(base, lora)
        model = make_model(base=base)
        other_adapter(model)
        # The Trainer's optimizer has what is trainable when it is made.
        trained = [*model.adapters.parameters()]
        trained += [p for name, p in model.named_parameters() if "layers.0.mlp" in name]
        optimizers = torch.optim.SGD(trained, lr=0.1), None
        changes = {"callbacks": [Change(CHANGES[case])], "optimizers": optimizers}
        runs.append(run(tmp_path, model, reuse_frozen=reuse, **changes))
    assert_same(*runs)
    assert runs[1].reuse.report.batches > 0


def test_a_lora_that_was_turned_off_between_two_runs_is_noticed(tmp_path):
    runs = []
    for reuse in (False, True):
        torch.manual_seed(3)
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        model = make_model(base=get_peft_model(make_base("llama"), lora))
        run(tmp_path, model, reuse_frozen=reuse)
        model.model.disable_adapter_layers()
        runs.append(run(tmp_path, model, reuse_frozen=reuse))
    assert_same(*runs)
    assert runs[1].reuse.reason is None
