"""Upstream's data sets: what they make of rows, and where positions are."""

import copy

import pytest
import torch
from transformers import DataCollatorForSeq2Seq

import pyreft
from conftest import by_the_rule, make_base

# Upstream's prompts, character by character: scripts must reproduce.
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nadd\n\n### Response:\n"
)
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\nadd"
    "\n\n### Input:\n1 2\n\n### Response:\n"
)
ALPACA = [
    {"instruction": "add", "input": "1 2", "output": "3", "worse": "four"},
    {"instruction": "add", "input": "", "output": "yes", "worse": "n"},
]
PAIRS = [{"prompt": "ab", "completion": "cd"}, {"prompt": "x", "completion": "y"}]
FIELDS = {"instruction_field": "instruction", "input_field": "input"}
# The class of each, its rows and arguments.
TASKS = {
    "generation": (
        pyreft.ReftGenerationDataset,
        PAIRS,
        {"prompt_field": "prompt", "completion_field": "completion"},
    ),
    "raw": (
        pyreft.ReftRawDataset,
        [{"instruction": p["prompt"], "output": p["completion"]} for p in PAIRS],
        {},
    ),
    "supervised": (pyreft.ReftSupervisedDataset, ALPACA, {**FIELDS, "output_field": "output"}),
    "preference": (
        pyreft.ReftPreferenceDataset,
        ALPACA,
        {**FIELDS, "chosen_output_field": "output", "rejected_output_field": "worse"},
    ),
    "classification": (
        pyreft.ReftClassificationDataset,
        [{"text": "abc", "label": 1}, {"text": "a", "label": 0}],
        {"input_field": "text", "label_field": "label"},
    ),
}


@pytest.fixture
def wide(tokenizer):
    """The tokenizer, with room for Alpaca's prompts."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 400
    return tokenizer


def build(task, tokenizer, rows=None, **changes):
    cls, default, arguments = TASKS[task]
    return cls("task", None, tokenizer, dataset=rows or default, **arguments | changes)


def text(tokenizer, ids):
    return tokenizer.decode([i for i in ids if i != -100])


def own(example):
    """An example with positions, without the pad token before it, which they count as 0.

    Examples of classifiers have none.
    """
    if "leading_pad" not in example:
        return example
    length = len(example["input_ids"])
    by_token = {
        name: values[1:]
        for name, values in example.items()
        if isinstance(values, torch.Tensor) and values.shape == (length,)
    }
    assert example["attention_mask"][0] == 0
    located = [[p - 1 if p else -100 for p in one] for one in example["intervention_locations"]]
    return example | by_token | {"intervention_locations": located}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_one_pad_token_is_put_before_a_text_that_has_positions(wide, task):
    """As upstream does, whose scripts count from it; no other token is hidden (defect 10)."""
    wide.pad_token = wide.eos_token
    located, plain = build(task, wide, position="l1"), build(task, wide)
    for found, expected in zip(located, plain, strict=True):
        assert bool((expected["attention_mask"] == 1).all())
        assert expected["input_ids"][0] != wide.pad_token_id
        assert ("leading_pad" in found) == (task != "classification")
        for name in ("input_ids", "attention_mask"):
            assert own(found)[name].tolist() == expected[name].tolist()


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_last_position_is_the_last_prompt_token(wide, task):
    """Upstream's is the one before (defect 7)."""
    for example in map(own, build(task, wide, position="l1", num_interventions=2)):
        labels, n = example["labels"], len(example["input_ids"])
        if isinstance(labels, torch.Tensor):
            n = int((labels != -100).int().argmax())
        assert example["intervention_locations"] == [[n - 1], [n - 1]]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 9])
def test_short_prompts_edit_no_token_twice_and_none_of_the_answer(tokenizer, n, share):
    """Upstream fills up with the first token of the answer (defects 8, 9)."""
    rows = [{"prompt": "a" * n, "completion": "bcdefg"}]
    data = build(
        "generation",
        tokenizer,
        rows,
        position="f3+l3",
        num_interventions=2,
        share_weights=share,
    )
    located = [[p for p in one if p != -100] for one in own(data[0])["intervention_locations"]]
    expected = by_the_rule(n, 3, 3)
    assert located == [expected] * 2 if share else located[0] + located[1] == expected


