"""What a server answers to adapters and requests that mean it no good: an error, and it goes on."""

import asyncio
import json
import random
import resource
import shutil
from contextlib import suppress

import pytest
from hostile import CASES
from test_hostile import make_model
from transformers import LlamaForCausalLM
from vllm_server import prompts, running

pytestmark = pytest.mark.serving
CONNECTIONS = 10_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("served"), ["last"], ["--in-memory", "64"]) as made:
        yield made


def goes_on(server):
    for ids in prompts(2, seed=41):
        assert server.complete("last", ids)[0] == [server.expected("last", ids)]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of PEFT
@pytest.mark.parametrize("which", CASES)
def test_hostile_adapters_are_refused_with_the_reason(server, tmp_path, which):
    base = LlamaForCausalLM.from_pretrained(server.folder / "base")
    make_model(which, base).save_pretrained(tmp_path / which)
    for name, damage in CASES[which].items():
        directory = tmp_path / "adapter"
        shutil.copytree(tmp_path / which, directory)
        damage(directory)
        body = {"lora_name": "bad", "lora_path": str(directory)}
        status, text = server.post("/v1/load_lora_adapter", **body)
        assert status == 400, (name, text)
        assert 0 < len(json.loads(text)["error"]["message"]) < 3000, name
        if directory.is_symlink() or directory.is_file():
            directory.unlink()
        else:
            shutil.rmtree(directory)
    assert len(server.copies()) == 1
    goes_on(server)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"lora_name": "a", "lora_path": ""}, "must be provided"),
        ({"lora_name": "a", "lora_path": "last*"}, "finite weights"),
        ({"lora_name": "a", "lora_path": "last*0.5+nobody"}, "nobody"),
        ({"lora_name": "a", "lora_path": "a\0b"}, "a"),
        ({"lora_name": "a", "lora_path": "x" * 10_000}, "x"),
        ({"lora_name": "last", "lora_path": "last"}, "already been loaded"),
    ],
)
def test_what_names_no_adapter_is_refused(server, body, message):
    status, text = server.post("/v1/load_lora_adapter", **body)
    assert status == 400 and message in json.loads(text)["error"]["message"]
    goes_on(server)


def nonsense(choose):
    """Bytes that a client might send."""
    body = choose.choice(
        [
            b"",
            b"{",
            b"null",
            b"[" * 500,
            choose.randbytes(200),
            json.dumps({"model": "nobody", "prompt": "x"}).encode(),
            json.dumps({"model": ["last"], "prompt": {"a": 1}}).encode(),
            json.dumps({"model": "last", "prompt": [10**9], "max_tokens": 1}).encode(),
            json.dumps({"model": "last", "prompt": [], "max_tokens": 1}).encode(),
            json.dumps({"model": "last", "prompt": [5, 6], "max_tokens": -5}).encode(),
        ]
    )
    path = choose.choice(
        [b"/v1/completions", b"/v1/load_lora_adapter", b"/v1/unload_lora_adapter", b"/nothing"]
    )
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" % path
    length = len(body) + choose.choice([0, 0, 0, 7])
    whole = head + b"Content-Length: %d\r\n\r\n" % length + body
    return choose.choice([whole, whole, whole, whole[: choose.randrange(len(whole))], body])


def test_thousands_of_connections_with_nonsense(server):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    choose, answers, opened = random.Random(0), [], []

    async def one(gate, data):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        opened.append(writer)
        writer.write(data)
        await gate.wait()  # all are open at one time
        with suppress(asyncio.TimeoutError, ConnectionError):
            answers.append(await asyncio.wait_for(reader.read(64), 1))
        writer.close()

    async def everyone():
        gate = asyncio.Event()
        tasks = []
        for index in range(CONNECTIONS):
            tasks.append(asyncio.create_task(one(gate, nonsense(choose))))
            if index % 200 == 0:
                await asyncio.sleep(0.05)
        while len(opened) < CONNECTIONS and not any(task.done() for task in tasks):
            await asyncio.sleep(0.1)
        gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        failures = [one for one in asyncio.run(everyone()) if one is not None]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    print(f"{len(opened)} connections at one time, {len(failures)} were refused")
    assert len(opened) > CONNECTIONS // 2
    assert not any(answer.startswith(b"HTTP/1.1 5") for answer in answers)
    goes_on(server)
