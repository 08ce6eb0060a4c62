"""Upstream's data modules."""

import pytest

import pyreft
from conftest import make_base

PROMPTS, COMPLETIONS = ["hello", "a longer one", "x"], ["you", "1", "yz"]


def test_the_last_position_is_the_last_prompt_token(tokenizer):
    module = pyreft.make_last_position_supervised_data_module(
        tokenizer, None, PROMPTS, COMPLETIONS, num_interventions=2
    )
    rows = module["train_dataset"]
    assert rows["intervention_locations"][:] == [[[n], [n]] for n in (4, 11, 0)]
    for row, prompt, completion in zip(rows, PROMPTS, COMPLETIONS, strict=True):
        n = len(prompt)
        assert tokenizer.decode(row["input_ids"]) == prompt + completion + "<eos>"
        assert row["labels"] == [-100] * n + row["input_ids"][n:]
    assert module["eval_dataset"] is None


def test_nonstop_leaves_out_the_end_token(tokenizer):
    module = pyreft.make_last_position_supervised_chat_data_module(
        tokenizer, None, PROMPTS, COMPLETIONS, nonstop=True
    )
    assert tokenizer.decode(module["train_dataset"][0]["input_ids"]) == "helloyou"


def test_separate_weights_have_the_prefix_first_and_the_suffix_second(tokenizer):
    module = pyreft.make_multiple_position_supervised_data_module(
        tokenizer, None, PROMPTS[:2], COMPLETIONS[:2], positions="f2+l1", num_interventions=4
    )
    assert module["train_dataset"]["intervention_locations"][:] == [
        [[0, 1], [0, 1], [n, -100], [n, -100]] for n in (4, 11)
    ]


def test_shared_weights_have_all_positions(tokenizer):
    module = pyreft.make_multiple_position_supervised_data_module(
        tokenizer, None, PROMPTS[:1], COMPLETIONS[:1], positions="f2+l1", share_weights=True
    )
    assert module["train_dataset"]["intervention_locations"][:] == [[[0, 1, 4]]]


def test_short_prompts_edit_no_token_twice_and_none_of_the_answer(tokenizer):
    module = pyreft.make_multiple_position_supervised_data_module(
        tokenizer, None, ["abc", "x"], ["y", "y"], positions="f3+l3", num_interventions=2
    )
    assert module["train_dataset"]["intervention_locations"][:] == [
        [[0, -100], [1, 2]],
        [[-100], [0]],
    ]


def test_the_model_learns_its_positions_from_the_data_module(tokenizer):
    representation = {"layer": 1, "component": "block_output", "low_rank_dimension": 2}
    config = pyreft.ReftConfig(representations=[representation, representation])
    model = pyreft.get_reft_model(make_base("llama"), config)
    pyreft.make_multiple_position_supervised_data_module(
        tokenizer, model, PROMPTS, COMPLETIONS, positions="f2+l1", num_interventions=2
    )
    assert [str(c.positions) for c in model.reft_config.representations] == ["f2", "l1"]


def test_a_count_that_does_not_fit_is_refused(tokenizer):
    with pytest.raises(ValueError, match="have 2 parts"):
        pyreft.make_multiple_position_supervised_data_module(
            tokenizer, None, PROMPTS, COMPLETIONS, positions="f2+l1", num_interventions=3
        )
    with pytest.raises(ValueError, match="there are 3 prompts, but 2 completions"):
        pyreft.make_last_position_supervised_data_module(tokenizer, None, PROMPTS, ["a", "b"])


def test_a_data_module_replaces_what_another_recorded(tokenizer):
    config = pyreft.ReftConfig(representations={"layer": 1, "low_rank_dimension": 2})
    model = pyreft.get_reft_model(make_base("llama"), config)
    for positions in ("l1", "f2"):
        pyreft.make_multiple_position_supervised_data_module(
            tokenizer, model, PROMPTS, COMPLETIONS, positions=positions
        )
    assert str(model.reft_config.representations[0].positions) == "f2"


def test_a_data_module_that_contradicts_the_config_is_refused(tokenizer):
    config = pyreft.ReftConfig(layers=[1], positions="f2", rank=2)
    model = pyreft.get_reft_model(make_base("llama"), config)
    with pytest.raises(ValueError, match=r"the config puts intervention 0 at .*f2.*l1"):
        pyreft.make_last_position_supervised_data_module(tokenizer, model, PROMPTS, COMPLETIONS)
