"""Pairs of answers: each text with positions of its own, interleaved in a batch."""

import copy

import pytest

import pyreft

ROWS = [
    {"prompt": "hi", "chosen": "good", "rejected": "no"},
    {"prompt": "a longer one", "chosen": "ok", "rejected": "something bad"},
]
FIELDS = {"prompt_field": "prompt", "conv_A_field": "chosen", "conv_B_field": "rejected"}


@pytest.fixture
def plain(tokenizer):
    """The tokenizer without a chat template."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    return tokenizer


def build(tokenizer, rows=ROWS, **changes):
    return pyreft.ReftRewardDataset("task", None, tokenizer, dataset=rows, **FIELDS | changes)


def scored(a, b):
    return [{"prompt": "p", "chosen": "A", "rejected": "B", "a": a, "b": b}]


def test_texts_are_conversations_in_the_chat_template(tokenizer):
    example = build(tokenizer)[0]
    for side, answer in (("chosen", "good"), ("rejected", "no")):
        expected = f"user: hi<eos>\nassistant: {answer}<eos>\n"
        assert tokenizer.decode(example[f"{side}_output"]) == expected
        assert example[f"{side}_output_mask"].tolist() == [1] * len(example[f"{side}_output"])


def test_answers_may_be_conversations_already(tokenizer):
    turns = [{"role": "user", "content": "hi"}]
    rows = [
        {n: [*turns, {"role": "assistant", "content": ROWS[0][n]}] for n in ("chosen", "rejected")}
    ]
    ours, same = build(tokenizer, rows, prompt_field=None)[0], build(tokenizer)[0]
    assert ours["chosen_output"].tolist() == same["chosen_output"].tolist()


def test_without_a_template_answers_follow_their_prompts(plain):
    assert plain.decode(build(plain)[0]["rejected_output"]) == "hino"


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_interleaves_pairs_each_with_its_own_positions(plain, side):
    plain.padding_side = side
    data = build(plain, position="f1+l1", share_weights=True, num_interventions=2)
    batch = pyreft.ReftRewardCollator(plain)([data[0], data[1]])
    texts = ["higood", "hino", "a longer oneok", "a longer onesomething bad"]
    for index, text in enumerate(texts):
        ids = batch["input_ids"][index][batch["attention_mask"][index] == 1]
        assert plain.decode(ids) == text
        assert batch["intervention_locations"][index].tolist() == [[0, len(text) - 1]] * 2
    assert batch["reward"].tolist() == [1, 0, 1, 0]
    assert batch["labels"].tolist() == [1, 1]
    assert [str(spec) for spec in data.positions] == ["f1+l1"] * 2


def test_the_collator_pads_as_it_is_told(plain):
    data = build(plain)
    batch = pyreft.ReftRewardCollator(plain, pad_to_multiple_of=16)([data[0]])
    assert batch["input_ids"].shape == (2, 16)
    assert "intervention_locations" not in batch
    batch = pyreft.ReftRewardCollator(plain, padding="max_length", max_length=30)([data[0]])
    assert batch["input_ids"].shape == (2, 30)


def test_the_higher_reward_is_chosen(plain):
    rewards = {"conv_A_reward_field": "a", "conv_B_reward_field": "b"}
    example = build(plain, scored(0.5, 2), **rewards)[0]
    assert plain.decode(example["chosen_output"]) == "pB"
    assert (example["chosen_reward"], example["rejected_reward"]) == (2, 0.5)
    batch = pyreft.ReftRewardCollator(plain)([example])
    assert batch["reward"].tolist() == [2, 0.5]
    assert batch["labels"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (scored(1.0, 1.0), "row 0: both answers have the reward 1.0, so neither is better"),
        (scored(1.0, None), r"row 0: rewards are numbers, got \[1.0, None\]"),
        (scored("1", "2"), "row 0: rewards are numbers"),
        ([{**ROWS[0], "chosen": "no", "a": 1.0, "b": 0.0}], "row 0: both answers are the same"),
        ([{**ROWS[0], "chosen": None, "a": 1.0, "b": 0.0}], "row 0: the answer must be text"),
        ([{**ROWS[0], "prompt": "", "a": 1.0, "b": 0.0}], "row 0: the prompt must be text"),
        ([{**ROWS[0], "a": 1.0}], "no column 'b'; it has prompt, chosen, rejected, a"),
    ],
)
def test_rows_that_rank_nothing_are_refused(plain, rows, message):
    with pytest.raises(ValueError, match=message):
        build(plain, rows, conv_A_reward_field="a", conv_B_reward_field="b")


def test_answers_that_differ_only_in_what_is_cut_are_refused(plain, caplog):
    long = "x" * 70
    with pytest.raises(ValueError, match="row 0: both answers are the same, or differ only in"):
        build(plain, [{"prompt": "p", "chosen": long + "a", "rejected": long + "b"}])
    build(plain, [{"prompt": "p", "chosen": "a" + long, "rejected": "b"}])
    assert "the texts of 1 of 2 examples were cut to fit max_length=64, by 8 tokens" in caplog.text


def test_one_reward_alone_is_refused(plain):
    with pytest.raises(TypeError, match="give both conv_A_reward_field and conv_B_reward_field"):
        build(plain, conv_A_reward_field="a")


def test_text_without_a_prompt_column_is_refused_where_there_is_a_template(tokenizer):
    with pytest.raises(ValueError, match="name the column of its prompt with prompt_field"):
        build(tokenizer, prompt_field=None)


def test_texts_that_end_in_the_pad_token_are_warned_of(tokenizer, caplog):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<eos>{% endfor %}"
    tokenizer.pad_token = tokenizer.eos_token
    build(tokenizer)
    assert "reads its score one token earlier" in caplog.text


def test_other_examples_are_refused(plain):
    with pytest.raises(ValueError, match="an example has no chosen_output, but input_ids"):
        pyreft.ReftRewardCollator(plain)([{"input_ids": [1]}])
