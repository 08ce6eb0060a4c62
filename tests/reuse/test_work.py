"""What is computed: tokens and layers, counted where they run."""

import pytest
from reused import Rows, computed, make_model, make_trainer

# Four rows of 12 tokens, a prompt of 9 in each: an epoch is a step.
EVEN = [(9, 3)] * 4
# The last token predicts nothing, and the window begins with the last token of the prompt.
RUN, WINDOW = 11, 3


def steps(directory, model, count=3, rows=EVEN, **changes):
    """For each step what it computed, by (layer, with gradient); the first is compared with the
    plain model, so one of another data set comes before it."""
    trainer = make_trainer(model, directory, rows=Rows([(4, 2)] * 4), max_steps=1, **changes)
    trainer.train()
    trainer.train_dataset = Rows(rows)
    model.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    found = []
    for _ in range(count):
        with computed(model) as counted:
            trainer.training_step(model, dict(batch))
        found.append({key: number for key, number in sorted(counted.items()) if number})
    return found, trainer


def test_the_first_epoch_computes_each_token_once_and_later_ones_the_window_alone(tmp_path):
    first, *later = steps(tmp_path, make_model(layers=[1]))[0]
    # Layers 0 and 1 put out what is edited; of layer 2 the keys and values of 8 earlier tokens
    # are needed, and no feed-forward part.
    assert first == {(0, False): 4 * RUN, (1, False): 4 * RUN, (2, True): 4 * WINDOW}
    assert later == [{(2, True): 4 * WINDOW}] * 2


def test_a_layer_that_is_edited_inside_runs_in_each_step(tmp_path):
    first, *later = steps(tmp_path, make_model(layers=[1], component="mlp_output"))[0]
    window = {(1, True): 4 * WINDOW, (2, True): 4 * WINDOW}
    assert first == {(0, False): 4 * RUN, (1, False): 4 * 8} | window
    assert later == [window] * 2


def test_edits_from_the_first_token_on_leave_layers_to_reuse(tmp_path):
    first, *later = steps(tmp_path, make_model(layers=[1], positions="f1"))[0]
    assert first == {(0, False): 4 * RUN, (1, False): 4 * RUN, (2, True): 4 * RUN}
    assert later == [{(2, True): 4 * RUN}] * 2


def test_the_window_begins_where_the_first_label_is_predicted(tmp_path):
    """The token before the completion is edited by nothing, and its logits are in the loss."""
    _, *later = steps(tmp_path, make_model(layers=[1], positions="completion"))[0]
    assert later == [{(2, True): 4 * WINDOW}] * 2


def test_no_memory_means_that_states_are_computed_in_each_step(tmp_path):
    found, trainer = steps(tmp_path, make_model(layers=[1]), reuse_memory=0)
    assert found == [{(0, False): 4 * RUN, (1, False): 4 * RUN, (2, True): 4 * WINDOW}] * 3
    assert trainer.reuse.report.held == 0


def test_an_example_with_other_neighbours_is_not_computed_again(tmp_path):
    _, trainer = steps(tmp_path, make_model(layers=[1]), count=1, rows=[(9, 3), (4, 2)])
    batch = trainer.data_collator([Rows([(9, 3)] + [(14, 5)] * 3)[i] for i in range(4)])
    with computed(trainer.model) as counted:
        trainer.training_step(trainer.model, batch)
    assert counted[0, False] == 3 * 18


def test_the_first_batch_is_compared_with_the_plain_model_once(tmp_path):
    trainer = make_trainer(make_model(), tmp_path, rows=Rows(EVEN), max_steps=1)
    with computed(trainer.model) as counted:
        trainer.train()
    states, plain, window = [4 * RUN, 4 * RUN, 0], [4 * 12] * 3, [0, 0, 4 * WINDOW]
    without_gradient = [counted[layer, False] for layer in range(3)]
    assert without_gradient == [sum(all_of) for all_of in zip(states, plain, window, strict=True)]
    assert counted[2, True] == 4 * WINDOW


def test_several_runs_and_evaluations_share_what_is_known(tmp_path):
    model = make_model()
    make_trainer(model, tmp_path, rows=Rows(EVEN)).train()
    trainer = make_trainer(make_model(seed=2, base=model.unwrap()), tmp_path, rows=Rows(EVEN))
    trainer.evaluate()
    trainer.train()
    assert trainer.reuse.report.misses == 0
    assert trainer.reuse.report.hits > 0


def test_the_report_counts_what_runs(tmp_path):
    _, trainer = steps(tmp_path, make_model(layers=[1]))
    report = trainer.reuse.report
    assert (report.batches, report.hits, report.misses) == (4, 2 * 4, 4 + 4)
    assert report.without == 3 * (4 * 6 + 3 * 4 * 12)
    assert report.windows == 4 * 2 + 3 * 4 * WINDOW
    assert report.states == 4 * (2 * 5 + 3) + 4 * (2 * RUN + 8)
    assert report.held == 8


@pytest.mark.parametrize("layers", [[0], [0, 1, 2]])
def test_what_saves_hardly_anything_is_left(layers, tmp_path, monkeypatch):
    monkeypatch.setattr("pyreft.reuse.reuse._WORTHWHILE", 0.5)
    found, trainer = steps(tmp_path, make_model(layers=layers, positions="f1"), count=1)
    assert found == [{(layer, True): 4 * 12 for layer in range(3)}]
    assert trainer.reuse.report.held == 0
