"""make_examples: prompts and completions, and chats, become training examples."""

import pytest
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import pyreft
from pyreft.data.tokenize import tokenize_pair

PAIRS = {"prompt": ["2+2=", "hello "], "completion": ["4", "you"], "source": ["a", "b"]}
CHAT = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "ok?"},
    {"role": "assistant", "content": "no"},
]


def split(tokenizer, example):
    """(prompt, completion) as text."""
    ids, labels = example["input_ids"], example["labels"]
    cut = next(i for i, label in enumerate(labels) if label != -100)
    assert labels == [-100] * cut + ids[cut:]
    return tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])


def test_labels_are_on_the_completion_alone(tokenizer):
    made = pyreft.make_examples(Dataset.from_dict(PAIRS), tokenizer)
    assert [split(tokenizer, one) for one in made] == [("2+2=", "4<eos>"), ("hello ", "you<eos>")]
    assert made.column_names == ["input_ids", "labels"]


def test_every_assistant_turn_is_an_example_with_all_before_it_as_prompt(tokenizer):
    made = pyreft.make_examples(Dataset.from_dict({"messages": [CHAT]}), tokenizer)
    first = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    second = tokenizer.apply_chat_template(CHAT[:3], tokenize=False, add_generation_prompt=True)
    assert [split(tokenizer, one) for one in made] == [(first, "yo<eos>\n"), (second, "no<eos>\n")]


def test_a_chat_prompt_has_the_tokens_that_generate_will_see(tokenizer):
    made = pyreft.make_examples(Dataset.from_dict({"messages": [CHAT[:2]]}), tokenizer)
    seen = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True)["input_ids"]
    assert made[0]["input_ids"][: len(seen)] == seen


def test_prompts_and_completions_may_be_messages(tokenizer):
    rows = {"prompt": [CHAT[:3]], "completion": [CHAT[3:]]}
    made = pyreft.make_examples(Dataset.from_dict(rows), tokenizer)
    assert len(made) == 1
    assert split(tokenizer, made[0])[1] == "no<eos>\n"


def test_fields_that_a_message_does_not_have_are_not_there_for_the_template(tokenizer):
    asks = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    rows = [{"messages": CHAT}, {"messages": [*CHAT[:1], asks]}]
    made = pyreft.make_examples(Dataset.from_list(rows).select([0]), tokenizer)
    expected = pyreft.make_examples(Dataset.from_list([{"messages": CHAT}]), tokenizer)
    assert made["input_ids"] == expected["input_ids"]


def test_a_message_without_content_is_refused(tokenizer):
    silent = [{"role": "user", "content": None}, CHAT[1]]
    with pytest.raises(ValueError, match="row 0: a message has no content"):
        pyreft.make_examples(Dataset.from_list([{"messages": silent}]), tokenizer)


def test_a_stream_without_rows_is_refused(tokenizer):
    with pytest.raises(ValueError, match="the data set is empty"):
        pyreft.make_examples(IterableDataset.from_generator(lambda: iter([])), tokenizer)


@pytest.mark.parametrize("given", [None, "gpt2"])
def test_a_name_is_no_tokenizer(given):
    with pytest.raises(TypeError, match="AutoTokenizer"):
        pyreft.make_examples(Dataset.from_dict(PAIRS), given)


def test_columns_can_be_renamed_and_kept(tokenizer):
    rows = Dataset.from_dict(PAIRS).rename_columns({"prompt": "q", "completion": "a"})
    made = pyreft.make_examples(
        rows, tokenizer, prompt_column="q", completion_column="a", keep_columns=["source"]
    )
    assert made["source"][:] == ["a", "b"]


def test_columns_of_a_chat_are_kept_in_all_its_examples(tokenizer):
    rows = Dataset.from_dict({"messages": [CHAT], "source": ["a"]})
    made = pyreft.make_examples(rows, tokenizer, keep_columns=["source"])
    assert made["source"][:] == ["a", "a"]


