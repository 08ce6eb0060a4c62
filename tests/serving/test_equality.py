"""Engines of vLLM that use all that they have, against ReftModel: token for token."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from vllm_server import PYTHON, SIZES

import pyreft
from conftest import make_base

pytestmark = pytest.mark.serving
ROOT = Path(pyreft.__file__).parents[1]


@pytest.mark.parametrize(
    ("options", "counters"),
    [
        (["--requests", "200"], ["num_preemptions", "prefix_cache_hits"]),
        (["--requests", "80", "--drafts", "3"], ["spec_decode_num_accepted_tokens"]),
        (["--requests", "80", "--processes", "2"], ["num_preemptions"]),
        (["--requests", "80", "--compile"], ["num_preemptions", "compiled_models"]),
    ],
    ids=["whole", "speculative", "tensor_parallel", "compiled"],
)
def test_random_requests_for_random_adapters_get_the_tokens_of_reft_model(
    tmp_path, options, counters
):
    if not PYTHON:
        pytest.skip("PYREFT_VLLM_PYTHON is not set")
    make_base("llama", **SIZES).save_pretrained(tmp_path)
    command = [PYTHON, str(ROOT / "examples/serving/equality.py"), "--model", str(tmp_path)]
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    out = subprocess.run(
        [*command, *options], env=os.environ | settings, capture_output=True, text=True
    )
    assert out.returncode == 0, (out.stdout + out.stderr)[-4000:]
    count = options[1]
    assert f"{count} of {count} requests have the tokens of ReftModel" in out.stdout
    for name in counters:
        assert float(re.search(rf"{name}: (.*)", out.stdout)[1]) > 0, out.stdout
