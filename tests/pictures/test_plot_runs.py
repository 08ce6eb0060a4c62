"""The curves of several runs: what is drawn of which log."""

import json
import math
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import TrainerState, TrainingArguments

import pyreft
from conftest import make_base
from pyreft.pictures.runs import read_log
from pyreft.sharing.loss_curve import COLOURS

LOG = [
    {"loss": 2.0, "learning_rate": 1e-3, "step": 10, "epoch": 0.5},
    {"loss": 1.0, "learning_rate": 5e-4, "step": 20, "epoch": 1.0},
    {"eval_loss": 1.5, "eval_accuracy": 0.5, "eval_runtime": 3.0, "step": 20, "epoch": 1.0},
    {"loss": math.nan, "step": 30, "epoch": 1.5},
    {"loss": 0.5, "step": 40, "epoch": 2.0},
    {"eval_loss": 1.2, "eval_accuracy": 0.75, "eval_runtime": 3.0, "step": 40, "epoch": 2.0},
    {"train_runtime": 60.0, "train_loss": 1.1, "step": 40, "epoch": 2.0},
]
OTHER = [{"loss": 3.0, "step": 10, "epoch": 1.0}, {"loss": 2.5, "step": 20, "epoch": 2.0}]


def lines_of(axes):
    """For each curve its colour, its style and its points."""
    return [
        (line.get_color(), line.get_linestyle(), list(zip(*line.get_data(), strict=True)))
        for line in axes.lines
    ]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_losses_and_scores_have_panels_and_runs_have_colours():
    figure = pyreft.plot_runs({"first": LOG, "second": OTHER})
    losses, scores = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"step"}
    assert lines_of(losses) == [
        (COLOURS[0], "-", [(10, 2.0), (20, 1.0), (40, 0.5)]),
        (COLOURS[0], "--", [(20, 1.5), (40, 1.2)]),
        (COLOURS[1], "-", [(10, 3.0), (20, 2.5)]),
    ]
    assert lines_of(scores) == [(COLOURS[0], "-", [(20, 0.5), (40, 0.75)])]
    assert legend_of(figure) == ["first", "second", "training", "evaluation"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_metrics_and_x_are_chosen():
    figure = pyreft.plot_runs({"a": LOG}, x="epoch", metrics=["learning_rate", "eval_loss"])
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning_rate", "loss"]
    assert lines_of(figure.axes[0])[0][2] == [(0.5, 1e-3), (1.0, 5e-4)]
    assert legend_of(figure) == ["a"]


def test_seconds_are_those_that_were_logged():
    """An evaluation is as late as the entry before it; a resumed run counts from zero again."""
    timed = [
        {"loss": 3.0, "step": 1, "train_runtime": 2.0},
        {"loss": 2.0, "step": 2, "train_runtime": 4.0},
        {"eval_loss": 2.5, "step": 2},
        {"loss": 1.0, "step": 3, "train_runtime": 1.5},
        {"eval_loss": 1.5, "step": 4},
        {"loss": 0.5, "step": 5, "train_runtime": 3.0},
    ]
    (axes,) = pyreft.plot_runs({"a": timed}, x="seconds").axes
    assert [points for *_, points in lines_of(axes)] == [
        [(2.0, 3.0), (4.0, 2.0), (5.5, 1.0), (7.0, 0.5)],
        [(4.0, 2.5)],
    ]
    with pytest.raises(ValueError, match="'b' has logged no seconds beside loss, eval"):
        pyreft.plot_runs({"a": timed, "b": LOG}, x="seconds")


def test_a_run_is_a_trainer_a_log_or_where_it_was_saved(tmp_path):
    for step, log in ((9, OTHER[:1]), (10, LOG)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        TrainerState(log_history=log).save_to_json(str(folder / "trainer_state.json"))
    (tmp_path / "run" / "checkpoint-11").mkdir()  # without a state
    trainer = SimpleNamespace(state=TrainerState(log_history=LOG))
    numbers = [{k: v for k, v in entry.items() if v == v} for entry in LOG]
    last = tmp_path / "run" / "checkpoint-10"
    for run in (trainer, LOG, tmp_path / "run", str(last), last / "trainer_state.json"):
        read = [{k: v for k, v in entry.items() if v == v} for entry in read_log("a", run)]
        assert read == numbers


def test_the_seconds_of_a_run_that_was_resumed(tmp_path, tokenizer):
    """What `plot_runs` reads is what the installed Trainer logs."""
    rows = Dataset.from_dict({"prompt": ["a: ", "b: "], "completion": ["x", "y"]})

    def train(steps, resume):
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            save_steps=2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            include_num_input_tokens_seen="all",
        )
        config = pyreft.ReftConfig(layers=[1], positions="l1", rank=2)
        trainer = pyreft.ReftTrainer(
            model=pyreft.get_reft_model(make_base("llama"), config),
            args=arguments,
            train_dataset=pyreft.make_examples(rows, tokenizer),
            processing_class=tokenizer,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    train(2, None)
    trainer = train(4, True)
    (axes,) = pyreft.plot_runs({"trainer": trainer, "saved": tmp_path}, x="seconds").axes
    for _, _, points in lines_of(axes):
        assert len(points) == 4
        seconds = [x for x, _ in points]
        assert seconds == sorted(seconds) and seconds[0] > 0


def test_names_are_shown_as_they_are():
    figure = pyreft.plot_runs({"$a$": OTHER, "_b": OTHER})
    assert legend_of(figure) == [r"\$a\$", "b"]
    many = pyreft.plot_runs({f"run {n}": OTHER for n in range(9)})
    looks = {(line.get_color(), line.get_marker()) for line in many.axes[0].lines}
    assert len(looks) == 9


@pytest.mark.parametrize("log", [LOG, OTHER], ids=["two panels", "one panel"])
def test_the_legend_of_many_runs_is_inside_of_the_figure(log):
    figure = pyreft.plot_runs({f"a run with a rather long name {n}": log for n in range(12)})
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1
    assert legend.y0 >= max(axes.get_window_extent().y1 for axes in figure.axes)
    assert min(axes.get_window_extent().height for axes in figure.axes) > 200


def test_runs_that_cannot_be_drawn_are_refused(tmp_path):
    def refuses(match, runs, error=ValueError, **options):
        with pytest.raises(error, match=match):
            pyreft.plot_runs(runs, **options)

    refuses("there is no run to draw", {})
    refuses("takes a dict", [LOG], TypeError)
    refuses("the run 'a' is a trainer, the log_history", {"a": 3}, TypeError)
    refuses("the run 'a' is a trainer", {"a": ["step"]}, TypeError)
    refuses("'a' has logged nothing yet", {"a": []})
    refuses("x is one of step, epoch, seconds; got 'time'", {"a": LOG}, x="time")
    refuses("no run has logged 'f1'; there are loss, learning_rate", {"a": LOG}, metrics=["f1"])
    refuses("no run has a loss or a score; there are step", {"a": [{"step": 1}]})
    refuses("'b' has logged none of eval_accuracy", {"a": LOG, "b": OTHER}, metrics="eval_accuracy")
    refuses("the run 'a' has no trainer_state.json", {"a": tmp_path})
    refuses("the run 'a' has no trainer_state.json", {"a": tmp_path / "nowhere"})
    for text, match in (("{", "cannot read"), ("[]", "is no state"), ('{"a": 1}', "is no state")):
        (tmp_path / "trainer_state.json").write_text(text)
        refuses(match, {"a": tmp_path})
    hostile = {"log_history": [{"loss": "x", "step": {}}, {"loss": 1.0, "step": 1}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(hostile))
    assert read_log("a", tmp_path) == [{}, {"loss": 1.0, "step": 1}]