def test_an_odd_number_of_interventions_for_two_ends_is_refused(tokenizer):
    """Upstream drops one (defect 9)."""
    with pytest.raises(ValueError, match=r"num_interventions is 3, positions 'f1\+l1' have 2"):
        build("generation", tokenizer, position="f1+l1", num_interventions=3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task", sorted(TASKS))
def test_positions_do_not_depend_on_the_padding_side(wide, task, side):
    """Upstream's are columns of the padded batch (defect 6)."""
    wide.padding_side = side
    data = build(task, wide, position="f1+l1", share_weights=True)
    batch = pyreft.ReftDataCollator(tokenizer=wide)([data[0], data[1]])
    for index in range(2):
        example = own(data[index])
        ids = batch["input_ids"][index][batch["attention_mask"][index] == 1]
        assert ids.tolist() == example["input_ids"].tolist()
        found = [p for p in batch["intervention_locations"][index, 0].tolist() if p != -100]
        assert found == [p for p in example["intervention_locations"][0] if p != -100]
    # With labels the pad token is left out, and is in no batch to train on.
    assert "leading_pad" not in batch


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task", ["generation", "raw", "supervised"])
def test_the_pad_token_changes_no_number(wide, task, side):
    wide.padding_side = side
    base = make_base("llama")
    config = {"layer": 1, "component": "block_output", "low_rank_dimension": 2}
    open_model, closed = (
        pyreft.get_reft_model(base, pyreft.ReftConfig(representations=config | more))
        for more in ({}, {"positions": "f1+l2"})
    )
    closed.interventions.load_state_dict(open_model.interventions.state_dict())
    data = build(task, wide, position="f1+l2", share_weights=True)
    collate = pyreft.ReftDataCollator(tokenizer=wide)
    batch, plain = collate(list(data)), collate(list(build(task, wide)))
    for rows in (slice(None), slice(0, 1)):  # of one row as well
        here = {name: values[rows] for name, values in batch.items() if name != "id"}
        there = {name: values[rows] for name, values in plain.items() if name != "id"}
        loss = open_model(**here).loss
        torch.testing.assert_close(loss, closed(**there).loss, rtol=1e-5, atol=1e-5)
        text = {n: here[n] for n in ("input_ids", "attention_mask")}
        # As upstream's trainer hands them on.
        if side == "right":
            where = here["intervention_locations"].permute(1, 0, 2).tolist()
            at = {"sources->base": (None, where)}
            _, outputs = open_model(text, unit_locations=at, labels=here["labels"])
            torch.testing.assert_close(outputs.loss, loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("collate", ["ours", "upstream's", "transformers'"])
def test_prompts_alone_keep_the_pad_token_and_say_so(wide, side, collate):
    """Upstream's scripts count from it when they generate."""
    wide.padding_side = side
    base = make_base("llama")
    config = {"layer": 1, "component": "block_output", "low_rank_dimension": 2}
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(representations=config))
    data = build("raw", wide, position="f1+l1", share_weights=True, data_split="test")
    collator = {
        "ours": pyreft.ReftDataCollator(tokenizer=wide),
        "upstream's": lambda items: dict(DataCollatorForSeq2Seq(wide)(items)),
        "transformers'": DataCollatorForSeq2Seq(wide),
    }[collate]
    both = collator([data[0], data[0]])
    assert both["leading_pad"].tolist() == [1, 1] and both["input_ids"].shape[1] == 3
    inputs = {name: value for name, value in both.items() if name != "id"}
    ids = wide(["ab", "ab"], return_tensors="pt")["input_ids"]
    expected = model(ids, positions="f1+l1").logits
    torch.testing.assert_close(model(**inputs).logits[:, 1:], expected, rtol=1e-5, atol=1e-5)
    # As compute_metrics does: the column of the first token, less one for the pad token.
    located = both["intervention_locations"].permute(1, 0, 2)
    columns = (located + 1 - 1).tolist()
    text = {name: both[name] for name in ("input_ids", "attention_mask")}
    _, outputs = model(text, unit_locations={"sources->base": (None, columns)})
    torch.testing.assert_close(outputs.logits[:, 1:], expected, rtol=1e-5, atol=1e-5)
    # A loop that loses what the batch says is told how positions are counted.
    text["intervention_locations"] = both["intervention_locations"] - 1
    torch.testing.assert_close(model(**text).logits[:, 1:], expected, rtol=1e-5, atol=1e-5)


def test_supervised_prompts_are_alpacas(wide):
    data = build("supervised", wide)
    for example, prompt, output in zip(
        data, [WITH_INPUT, WITHOUT_INPUT], ["3", "yes"], strict=True
    ):
        assert text(wide, example["input_ids"]) == f"{prompt}{output}<eos>"
        assert text(wide, example["labels"]) == f"{output}<eos>"
    assert text(wide, build("supervised", wide, no_stop=True)[0]["labels"]) == "3"


def test_an_input_column_that_is_not_there_is_stated(wide, caplog):
    rows = [{"instruction": "add", "output": "3"}]
    (example,) = build("supervised", wide, rows, input_field="inptu")
    assert text(wide, example["input_ids"]) == f"{WITHOUT_INPUT}3<eos>"
    assert "no column 'inptu'" in caplog.text


def test_the_preference_input_is_rejected_and_its_labels_are_chosen(wide, caplog):
    longer, shorter = build("preference", wide)[0], build("preference", wide)[1]
    assert text(wide, longer["input_ids"]) == f"{WITH_INPUT}four<eos>"
    assert text(wide, longer["labels"]) == "3<eos>"
    # "yes<eos>" beside "n<eos>": two tokens have no input, and upstream reads padding there.
    assert text(wide, shorter["labels"]) == "ye"
    assert len(shorter["labels"]) == len(shorter["input_ids"])
    assert "1 of 2 chosen outputs are longer" in caplog.text and "2 in all" in caplog.text


def test_preferences_are_given_to_other_trainers_as_pairs(wide):
    rows = build("preference", wide).pairs()
    assert rows[0] == {"prompt": WITH_INPUT, "chosen": "3", "rejected": "four"}


@pytest.mark.parametrize("task", ["raw", "preference"])
def test_other_splits_are_prompts_to_generate_from(wide, task):
    (example, _) = map(own, build(task, wide, data_split="test", position="l1"))
    assert text(wide, example["input_ids"]) == (WITH_INPUT if task == "preference" else "ab")
    assert "labels" not in example
    assert example["intervention_locations"] == [[len(example["input_ids"]) - 1]]


@pytest.mark.parametrize(
    ("label", "made"),
    [(2, 2), (0.5, 0.5), ([1, 0, 1], [1.0, 0.0, 1.0]), ("bc", None), (None, "error")],
)
def test_a_label_goes_by_its_type(tokenizer, label, made):
    rows = [{"text": "abc", "label": label}]
    if made == "error":
        with pytest.raises(ValueError, match="row 0: the label is None; it must be a class index"):
            build("classification", tokenizer, rows)
        return
    (example,) = build("classification", tokenizer, rows)
    found = example["labels"]
    if isinstance(label, str):
        assert text(tokenizer, found) == "bc"
    else:
        assert (found.tolist() if isinstance(found, torch.Tensor) else found) == made


@pytest.mark.parametrize(
    ("labels", "dtype"), [([1, 0], torch.long), ([0.5, 1.5], torch.float), ([[1, 0], [0, 1]], None)]
)
def test_labels_make_a_batch(tokenizer, labels, dtype):
    rows = [{"text": "ab", "label": one} for one in labels]
    batch = pyreft.ReftDataCollator(tokenizer=tokenizer)(
        list(build("classification", tokenizer, rows))
    )
    # Several labels are as many as the tokens here, and still belong to the text.
    assert batch["labels"].tolist() == labels
    assert batch["labels"].dtype == (dtype or torch.float)


def test_the_input_may_be_its_own_label_or_have_none(tokenizer):
    example = own(build("classification", tokenizer, label_field="text", position="f1")[0])
    assert example["labels"].tolist() == example["input_ids"].tolist()
    assert "labels" not in build("classification", tokenizer, label_field=None)[0]


def test_a_pair_of_texts_is_tokenized_as_a_pair(wide):
    wide.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    rows = [{"a": "xy", "b": "z", "label": 1}]
    (example,) = build("classification", wide, rows, input_field=["a", "b"])
    assert example["input_ids"].tolist() == wide("xy", "z")["input_ids"]
    assert example["token_type_ids"].tolist() == wide("xy", "z")["token_type_ids"]


def test_subspaces_of_a_row_hold_for_every_intervention(tokenizer):
    rows = [{**row, "subspaces": [0, 1]} for row in PAIRS]
    data = build("generation", tokenizer, rows, position="l1", num_interventions=3)
    batch = pyreft.ReftDataCollator(tokenizer=tokenizer)([data[0], data[1]])
    assert batch["subspaces"].tolist() == [[[0, 1]] * 3] * 2


def test_an_item_is_not_a_copy_of_its_tokens_and_changing_it_changes_no_data(tokenizer):
    data = build("generation", tokenizer, position="l1")
    assert data[0]["input_ids"] is data[0]["input_ids"]
    del data[0]["labels"]
    assert "labels" in data[0]
    assert len(data) == 2 == len(list(data))


@pytest.mark.parametrize("position", ["all", "completion", None])
def test_positions_that_only_the_model_can_find_are_left_to_it(tokenizer, position):
    data = build("generation", tokenizer, position=position, share_weights=True)
    assert "intervention_locations" not in data[0]


def test_long_completions_are_cut_and_never_prompts(tokenizer, caplog):
    rows = [{"prompt": "a" * 10, "completion": "b" * 90}]
    (example,) = map(own, build("generation", tokenizer, rows, position="l1"))
    assert len(example["input_ids"]) == 64
    assert example["intervention_locations"] == [[9]]
    assert "the completions of 1 of 1" in caplog.text
    rows = [{"prompt": "a" * 64, "completion": "b"}, *rows]
    (example,) = build("generation", tokenizer, rows, position="l1")
    assert example["id"] == 1
    assert "1 of 2 prompts have max_length=64 tokens or more" in caplog.text
    with pytest.raises(ValueError, match="1 of 1 prompts have max_length=64 tokens or more"):
        build("generation", tokenizer, rows[:1])


def test_long_texts_are_cut_and_counted(tokenizer, caplog):
    rows = [{"text": "a" * 70, "label": 0}, {"text": "b", "label": 1}]
    data = build("classification", tokenizer, rows, position="l1")
    assert own(data[0])["intervention_locations"] == [[63]]
    assert "the texts of 1 of 2 examples were cut to fit max_length=64, by 6" in caplog.text
