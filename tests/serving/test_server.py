"""A real server of vLLM on localhost, against ReftModel: token for token."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers import LlamaForCausalLM
from vllm_server import ADAPTERS, NEW_TOKENS, prompts, running

import pyreft
from conftest import make_base

pytestmark = pytest.mark.serving
# Prompts come in chunks, and there are fewer blocks than long completions need. There are more
# adapters than are kept in memory.
OPTIONS = ["--in-step", "6", "--in-memory", "8", "--max-num-batched-tokens", "48"]
OPTIONS += ["--max-num-seqs", "12", "--num-gpu-blocks-override", "30", "--enable-prefix-caching"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    names = [name for name in ADAPTERS if name != "first"]
    with running(tmp_path_factory.mktemp("served"), names, OPTIONS) as made:
        yield made


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


def test_combinations_come_and_go_with_their_adapters(server):
    ids = prompts(1, seed=13)[0]
    for seed in (60, 61):
        server.models["moving"] = server.save("moving", seed, layers=[0, 2], positions="prompt")
        body = {"lora_name": "moving", "lora_path": str(server.folder / "moving")}
        assert server.post("/v1/load_lora_adapter", **body, load_inplace=seed == 61)[0] == 200
        base = LlamaForCausalLM.from_pretrained(server.folder / "base")
        model = pyreft.ReftModel.from_pretrained(base, server.folder / "last")
        model.load_adapter(server.folder / "moving", "moving")
        server.models["both"] = model
        for name, weights in (("last*0.5+moving", [0.5, 1.0]), ("moving*-1 + last", [1.0, -1.0])):
            model.set_adapter(["default", "moving"], weights)
            expected = server.expected("both", ids)
            assert expected != server.expected("last", ids)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda _: server.complete(name, ids)[0], range(4)))  # noqa: B023
            assert found == [[expected]] * 4
    assert "last*0.5+moving" in server.get("/v1/models")
    assert server.post("/v1/unload_lora_adapter", lora_name="moving")[0] == 200
    assert "last*0.5+moving" not in server.get("/v1/models")
    for name in ("last*0.5+moving", "last+last", "last*x", "last+", "+" * 5000):
        status, text = server.post("/v1/completions", model=name, prompt=ids)
        assert status == 404 and "Adapters: last, " in text, name
    # Of as many as are in memory the last ones stay loaded.
    for index in range(12):
        server.complete(f"last*{index}+ends", ids, max_tokens=1)
    listed = [one["id"] for one in json.loads(server.get("/v1/models"))["data"]]
    assert [name for name in listed if "*" in name] == [f"last*{i}+ends" for i in range(4, 12)]


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
