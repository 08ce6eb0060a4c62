"""Rows of every layout, and the errors of data that is not there."""

import json

import pytest

import sources
from glue_rows import read_glue
from sources import DataError, read_rows, require_fields
from tasks import GLUE


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.suffix == ".jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))


def test_llm_adapters_rows_are_read_without_white_space(tmp_path):
    row = {"instruction": " Is it?\n", "input": "", "output": "\nyes ", "answer": "true"}
    write(tmp_path / "mine" / "test.json", [row])
    found = read_rows("mine", "test", tmp_path, validates=False)
    assert found == [{"instruction": "Is it?", "input": "", "output": "yes", "answer": "true"}]


def test_gsm8k_and_mawps_have_the_same_fields(tmp_path):
    question = {"question": "How many?", "answer": "Two and <<2+2=4>>two.\n#### 1,004"}
    write(tmp_path / "gsm8k" / "train.jsonl", [question])
    sum_ = {"original_text": "2 and 2 .", "equation": "X=(2.0 + 2.0)", "ans": 4.0}
    write(tmp_path / "mawps" / "trainset.json", [sum_])
    (gsm8k,) = read_rows("gsm8k", "train", tmp_path, validates=False)
    assert gsm8k["answer"] == "1004"
    assert gsm8k["output"].endswith("The final answer is: 1,004")
    (mawps,) = read_rows("mawps", "train", tmp_path, validates=False)
    assert mawps["output"] == "X=(2.0+2.0). The answer is 4."
    assert mawps["answer"] == "4"


def test_a_data_set_without_a_validation_set_holds_out_its_last_rows(tmp_path):
    rows = [{"instruction": f"q{i}", "answer": "a1"} for i in range(sources.HELD_OUT + 7)]
    write(tmp_path / "mine" / "train.json", rows)
    train = read_rows("mine", "train", tmp_path, validates=True)
    held_out = read_rows("mine", "validation", tmp_path, validates=True)
    assert [r["instruction"] for r in train + held_out] == [r["instruction"] for r in rows]
    assert len(train) == 7
    assert read_rows("mine", "train", tmp_path, validates=False) == train + held_out

    write(tmp_path / "mine" / "validation.json", rows[:2])
    assert len(read_rows("mine", "train", tmp_path, validates=True)) == len(rows)
    assert len(read_rows("mine", "validation", tmp_path, validates=True)) == 2


def test_too_few_rows_to_hold_some_out_are_an_error(tmp_path):
    write(tmp_path / "mine" / "train.json", [{"instruction": "q", "answer": "a"}])
    with pytest.raises(DataError, match="mine has 1 rows to train on and no validation set"):
        read_rows("mine", "validation", tmp_path, validates=True)


def test_a_missing_file_says_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"no test set of boolq; looked for boolq/test.json"):
        read_rows("boolq", "test", tmp_path, validates=False)
    with pytest.raises(DataError, match=r"no .*RTE/train.tsv"):
        read_glue("rte", "train", tmp_path, GLUE["rte"])


def test_a_row_without_its_fields_is_named(tmp_path):
    write(tmp_path / "mine" / "test.json", [{"instruction": "q", "answer": "a"}, {"answer": "b"}])
    with pytest.raises(DataError, match=r"row 1 of .*test.json .* the fields \['answer'\]"):
        read_rows("mine", "test", tmp_path, validates=False)


def test_what_is_not_local_is_read_from_llm_adapters_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LLM_ADAPTERS", str(tmp_path))
    write(tmp_path / "dataset" / "boolq" / "test.json", [{"instruction": "q", "answer": "true"}])
    write(
        tmp_path / "ft-training_set" / "commonsense_170k.json",
        [{"instruction": "t", "answer": "a"}],
    )
    assert read_rows("boolq", "test", None, validates=False)[0]["instruction"] == "q"
    assert read_rows("commonsense_170k", "train", None, validates=False)[0]["answer"] == "a"


def test_glue_is_read_in_its_own_layout(tmp_path):
    (tmp_path / "CoLA").mkdir()
    (tmp_path / "CoLA" / "train.tsv").write_text('gj04\t1\t\tHe said "so.\nbc01\t0\t*\tSo he.\n')
    rows = read_glue("cola", "train", tmp_path, GLUE["cola"])
    assert rows.to_list() == [
        {"first": 'He said "so.', "label": 1},
        {"first": "So he.", "label": 0},
    ]
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B" / "dev.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t3.75\n")
    (row,) = read_glue("stsb", "validation", tmp_path, GLUE["stsb"]).to_list()
    assert row == {"first": "a", "second": "b", "label": 3.75}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence1\tlabel\na\tentailment\n", "no column 'sentence2'"),
        ("sentence1\tsentence2\tlabel\na\tb\tperhaps\n", "the label 'perhaps'"),
    ],
)
def test_glue_files_that_lack_something_are_refused(text, message, tmp_path):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_glue("rte", "train", tmp_path, GLUE["rte"])


def test_values_keep_their_meaning_and_empty_ones_are_named(tmp_path):
    rows = [{"instruction": "q", "answer": 0}, {"instruction": "q", "answer": False}]
    write(tmp_path / "mine" / "test.json", [*rows, {"instruction": "2020-01-01"}])
    found = read_rows("mine", "test", tmp_path, validates=False)
    assert [row["answer"] for row in found] == ["0", "false", ""]
    assert found[2]["instruction"] == "2020-01-01"
    with pytest.raises(DataError, match="row 2 of mine has no answer"):
        require_fields(found, ["answer"], "mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot read"),
        ("", "must hold rows"),
        ("[1, 2]", "must hold rows"),
        ('[{"question": "q", "answer": "4"}]', 'row 0 of .*no "####"'),
        ('[{"question": null, "answer": null}]', "row 0 of"),
        ('[{"original_text": "q", "equation": "x", "ans": "many"}]', "row 0 of"),
    ],
)
def test_a_file_that_holds_no_rows_is_refused(content, message, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "test.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows("mine", "test", tmp_path, validates=False)


def test_the_validation_set_of_mawps_is_found(tmp_path):
    row = {"original_text": "q", "equation": "x=1", "ans": 1.0}
    for name in ("trainset", "validset"):
        write(tmp_path / "mawps" / f"{name}.json", [{**row, "original_text": name}])
    (found,) = read_rows("mawps", "validation", tmp_path, validates=True)
    assert found["instruction"] == "validset"


def test_rows_of_glue_that_are_cut_off_are_counted(tmp_path):
    (tmp_path / "RTE").mkdir()
    lines = ["sentence1\tsentence2\tlabel", "a\tb\tentailment", "torn"]
    (tmp_path / "RTE" / "train.tsv").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="1 of 2 rows of .*train.tsv are left out"):
        assert len(read_glue("rte", "train", tmp_path, GLUE["rte"])) == 1
