"""Whole runs of train.py, sweep.py and experiments.py on tiny models."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loreft_runs import arguments, data, models  # noqa: F401  # fixtures
from transformers import EvalPrediction

import metrics
import train
from arguments import Arguments
from conftest import make_base
from evaluation import Evaluation, read_lines
from run_folder import run_folder, run_name
from tasks import TASKS
from test_docs import bytes_tokenizer

pytestmark = [
    # PEFT uses an old name of transformers.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # transformers 5.0 on checkpoints that were written within the same second.
    pytest.mark.filterwarnings("ignore:mtime may not be reliable:UserWarning"),
]


def folder_of(arguments):
    return Path(arguments.output_dir) / run_name(arguments)


@pytest.mark.parametrize(
    "method", ["LoreftIntervention", "nodireft", "lora", "dora", "ia3", "full", "zero_shot"]
)
def test_every_method_trains_and_is_evaluated_the_same_way(method, arguments):
    arguments = replace(arguments, intervention_type=method)
    found = train.run(arguments)
    assert (found["n_params"] == 0) == (method == "zero_shot")
    assert found["eval/even"]["rows"] == 6
    rows = json.loads((folder_of(arguments) / "even_test_outputs.json").read_text())
    assert [row["answer"] for row in rows] == ["true", "false"] * 3
    assert found["eval/even"]["right"] == sum(row["right"] for row in rows)
    assert found["eval/even"]["unextracted"] == sum(row["generation"] is None for row in rows)
    if method != "zero_shot":
        assert found["steps"] == 3
        history = json.loads((folder_of(arguments) / "training.json").read_text())
        seconds = [entry["seconds"] for entry in history if "loss" in entry]
        assert seconds == sorted(seconds)
        assert math.isfinite(found["loss"])


def test_interventions_beside_lora_are_both_trained(arguments):
    alone = train.run(replace(arguments, intervention_type="lora"))["n_params"]
    reft = train.run(arguments)["n_params"]
    assert train.run(replace(arguments, use_lora=True))["n_params"] == alone + reft
    only = replace(arguments, use_lora=True, disable_reft=True)
    assert train.run(only)["n_params"] == alone


def test_numbers_and_instructions_are_evaluated_in_their_own_ways(arguments, monkeypatch):
    monkeypatch.setitem(TASKS["math"].greedy, "max_new_tokens", 8)
    monkeypatch.setitem(TASKS["ultrafeedback"].greedy, "max_length", 200)
    sums = {"task": "math", "train_dataset": "sums", "eval_dataset": "sums"}
    found = train.run(replace(arguments, **sums, max_steps=1))
    assert found["eval/sums"]["right"] is not None
    chats = {"task": "ultrafeedback", "train_dataset": None, "eval_dataset": None}
    chat = replace(arguments, **chats, max_steps=1)
    assert train.run(chat)["eval/alpaca_eval"]["score"] is None
    rows = json.loads((folder_of(chat) / "alpaca_eval_test_outputs.json").read_text())
    assert [set(row) for row in rows] == [{"instruction", "output", "generator", "dataset"}] * 3


def test_a_run_that_is_done_is_not_run_again(arguments, monkeypatch):
    found = train.run(arguments)
    monkeypatch.setattr(train, "generated", None)
    assert train.run(arguments) == found


def test_a_run_goes_on_where_it_was_interrupted(arguments, monkeypatch):
    whole = train.run(replace(arguments, output_dir=arguments.output_dir + "_whole"))
    generate, calls = Evaluation._generate, []

    def interrupted(self, model, rows, number):
        calls.append(number)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, model, rows, number)

    monkeypatch.setattr(Evaluation, "_generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.run(arguments)
    file = folder_of(arguments) / "even_test_outputs.jsonl"
    assert len(read_lines(file)) == 4
    # As a process leaves it that dies while it writes.
    with open(file, "a") as opened:
        opened.write('{"row": 1, "gener')
    again = train.run(arguments)
    # Four rows were done: the other two are one batch, and no step of training was repeated.
    assert len(calls) == 3
    assert len(read_lines(file)) == 6
    for name in ("right", "rows", "unextracted"):
        assert again["eval/even"][name] == whole["eval/even"][name]
    assert again["loss"] == whole["loss"]


def test_training_goes_on_from_its_checkpoint_with_the_same_losses(arguments, monkeypatch):
    arguments = replace(arguments, epochs=2)
    other = replace(arguments, output_dir=arguments.output_dir + "_whole")
    train.run(other)
    on_step_end = train.generated.training.ClockCallback.on_step_end

    def dies(self, args, state, control, **kwargs):
        on_step_end(self)
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train.generated.training.ClockCallback, "on_step_end", dies)
        with pytest.raises(KeyboardInterrupt):
            train.run(arguments)
    train.run(arguments)
    losses = [
        [e["loss"] for e in json.loads((folder_of(a) / "training.json").read_text()) if "loss" in e]
        for a in (other, arguments)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_a_score_on_held_out_rows_is_kept_with_its_time(arguments):
    found = train.run(replace(arguments, dev_steps=1, max_n_dev_example=3))
    # 12 rows less 4 that are held out, in batches of 4.
    assert [entry["step"] for entry in found["development"]] == [1, 2]
    assert all(0 <= entry["dev_score"] <= 1 for entry in found["development"])
    seconds = [entry["seconds"] for entry in found["development"]]
    assert 0 < seconds[0] < seconds[1] <= found["seconds"]


def test_rows_generate_the_same_together_and_alone(models):
    tokenizer = bytes_tokenizer()
    model = make_base("llama", vocab_size=300)
    rows = [
        {"instruction": "x" * n, "input": "", "output": "", "answer": "true"} for n in (3, 9, 5)
    ]
    texts = []
    for size in (1, 3):
        arguments = Arguments(greedy_decoding=True, eval_batch_size=size)
        one = Evaluation(TASKS["commonsense"], tokenizer, arguments)
        report, lines = one.run(model, rows, None, "rows")
        assert report.rows == 3
        texts.append([line["raw_generation"] for line in lines])
    assert texts[0] == texts[1]


def test_texts_without_an_answer_are_counted_and_said(capsys):
    model = make_base("llama", vocab_size=300)
    rows = [{"instruction": "x", "input": "", "output": "", "answer": "answer1"}] * 2
    one = Evaluation(TASKS["commonsense"], bytes_tokenizer(), Arguments(greedy_decoding=True))
    report, _ = one.run(model, rows, None, "mine")
    assert (report.right, report.unextracted) == (0, 2)
    assert "mine: no answer could be found in 2 of 2 texts." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "method", "architecture"),
    [
        ("rte", "LoreftIntervention", "bert"),
        ("rte", "head", "bert"),
        ("stsb", "lora", "bert"),
        ("rte", "LoreftIntervention", "llama"),
    ],
)
def test_glue_picks_an_epoch_on_one_half_and_scores_the_other(
    task, method, architecture, arguments, models
):
    arguments = replace(
        arguments,
        task="glue",
        train_dataset=task,
        eval_dataset=None,
        test_split="validation",
        intervention_type=method,
        model=models[architecture],
        position="f2",
        batch_size=8,
        epochs=2,
        allow_cls_grad=True,
        lora_modules="query;value",
    )
    found = train.run(arguments)
    assert found["head"] > 0
    assert (found["n_params"] > 0) == (method != "head")
    assert found[f"eval/{task}"]["rows"] == 12
    assert len(found[f"eval/{task}"]) == (3 if task == "stsb" else 2)
    held_out = train.run(replace(arguments, test_split="held_out"))
    # 8 of 24 training rows are held out: 4 pick the epoch and 4 are scored.
    assert held_out[f"eval/{task}"]["rows"] == 4
    assert held_out["steps"] == 4


def test_metrics_agree_with_float64_formulas():
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 2, 50), generator.normal(size=(50, 2))
    predicted = logits.argmax(1)
    found = metrics.compute(["accuracy", "f1", "matthews_correlation"])(
        EvalPrediction(logits, labels)
    )
    tp, fp = ((predicted == 1) & (labels == 1)).sum(), ((predicted == 1) & (labels == 0)).sum()
    fn, tn = ((predicted == 0) & (labels == 1)).sum(), ((predicted == 0) & (labels == 0)).sum()
    assert found["accuracy"] == pytest.approx((tp + tn) / 50, abs=1e-12)
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-12)
    root = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert found["matthews_correlation"] == pytest.approx((tp * tn - fp * fn) / root, abs=1e-12)
    numbers = generator.normal(size=50)
    found = metrics.compute(["pearson", "spearmanr"])(EvalPrediction(logits[:, :1], numbers))
    assert found["pearson"] == pytest.approx(np.corrcoef(logits[:, 0], numbers)[0, 1], abs=1e-12)
    ranks = [np.argsort(np.argsort(values)) for values in (logits[:, 0], numbers)]
    assert found["spearmanr"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


# ---- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "maths"}, "no task 'maths'; there are commonsense"),
        ({"intervention_type": "lorra"}, "no method 'lorra'"),
        ({"data_dir": "nowhere"}, "no folder nowhere"),
        ({"eval_dataset": "odd"}, "no test set of odd"),
        ({"layers": "7"}, "layer"),
        ({"layers": "two"}, "'2;10;18;26', got 'two'"),
        ({"test_split": "dev"}, "validation or test, got 'dev'"),
        ({"position": "g1"}, "g1"),
        ({"intervention_type": "head"}, "LlamaForCausalLM has no head"),
        ({"intervention_type": "lora", "rate_ratios": "R=4"}, "not for lora"),
        ({"intervention_type": "lora", "lora_layers": "0;99"}, "lora_layers has 99"),
        ({"intervention_type": "prompt_tuning"}, "prompt_tuning"),
        ({"task": "ultrafeedback", "train_dataset": None, "dev_steps": 1}, "no score"),
        ({"task": "glue", "train_dataset": "rte", "eval_dataset": None}, "validation or held_out"),
        ({"task": "glue", "train_dataset": "rte"}, "leave out --eval_dataset"),
        ({"rate_ratios": "R"}, "'R=4;b=10', got 'R'"),
        ({"task": "glue", "train_dataset": "even"}, "one of cola, mnli"),
    ],
)
def test_bad_arguments_are_refused(changes, message, arguments):
    with pytest.raises(ValueError, match=message):
        train.run(replace(arguments, **changes))


def test_a_model_without_a_chat_template_is_refused(arguments, tmp_path):
    directory = tmp_path / "plain"
    make_base("llama", vocab_size=300).save_pretrained(directory)
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(directory)
    with pytest.raises(ValueError, match="has no chat template"):
        train.run(replace(arguments, model=str(directory), chat_template=True))
    assert train.run(replace(arguments, chat_template=True))["eval/even"]["rows"] == 6


def test_training_rows_whose_question_is_scored_are_dropped(arguments, data):
    rows = json.loads((data / "even" / "train.json").read_text())
    copy = {**rows[0], "instruction": " IS 0 even?  True/False!"}
    (data / "even" / "train.json").write_text(json.dumps([*rows, copy, copy]))
    found = train.run(replace(arguments, max_steps=1))
    assert found["dropped"] == 2
    validated = train.run(
        replace(arguments, test_split="validation", eval_dataset=None, max_steps=1)
    )
    # Held out are two rows and both copies, of which none is left to train on.
    assert validated["dropped"] == 0
    assert validated["eval/even"]["rows"] == 4


def test_scores_while_training_leave_what_is_random_alone(arguments):
    arguments = replace(arguments, dropout=0.3, group_by_length=True, epochs=2)
    losses = []
    for steps in (50, 1):
        found = replace(arguments, dev_steps=steps)
        train.run(found)
        history = json.loads((folder_of(found) / "training.json").read_text())
        losses.append([entry["loss"] for entry in history if "loss" in entry])
    assert losses[0] == losses[1]


def test_a_checkpoint_that_was_being_saved_is_deleted(arguments):
    arguments = replace(arguments, intervention_type="lora", max_steps=3)
    folder = folder_of(arguments) / "trainer"
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"torn")
    assert train.run(arguments)["steps"] == 3
    assert (
        not (folder / "checkpoint-2" / "optimizer.pt").exists()
        or (folder / "checkpoint-2" / "trainer_state.json").exists()
    )


def test_one_process_at_a_time_runs_in_a_folder(arguments):
    with (
        run_folder(arguments),
        pytest.raises(ValueError, match="another process runs in"),
    ):
        train.run(arguments)
    assert train.run(arguments)["eval/even"]["rows"] == 6


def test_a_moved_run_of_glue_does_not_score_another_epoch(arguments, models, monkeypatch):
    arguments = replace(
        arguments,
        task="glue",
        train_dataset="rte",
        eval_dataset=None,
        test_split="validation",
        model=models["bert"],
        epochs=2,
        allow_cls_grad=True,
    )
    found = train.run(arguments)
    folder = folder_of(arguments)
    (folder / "eval_results.json").unlink()
    assert train.run(arguments)["eval/rte"] == found["eval/rte"]
    (folder / "eval_results.json").unlink()
    moved = Path(arguments.output_dir + "_moved")
    Path(arguments.output_dir).rename(moved)
    with pytest.raises(ValueError, match="move the folder of the run back"):
        train.run(replace(arguments, output_dir=str(moved)))


def test_a_folder_of_another_run_is_refused(arguments):
    train.run(replace(arguments, run_name="mine"))
    with pytest.raises(ValueError, match="is of a run with another rank"):
        train.run(replace(arguments, run_name="mine", rank=1))


def test_prompts_that_leave_no_room_are_counted(arguments):
    with pytest.warns(UserWarning, match="8 of 12 rows are left out"):
        # "Is 10 even? ..." and later ones are a token longer.
        length = len("Is 1 even? true/false\n") + 1
        train.run(replace(arguments, max_length=length, max_steps=1))
