"""Bad data: the row and the reason are named, and nothing is dropped or cut in silence."""

import copy

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

import pyreft
from conftest import make_base

REFUSED = (ValueError, TypeError)
MODULES = {
    "last": pyreft.make_last_position_supervised_data_module,
    "chat": pyreft.make_last_position_supervised_chat_data_module,
    "multiple": lambda *args, **kw: pyreft.make_multiple_position_supervised_data_module(
        *args, **{"share_weights": True} | kw
    ),
}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.fixture
def limited(tokenizer):
    """The tokenizer, with room for ten tokens."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 10
    return tokenizer


@pytest.fixture(params=sorted(MODULES))
def make_module(request):
    return MODULES[request.param]


@pytest.fixture
def collate(tokenizer):
    return pyreft.ReftDataCollator(tokenizer=tokenizer)


def example(length=3, **columns):
    labels = [-100] * (length - 1) + [length + 2]
    return {"input_ids": list(range(3, 3 + length)), "labels": labels, **columns}


# ---- upstream's data modules ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["a"], ["b", "c"], "there are 1 prompts, but 2 completions"),
        (["a", ""], ["b", "c"], "row 1: the prompt is empty"),
        (["a", "b"], ["c", ""], "row 1: the completion is empty"),
        (["a", None], ["b", "c"], "row 1.*None|row 1.*text"),
        (["a", "b"], ["c", None], "row 1.*None|row 1.*text"),
        ([b"a"], ["b"], "row 0.*text"),
        ("abc", "def", "list"),  # one text each, not three of one letter
    ],
)
def test_prompts_and_completions_are_texts_in_pairs(
    tokenizer, make_module, inputs, outputs, message
):
    with pytest.raises(REFUSED, match=message):
        make_module(tokenizer, None, inputs, outputs)


def test_a_prompt_that_leaves_no_room_is_left_out_and_never_cut(limited, make_module, caplog):
    data = make_module(limited, None, ["a", "a" * 10], ["b", "b"])["train_dataset"]
    assert [len(ids) for ids in data["input_ids"]] == [3]
    assert "1 of 2 prompts have max_length=10 tokens or more" in caplog.text
    assert "left out (rows 1)" in caplog.text
    with pytest.raises(ValueError, match=r"2 of 2 prompts have max_length=10.*model_max_length"):
        make_module(limited, None, ["a" * 11, "a" * 10], ["b", "b"])


def test_what_is_cut_from_completions_is_stated(limited, make_module, caplog):
    data = make_module(limited, None, ["a" * 8, "a"], ["b" * 4, "b"])["train_dataset"]
    assert [len(ids) for ids in data["input_ids"]] == [10, 3]
    assert data["intervention_locations"][0][0][-1] == 7
    message = caplog.messages[-1]
    # Two letters and the end token, of one row, to the limit of the tokenizer.
    assert "1 of 2" in message and "10" in message and "3 tokens" in message


@pytest.mark.parametrize("spec", ["", "f0", "q3", None])
def test_a_spec_that_does_not_parse_is_refused_before_any_work(tokenizer, spec):
    with pytest.raises(REFUSED, match=r"f<n> \(first n prompt tokens\)"):
        MODULES["multiple"](tokenizer, None, ["a"], ["b"], positions=spec)


def test_an_index_outside_a_prompt_names_the_row(tokenizer):
    with pytest.raises(ValueError, match=r"row 1.*2 tokens|position 2 .* row 1"):
        MODULES["multiple"](tokenizer, None, ["abc", "ab"], ["c", "c"], positions=[2])


@pytest.mark.parametrize("count", [0, -2, 3, 1.5, None, "2"])
def test_a_number_of_interventions_that_does_not_fit_is_refused(tokenizer, count):
    with pytest.raises(REFUSED, match=f"num_interventions.*{count}"):
        MODULES["multiple"](
            tokenizer, None, ["ab"], ["c"], num_interventions=count, share_weights=False
        )


@pytest.mark.parametrize("positions", ["all", "completion"])
def test_positions_in_the_completion_train_or_are_refused_at_once(tokenizer, positions):
    entry = {"layer": 0, "component": "block_output", "low_rank_dimension": 2}
    config = pyreft.ReftConfig(representations=entry)
    model = pyreft.get_reft_model(make_base("llama"), config)
    try:
        data = MODULES["multiple"](tokenizer, model, ["ab"], ["cd"], positions=positions)
    except ValueError as error:
        assert positions in str(error)
    else:
        assert model(**data["data_collator"](list(data["train_dataset"]))).loss > 0


def test_the_order_of_indices_is_no_disagreement(tokenizer):
    config = pyreft.ReftConfig(layers=[0], rank=2, positions=[1, 0])
    model = pyreft.get_reft_model(make_base("llama"), config)
    assert MODULES["multiple"](tokenizer, model, ["ab"], ["c"], positions=[0, 1])["train_dataset"]


def test_a_tokenizer_without_an_end_token_is_refused_where_one_is_added(tokenizer, make_module):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="row 0: the tokenizer has no eos_token"):
        make_module(tokenizer, None, ["a"], ["b"])
    assert make_module(tokenizer, None, ["a"], ["b"], nonstop=True)["train_dataset"]


# ---- make_examples -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"prompt": ["a", None], "completion": ["b", "c"]}, "row 1.*None"),
        ({"prompt": ["a", "b"], "completion": ["c", None]}, "row 1.*None"),
        ({"prompt": [1], "completion": [2]}, "row 0.*1"),
        ({"prompt": ["a"], "completion": [[assistant("b")]]}, "row 0"),
        ({"prompt": [[user("a")]], "completion": [[user("b")]]}, "row 0.*no turn of the assistant"),
        ({"messages": [[user("a"), assistant("b")], None]}, "row 1"),
        ({"messages": ["hello"]}, "row 0.*messages"),
        ({"messages": [[user("a"), assistant("b")], []]}, "row 1: the chat has no turn"),
        ({"messages": [[user("a"), assistant("")]]}, "row 0: the completion is empty"),
        ({"messages": [[user("a"), {"role": "assistant", "content": None}]]}, "row 0.*empty"),
        ({"messages": [[{"content": "a"}]]}, "row 0.*role"),
        ({"prompt": [], "completion": []}, "empty|no rows"),
    ],
)
def test_a_row_that_is_no_example_is_named(tokenizer, rows, message):
    with pytest.raises(REFUSED, match=message):
        pyreft.make_examples(Dataset.from_dict(rows), tokenizer)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"prompt": ["a"], "completion": ["b"]}, "dict"),
        ([{"prompt": "a", "completion": "b"}], "list"),
        (DatasetDict(train=Dataset.from_dict({"prompt": ["a"], "completion": ["b"]})), "train"),
    ],
)
def test_only_a_data_set_can_be_read(tokenizer, dataset, message):
    with pytest.raises(REFUSED, match=rf"(?i){message}.*dataset|dataset.*{message}"):
        pyreft.make_examples(dataset, tokenizer)


@pytest.mark.parametrize("max_length", [0, -1, 1, 1.5, "8"])
def test_a_max_length_without_room_is_refused(tokenizer, max_length):
    rows = Dataset.from_dict({"prompt": ["ab"], "completion": ["c" * 20]})
    with pytest.raises(REFUSED, match=f"max_length.*{max_length}"):
        pyreft.make_examples(rows, tokenizer, max_length=max_length)


def test_what_is_cut_from_a_stream_is_stated_too(tokenizer, caplog):
    rows = Dataset.from_dict({"prompt": ["hello"], "completion": ["x" * 20]})
    (made,) = pyreft.make_examples(rows.to_iterable_dataset(), tokenizer, max_length=12)
    assert len(made["input_ids"]) == 12
    assert "cut" in caplog.text and "max_length" in caplog.text


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["source"], "no column 'source' to keep; the data set has .*'labels'"),
        (["labels"], "labels"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(tokenizer, keep, message):
    rows = Dataset.from_dict({"prompt": ["a"], "completion": ["b"], "labels": ["c"]})
    with pytest.raises(REFUSED, match=message) as caught:
        pyreft.make_examples(rows, tokenizer, keep_columns=keep)
    assert "mix" not in str(caught.value)  # pyarrow's, of a column that is there twice


def test_a_tokenizer_without_a_template_says_so(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    rows = Dataset.from_dict({"messages": [[user("a"), assistant("b")]]})
    with pytest.raises(ValueError, match=r"row 0.*chat_template"):
        pyreft.make_examples(rows, tokenizer)


def test_a_template_that_renders_answers_otherwise_is_refused(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    rows = Dataset.from_dict({"messages": [[user("a"), assistant("b")]]})
    with pytest.raises(ValueError, match="row 0: the chat template renders an answer differently"):
        pyreft.make_examples(rows, tokenizer)


# ---- the collator --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_an_example_with_every_label_minus_100_is_refused_whatever_holds_it(collate, make):
    bad = {"input_ids": make([3, 4]), "labels": make([-100, -100])}
    with pytest.raises(ValueError, match="example 1 of the batch has no label but -100"):
        collate([example(), bad])


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "empty|no example"),
        ([{"labels": [3]}], "input_ids"),
        ([{"input_ids": [3, 4], "labels": [-100, 4, 5]}], "labels"),
        ([example(), {"input_ids": [3, 4]}], "labels"),
        ([example(id=1), example()], "id"),
        ([example(), example(id=1)], "id"),
        ([example(intervention_locations=[0])], "list of positions for each intervention"),
        ([example(intervention_locations="l1")], "intervention_locations"),
        ([example(intervention_locations=[[0.5]])], "intervention_locations"),
        (
            [example(intervention_locations=[[0]]), example(intervention_locations=[[0], [1]])],
            "positions for different numbers of interventions",
        ),
    ],
)
def test_examples_that_make_no_batch_are_refused(collate, examples, message):
    with pytest.raises(REFUSED, match=message):
        collate(examples)


@pytest.mark.parametrize("column", ["completion_mask", "position_ids", "token_type_ids"])
def test_columns_of_one_value_a_token_are_padded(collate, column):
    short, long = {column: [0, 1, 1]}, {column: [0, 0, 1, 1, 1]}
    batch = collate([example(3, **short), example(5, **long)])
    assert batch[column][0, :3].tolist() == [0, 1, 1]
    assert batch[column][1].tolist() == [0, 0, 1, 1, 1]


def test_interventions_of_an_example_may_have_different_numbers_of_positions(collate):
    batch = collate([example(intervention_locations=[[0], [1, 2]])])
    assert batch["intervention_locations"].tolist() == [[[0, -100], [1, 2]]]


def test_a_class_for_each_example_is_a_label_too(collate):
    texts = [{"input_ids": [3, 4], "labels": 1}, {"input_ids": [3, 4, 5], "labels": 0}]
    assert collate(texts)["labels"].tolist() == [1, 0]
