"""A server over a long time: adapters that come and go, and processes that die."""

import os
import shutil
import signal
import threading
import time

import psutil
import pytest
from vllm_server import prompts, running

pytestmark = pytest.mark.serving
NAMES = ["last", "ends", "all"]
LOADS = int(os.environ.get("PYREFT_SERVING_LOADS", "1000"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    options = ["--in-step", "4", "--in-memory", "6", "--max-num-seqs", "8"]
    with running(tmp_path_factory.mktemp("served"), NAMES, options) as made:
        yield made


def processes(server):
    return psutil.Process(server.process.pid).children(recursive=True)


def memory(server):
    """Bytes of all processes of the server."""
    return sum(one.memory_info().rss for one in processes(server))


def test_many_loads_under_traffic_leave_tokens_and_memory_as_they_were(server):
    ids = prompts(6, seed=3)
    expected = {name: [server.expected(name, one) for one in ids] for name in NAMES}
    coming = ["first", "prompt", "untied", "mlp"]
    expected |= {name: [server.expected(name, one) for one in ids] for name in coming}
    ended, wrong, answered = threading.Event(), [], [0]

    def traffic(name):
        while not ended.is_set():
            for one, tokens in zip(ids, expected[name], strict=True):
                found = server.complete(name, one)[0]
                answered[0] += 1
                if found != [tokens]:
                    wrong.append((name, one, found))

    threads = [threading.Thread(target=traffic, args=(name,)) for name in NAMES]
    for one in threads:
        one.start()
    used = []
    try:
        for turn in range(LOADS):
            name = coming[turn % 4]
            body = {"lora_name": f"new{turn % 7}", "lora_path": str(server.folder / name)}
            status, text = server.post("/v1/load_lora_adapter", **body)
            assert status == 200, text
            if turn % 5 == 0:
                index = turn % len(ids)
                found = server.complete(body["lora_name"], ids[index])[0]
                assert found == [expected[name][index]]
            status, text = server.post("/v1/unload_lora_adapter", lora_name=body["lora_name"])
            assert status == 200, text
            if (turn + 1) % (LOADS // 4) == 0:
                used.append(memory(server) / 2**20)
    finally:
        ended.set()
        for one in threads:
            one.join()
    print(f"{LOADS} loads, {answered[0]} requests; MiB {' '.join(f'{one:.0f}' for one in used)}")
    assert not wrong and answered[0] > LOADS / 10
    # What an adapter takes in a process, and never gave back, would be more.
    assert LOADS < 1000 or used[-1] - used[1] < 30
    assert len(server.copies()) == len(NAMES)


@pytest.mark.parametrize("victim", ["engine", "server"])
def test_a_killed_process_comes_back_with_its_adapters(server, victim):
    ids = prompts(2, seed=4)
    shutil.copytree(server.folder / "first", server.folder / victim)
    for name, source in ((victim, str(server.folder / victim)), (f"{victim}2", "ends*0.5+last")):
        status, text = server.post("/v1/load_lora_adapter", lora_name=name, lora_path=source)
        assert status == 200, text
    shutil.rmtree(server.folder / victim)
    mixed = [server.complete(f"{victim}2", one)[0] for one in ids]
    (main,) = psutil.Process(server.process.pid).children()
    engine = next(one for one in main.children(recursive=True) if "EngineCore" in one.name())
    (engine if victim == "engine" else main).send_signal(signal.SIGKILL)
    begun = time.monotonic()
    main.wait(60)
    server.wait()
    print(f"{victim} back after {time.monotonic() - begun:.0f} s")
    for name in (*NAMES, victim):
        expected = [[server.expected("first" if name == victim else name, one)] for one in ids]
        assert [server.complete(name, one)[0] for one in ids] == expected
    assert [server.complete(f"{victim}2", one)[0] for one in ids] == mixed
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
