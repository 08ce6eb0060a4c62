"""lm-evaluation-harness with an adapter: the log probabilities of answers to a question."""

import json
import os
import subprocess

import pytest
import torch
from vllm_server import PYTHON, SIZES

import pyreft
from conftest import make_base, randomize
from test_docs import ROOT, bytes_tokenizer

pytestmark = pytest.mark.serving
ROWS = [
    {"question": "What do cats like?", "answers": ["fish", "a long walk"], "right": 0},
    {"question": "And dogs?", "answers": ["a nap", "bones", "books"], "right": 1},
    {"question": "What is winter like, in the north and in the south?", "answers": ["x", "yz"]},
]
TASK = """
task: liked
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{answers}}}}"
doc_to_target: "{{{{right or 0}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.mark.parametrize("positions", ["l1", "f2+l2", "completion"])
def test_an_answer_is_compared_after_the_question_that_is_edited(tmp_path, positions):
    if not PYTHON:
        pytest.skip("PYREFT_VLLM_PYTHON is not set")
    base = make_base("llama", **SIZES)
    base.save_pretrained(tmp_path / "base")
    tokenizer = bytes_tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    config = pyreft.ReftConfig(layers=[1, 2], positions=positions, rank=4)
    model = randomize(pyreft.get_reft_model(base, config), 1.0).eval()
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    (tmp_path / "task").mkdir()
    (tmp_path / "task/liked.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    command = [PYTHON, str(ROOT / "examples/serving/evaluate.py"), "run", "--model", "pyreft"]
    model_args = f"pretrained={tmp_path / 'base'},adapter={tmp_path / 'adapter'},dtype=float32"
    command += ["--model_args", model_args, "--tasks", "liked", "--batch_size", "4"]
    command += ["--include_path", str(tmp_path / "task"), "--device", "cpu", "--log_samples"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "c")}
    out = subprocess.run(
        [*command, "--output_path", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, (out.stdout + out.stderr)[-4000:]
    (file,) = (tmp_path / "out").rglob("samples_liked*.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    assert [sample["doc"]["question"] for sample in samples] == [row["question"] for row in ROWS]
    for sample, row in zip(samples, ROWS, strict=True):
        for (found, _), answer in zip(sample["filtered_resps"], row["answers"], strict=True):
            question = tokenizer(row["question"]).input_ids
            ids = question + tokenizer(f" {answer}").input_ids
            labels = torch.tensor([ids])
            labels[0, : len(question)] = -100
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([ids]), labels=labels).loss
            count = len(ids) - len(question)
            assert float(found) == pytest.approx(-float(loss) * count, rel=1e-4)
