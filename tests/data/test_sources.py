"""Where rows come from: files of each format, directories, memory; and what is refused."""

import json
import pathlib

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

import pyreft

ROWS = [{"prompt": f"say {letter}", "completion": letter} for letter in "abcd"]
FIELDS = {"prompt_field": "prompt", "completion_field": "completion"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def build(tokenizer, data_path=None, task="task", **changes):
    arguments = FIELDS | changes
    return pyreft.ReftGenerationDataset(task, data_path, tokenizer, **arguments)


def texts(data):
    return [data.tokenizer.decode(example["input_ids"]) for example in data]


EXPECTED = [f"say {letter}{letter}<eos>" for letter in "abcd"]


def write(path):
    if path.suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif path.suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    else:
        pd.DataFrame(ROWS).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_file_is_read_by_its_suffix(tokenizer, tmp_path, suffix, kind):
    path = write(tmp_path / f"rows.{suffix}")
    assert texts(build(tokenizer, kind(path), data_split="test")) == EXPECTED


def test_a_directory_of_files_has_splits(tokenizer, tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl")
    assert texts(build(tokenizer, tmp_path / "data")) == EXPECTED
    assert texts(build(tokenizer, task=str(tmp_path / "data"))) == EXPECTED


def test_cells_of_a_table_are_text_whatever_they_say(tokenizer, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nwhat,NA\nwho,null\n")
    assert texts(build(tokenizer, path)) == ["whatNA<eos>", "whonull<eos>"]


def test_a_quotation_mark_in_a_tab_separated_file_swallows_nothing(tokenizer, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text('prompt\tcompletion\n"Hi, she said\tx\nwho\t"y"\n')
    assert texts(build(tokenizer, path)) == ['"Hi, she saidx<eos>', 'who"y"<eos>']


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        Dataset.from_list(ROWS),
        pd.DataFrame(ROWS),
        DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])),
    ],
    ids=["list", "datasets", "pandas", "splits"],
)
def test_rows_in_memory(tokenizer, rows):
    assert texts(build(tokenizer, dataset=rows)) == EXPECTED


def test_a_column_that_the_first_row_lacks_is_kept(tokenizer):
    data = pyreft.ReftRawDataset(
        None,
        None,
        tokenizer,
        dataset=[{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d", "e": 1}],
    )
    assert data.task_dataset[1]["e"] == 1


def test_the_raw_data_set_takes_a_file_too(tokenizer, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    assert texts(pyreft.ReftRawDataset("task", str(path), tokenizer)) == ["ab<eos>"]


def test_a_choice_of_rows_is_random_and_repeats_with_the_seed(tokenizer):
    rows = [{"prompt": "a", "completion": str(i)} for i in range(50)]
    first, again, other = (
        texts(build(tokenizer, dataset=rows, max_n_example=10, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(build(tokenizer, dataset=rows, max_n_example=60)) == 50


@pytest.mark.parametrize("path", ["missing.json", "./missing", "data/train", "missing.CSV"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tokenizer, path):
    with pytest.raises(FileNotFoundError, match="there is no file or directory"):
        build(tokenizer, path)


def test_a_file_of_another_kind_is_refused(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "rows.txt").write_text("say a")
    monkeypatch.chdir(tmp_path)
    for path in ("rows.txt", tmp_path / "rows.txt"):
        with pytest.raises(ValueError, match=r"files end in \.json, \.jsonl, \.csv, \.tsv"):
            build(tokenizer, path)


def test_a_broken_file_says_what_is_wrong_with_it(tokenizer, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a"')
    with pytest.raises(ValueError, match=r"cannot read .*rows\.json' as json: ."):
        build(tokenizer, path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": Dataset.from_list(ROWS).to_iterable_dataset()}, TypeError, "make_examples"),
        ({"dataset": "rows"}, TypeError, "a list of dicts, got str"),
        ({"dataset": []}, ValueError, "the data set is empty"),
        ({"dataset": {"test": ROWS}}, ValueError, "no split 'train'; the data set has .*test"),
        ({"task": None}, ValueError, "there is no data"),
        (
            {"dataset": ROWS, "prompt_field": "question"},
            ValueError,
            "no column 'question'; it has prompt, completion",
        ),
        ({"dataset": ROWS, "share_weight": True}, TypeError, "no argument 'share_weight'"),
        ({"dataset": [{"prompt": "a", "completion": None}]}, ValueError, "row 0: the completion"),
        (
            {"dataset": [{"prompt": "", "completion": "b"}]},
            ValueError,
            "row 0: the prompt",
        ),
        ({"dataset": ROWS, "position": "q"}, ValueError, "cannot read 'q'"),
    ],
)
def test_bad_input_is_refused(tokenizer, changes, error, message):
    with pytest.raises(error, match=message):
        build(tokenizer, **changes)


def test_an_argument_that_names_no_column_is_missed(tokenizer):
    with pytest.raises(TypeError, match="ReftGenerationDataset needs completion_field="):
        pyreft.ReftGenerationDataset("t", None, tokenizer, dataset=ROWS, prompt_field="prompt")
