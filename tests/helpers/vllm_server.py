"""A server of vLLM on localhost with adapters, and the models that it must agree with.

vLLM is in an environment of its own; PYREFT_VLLM_PYTHON is its python.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import pyreft
from conftest import make_base, randomize
from test_docs import bytes_tokenizer

PYTHON = os.environ.get("PYREFT_VLLM_PYTHON")
# Heads of 32 features are the smallest that vLLM has for CPUs.
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 258}
SIZES["max_position_embeddings"] = 512
ADAPTERS = {
    "last": {"kind": "loreft", "layers": [1, 2], "positions": "l1", "rank": 4},
    "ends": {"kind": "noreft", "layers": [0, 3], "positions": "f2+l2", "rank": 3},
    "untied": {"kind": "loreft", "layers": [1], "positions": "f3+l3", "rank": 2, "tied": False},
    "prompt": {"kind": "direft", "layers": [1], "positions": "prompt", "rank": 2},
    "all": {"kind": "lobireft", "layers": [2], "positions": "all", "rank": 5},
    "first": {"kind": "nodireft", "layers": [2], "positions": "f1", "rank": 4},
    "explicit": {"kind": "consreft", "layers": [0, 1], "positions": [0, 6, -1], "rank": 2},
    "mlp": {"layers": [2], "positions": "l3", "rank": 2, "component": "mlp_output"},
    "value": {"layers": [1], "positions": "l2", "rank": 2, "component": "value_output"},
    "heads": {
        "layers": [2],
        "positions": "f2+l2",
        "rank": 2,
        "component": "head_attention_value_output",
    },
    "input": {"layers": [1], "positions": "f2+l1", "rank": 3, "component": "block_input"},
}
NEW_TOKENS = 10


class Server:
    """The server, and the models that it must agree with.

    Args:
        folder: Where the base model and the adapters are.
        names: Those of ADAPTERS that it loads at the start.
        options: Options of `pyreft serve` and `vllm serve`.
    """

    def __init__(self, folder, names=(), options=()):
        self.folder = folder
        make_base("llama", **SIZES).save_pretrained(folder / "base")
        bytes_tokenizer().save_pretrained(folder / "base")
        self.models = {name: self.save(name, i) for i, name in enumerate(ADAPTERS)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        fixed = ["--dtype", "float32", "--max-model-len", "256", "--block-size", "32"]
        fixed += ["--distributed-executor-backend", "uni", "--enforce-eager"]
        fixed += ["--enable-prompt-tokens-details", "--port", str(self.port)]
        command = [PYTHON, "-m", "pyreft", "serve", str(folder / "base")]
        command += [f"{name}={folder / name}" for name in names]
        command += ["--load", *options, *fixed]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        here = {"PYTHONPATH": str(Path(pyreft.__file__).parents[1]), "VLLM_NO_USAGE_STATS": "1"}
        (folder / "temporary").mkdir()
        here["TMPDIR"] = str(folder / "temporary")
        self.log = folder / "server.txt"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | settings | here,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def save(self, name, seed, **config):
        base = LlamaForCausalLM.from_pretrained(self.folder / "base")
        config = pyreft.ReftConfig(**(ADAPTERS.get(name, {}) | config))
        model = randomize(pyreft.get_reft_model(base, config), 1.0, seed=seed).eval()
        model.save_pretrained(self.folder / name)
        return model

    def wait(self):
        end = time.monotonic() + 600
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return self.get("/health")
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(self.log.read_text()[-5000:])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=300) as answer:
            return answer.read().decode()

    def post(self, path, **body):
        """(status, what the server answers)."""
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, name, prompt, **options):
        """Completions of a prompt, each the ids of its tokens, and the number of cached tokens."""
        model = str(self.folder / "base") if name is None else name
        options = {"max_tokens": NEW_TOKENS, "temperature": 0, "ignore_eos": True} | options
        options |= {"return_token_ids": True}
        status, text = self.post("/v1/completions", model=model, prompt=prompt, **options)
        assert status == 200, text
        answer = json.loads(text)
        details = answer["usage"].get("prompt_tokens_details") or {}
        tokens = [choice["token_ids"] for choice in answer["choices"]]
        return tokens, details.get("cached_tokens") or 0

    def expected(self, name, prompt, count=NEW_TOKENS, **options):
        """The tokens that ReftModel generates; the base model, without a name."""
        model = self.models[name or "last"]
        ids = torch.tensor([prompt])
        options |= {"max_new_tokens": count, "eos_token_id": None, "do_sample": False}
        # A generated token of a conversation may be the one that pads.
        options["attention_mask"] = torch.ones_like(ids)
        with model.disable_adapter() if name is None else nullcontext():
            out = model.generate(input_ids=ids, **options)
        return out[0, len(prompt) :].tolist()

    def copies(self):
        """The copies of loaded adapters."""
        (folder,) = (self.folder / "temporary").glob("pyreft-*")
        return [path for path in folder.iterdir() if path.is_dir()]

    def counted(self, metric):
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(metric)]
        return sum(float(line.split()[-1]) for line in lines)


@contextmanager
def running(folder, names=(), options=()):
    """A server, inside the block."""
    if not PYTHON:
        pytest.skip("PYREFT_VLLM_PYTHON is not set")
    made = Server(folder, names, options)
    try:
        made.wait()
        yield made
    finally:
        made.stop()


def prompts(count, seed=0):
    """Prompts of which some begin alike."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = int(torch.randint(7, 110, (1,), generator=random))
        ids = torch.randint(3, 256, (length,), generator=random).tolist()
        made.append(ids if index % 3 else (made[-1][:70] if made else []) + ids)
    return made
