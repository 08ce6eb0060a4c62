"""A real server of vLLM on localhost, against ReftModel: token for token.

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import pyreft
from conftest import make_base, randomize

PYTHON = os.environ.get("PYREFT_VLLM_PYTHON")
pytestmark = pytest.mark.serving
# Heads of 32 features are the smallest that vLLM has for CPUs.
SIZES = {"hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 256}
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
    """

    def __init__(self, folder):
        self.folder = folder
        make_base("llama", **SIZES).save_pretrained(folder / "base")
        self.models = {name: self.save(name, i) for i, name in enumerate(ADAPTERS)}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        options = ["--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "256"]
        # Prompts come in chunks, and there are fewer blocks than long completions need.
        options += ["--max-num-batched-tokens", "48", "--max-num-seqs", "12", "--block-size", "32"]
        options += ["--num-gpu-blocks-override", "30", "--distributed-executor-backend", "uni"]
        options += ["--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details"]
        command = [PYTHON, "-m", "pyreft", "serve", str(folder / "base")]
        command += [f"{name}={folder / name}" for name in ADAPTERS if name != "first"]
        command += ["--load", "--in-step", "12", *options, "--port", str(self.port)]
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        here = {"PYTHONPATH": str(Path(pyreft.__file__).parents[1]), "VLLM_NO_USAGE_STATS": "1"}
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
        os.killpg(self.process.pid, signal.SIGTERM)
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

    def expected(self, name, prompt, count=NEW_TOKENS):
        """The tokens that ReftModel generates; the base model, without a name."""
        model = self.models[name or "last"]
        options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None}
        with model.disable_adapter() if name is None else nullcontext():
            out = model.generate(input_ids=torch.tensor([prompt]), **options)
        return out[0, len(prompt) :].tolist()

    def counted(self, metric):
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(metric)]
        return sum(float(line.split()[-1]) for line in lines)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if not PYTHON:
        pytest.skip("PYREFT_VLLM_PYTHON is not set")
    made = Server(tmp_path_factory.mktemp("served"))
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


def test_mixed_requests_get_the_tokens_of_reft_model(server):
    names = [name for name in ADAPTERS if name != "first"] + [None]
    requests = [(names[i % len(names)], ids) for i, ids in enumerate(prompts(66))]
    expected = [server.expected(*one) for one in requests]
    bare = [server.expected(None, ids) for _, ids in requests]
    assert sum(one != two for one, two in zip(expected, bare, strict=True)) > 40
    with ThreadPoolExecutor(24) as pool:
        for _ in range(2):
            found = list(pool.map(lambda one: server.complete(*one), requests))
            assert [tokens[0] for tokens, _ in found] == expected


def test_preempted_requests_go_on_with_the_same_tokens(server):
    # Their prompts fit into the cache together, and their completions do not.
    names = ["last", "all", "ends", None]
    requests = [(names[i % 4], ids[:50]) for i, ids in enumerate(prompts(12, seed=2))]
    expected = [server.expected(*one, count=90) for one in requests]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda one: server.complete(*one, max_tokens=90), requests))
    assert [tokens[0] for tokens, _ in found] == expected
    assert server.counted("vllm:num_preemptions_total") > 0


def test_a_conversation_that_goes_on_is_edited_at_its_new_end(server):
    for name in ("last", "ends", "prompt", "all", "explicit"):
        ids = prompts(1, seed=7)[0]
        for _ in range(4):
            tokens, _ = server.complete(name, ids)
            assert tokens == [server.expected(name, ids)]
            ids = ids + tokens[0] + prompts(1, seed=len(ids))[0][:20]


def test_what_lies_before_the_first_edited_token_is_shared(server):
    ids = prompts(1, seed=11)[0] * 4
    ids = ids[:150]
    server.complete("last", ids)
    for name, least, most in (("mlp", 96, 128), (None, 96, 128), ("prompt", 0, 0), ("all", 0, 0)):
        tokens, cached = server.complete(name, ids)
        assert least <= cached <= most, name
        assert tokens == [server.expected(name, ids)]


def test_several_completions_and_streams(server):
    ids = prompts(1, seed=5)[0]
    tokens, _ = server.complete("ends", ids, n=3, temperature=1e-6)
    assert tokens == [server.expected("ends", ids)] * 3
    body = {"model": "ends", "prompt": ids, "max_tokens": NEW_TOKENS, "temperature": 0}
    body |= {"stream": True, "ignore_eos": True, "return_token_ids": True}
    _, text = server.post("/v1/completions", **body)
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    streamed = [t for e in events for c in e["choices"] for t in c["token_ids"] or []]
    assert streamed == server.expected("ends", ids)


def test_adapters_come_and_go_while_others_are_served(server):
    ids = prompts(8, seed=3)
    expected = [server.expected("last", one) for one in ids]

    def others():
        return [server.complete("last", one)[0][0] for one in ids]

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(others) for _ in range(3)]
        for _ in range(5):
            path = str(server.folder / "first")
            status, text = server.post("/v1/load_lora_adapter", lora_name="new", lora_path=path)
            assert status == 200, text
            assert server.complete("new", ids[0])[0] == [server.expected("first", ids[0])]
            assert "new" in [one["id"] for one in json.loads(server.get("/v1/models"))["data"]]
            assert server.post("/v1/unload_lora_adapter", lora_name="new")[0] == 200
            assert server.post("/v1/completions", model="new", prompt=ids[0])[0] == 404
        assert all(one.result() == expected for one in running)


def test_an_adapter_is_replaced_by_other_weights_in_its_directory(server):
    ids, path = prompts(1, seed=9)[0], str(server.folder / "changing")
    for seed in (50, 51):
        server.models["changing"] = server.save("changing", seed, layers=[1], positions="f5")
        body = {"lora_name": "changing", "lora_path": path, "load_inplace": seed == 51}
        assert server.post("/v1/load_lora_adapter", **body)[0] == 200
        assert server.complete("changing", ids)[0] == [server.expected("changing", ids)]


def test_bad_requests_are_answered_with_the_reason_and_the_server_goes_on(server, tmp_path):
    config = pyreft.ReftConfig(layers=[0], positions="l1", rank=2)
    pyreft.get_reft_model(make_base("llama"), config).save_pretrained(tmp_path / "small")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/reft_config.json").write_text('{"format_version": "2.0"}')
    (tmp_path / "damaged/reft_model.safetensors").write_bytes(b"\xff" * 100)
    for path, reason in (("small", "is an adapter for"), ("damaged", "cannot read"), ("no", "no")):
        body = {"lora_name": "bad", "lora_path": str(tmp_path / path)}
        status, text = server.post("/v1/load_lora_adapter", **body)
        assert status == 400 and reason in text
    status, text = server.post("/v1/completions", model="nobody", prompt=[5, 6])
    assert status == 404 and "last, ends" in text
    status, text = server.post("/v1/completions", model="explicit", prompt=[5, 6])
    assert status == 400 and "position 6 is outside the prompt" in text
    ids = prompts(1)[0]
    assert server.complete("explicit", ids)[0] == [server.expected("explicit", ids)]