def test_processes_change_nothing(tokenizer):
    rows = Dataset.from_dict(PAIRS)
    alone = pyreft.make_examples(rows, tokenizer)
    assert pyreft.make_examples(rows, tokenizer, num_proc=2)[:] == alone[:]


def test_the_result_is_cached(tokenizer, tmp_path, monkeypatch):
    Dataset.from_dict(PAIRS).save_to_disk(tmp_path / "rows")
    rows = Dataset.load_from_disk(tmp_path / "rows")
    first = pyreft.make_examples(rows, tokenizer)
    monkeypatch.setattr("pyreft.data.examples.tokenize_pair", None)  # would fail if called
    again = pyreft.make_examples(rows, tokenizer)
    assert again[:] == first[:]


def test_streaming_data_sets_stream(tokenizer):
    def rows():
        yield {"prompt": "2+2=", "completion": "4"}

    made = pyreft.make_examples(IterableDataset.from_generator(rows), tokenizer)
    assert split(tokenizer, next(iter(made))) == ("2+2=", "4<eos>")


def test_a_long_completion_is_cut_and_the_cut_is_stated(tokenizer, caplog):
    rows = Dataset.from_dict({"prompt": ["hello"], "completion": ["x" * 20]})
    made = pyreft.make_examples(rows, tokenizer, max_length=12)
    assert split(tokenizer, made[0]) == ("hello", "x" * 7)
    assert "1 of 1 examples were cut to fit max_length=12, by 14 tokens" in caplog.text


def test_a_token_across_the_border_does_not_change_the_prompt(tokenizer):
    class Merging:
        """Reads "ab" as one token, as subword tokenizers do."""

        eos_token_id, sep_token_id = 1, None

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [9 if t == "Z" else ord(t) for t in text.replace("ab", "Z")]}

        def decode(self, ids):
            return "".join(map(chr, ids))

    ids, prompt_length = tokenize_pair(Merging(), "xa", "by", add_eos=True)
    assert ids == [ord("x"), ord("a"), ord("b"), ord("y"), 1]
    assert prompt_length == 2


def closing(prefix_space):
    """A tokenizer that opens and closes every text, and may put a space before it."""
    words = {"<s>": 0, "</s>": 1, "\u2581": 2, "a": 3, "b": 4, "c": 5, "ab": 6, "\n": 7}
    fast = Tokenizer(models.BPE(words, [("a", "b")]))
    scheme = "first" if prefix_space else "never"
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("prefix_space", [True, False])
@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("c", "ab", ["c", "ab", "</s>"]),
        ("ca", "bc", ["c", "a", "b", "c", "</s>"]),  # a token would span the border
        ("c", "b</s>", ["c", "b", "</s>"]),  # ended already
    ],
)
def test_prompts_are_opened_and_not_closed(prefix_space, prompt, completion, expected):
    fast = closing(prefix_space)
    ids, prompt_length = tokenize_pair(fast, prompt, completion)
    opened = ["<s>", "\u2581"] if prefix_space else ["<s>"]
    assert fast.convert_ids_to_tokens(ids) == [*opened, *expected]
    assert prompt_length == len(opened) + len(prompt)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["a"]}, "it needs 'prompt' and 'completion', or 'messages'"),
        ({"prompt": ["a", ""], "completion": ["b", "c"]}, "row 1: the prompt is empty"),
        ({"prompt": ["a", "b"], "completion": ["b", ""]}, "row 1: the completion is empty"),
        ({"prompt": ["a" * 80], "completion": ["b"]}, "row 0: the prompt has 80 tokens"),
        ({"messages": [CHAT[:1]]}, "row 0: the chat has no turn of the assistant"),
        ({"messages": [CHAT[1:2]]}, "row 0: the chat begins with the assistant"),
    ],
)
def test_rows_that_teach_nothing_are_named(tokenizer, rows, message):
    with pytest.raises(ValueError, match=message):
        pyreft.make_examples(Dataset.from_dict(rows), tokenizer)
