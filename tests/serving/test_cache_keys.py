"""The keys of blocks in the prefix cache: equal where the same tokens are edited alike."""

from types import SimpleNamespace

import pytest

import pyreft
from conftest import make_base, randomize
from pyreft.serving import cache_keys
from pyreft.serving.registry import Registry, join_path
from pyreft.serving.sources import read_source, write_parts

BLOCK = 4


class Request:
    """What the scheduler's requests have."""

    def __init__(self, adapter, length):
        self.lora_request, self.num_prompt_tokens = adapter, length
        self.prompt_token_ids = list(range(length))


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    """Adapters by their positions, as an engine has read them."""
    monkeypatch.setattr(cache_keys, "REGISTRY", registry := Registry())
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=make_base("llama").config),
        lora_config=SimpleNamespace(max_cpu_loras=5),
    )
    made = {}
    for number, spec in enumerate(["l1", "f2+l2", "prompt", "all", "f1"], 1):
        model = pyreft.get_reft_model(
            make_base("llama"), pyreft.ReftConfig(layers=[0], positions=spec, rank=2)
        )
        randomize(model, 1.0, seed=number).save_pretrained(tmp_path / str(number))
        copy = tmp_path / f"copy{number}"
        write_parts(copy, read_source(str(tmp_path / str(number)), {}))
        registry.get(str(copy), config)
        made[spec] = SimpleNamespace(lora_int_id=number, lora_path=str(copy))
    return made


def keys(adapter, length, blocks):
    request = Request(adapter, length)
    return [cache_keys.keys_of_block(request, i * BLOCK, (i + 1) * BLOCK) for i in range(blocks)]


@pytest.mark.parametrize(
    ("spec", "keyed"),
    [
        ("l1", [False, False, True, False]),
        ("f2+l2", [True, False, True, False]),
        ("prompt", [True, True, True, False]),
        ("all", [True, True, True, True]),
        ("f1", [True, False, False, False]),
    ],
)
def test_a_block_has_a_key_where_a_token_of_it_is_edited(adapters, spec, keyed):
    assert [bool(key) for key in keys(adapters[spec], 11, 4)] == keyed


def test_a_longer_prompt_shares_what_is_edited_alike(adapters):
    short, long = (keys(adapters["l1"], length, 6) for length in (11, 19))
    assert short[:2] == long[:2] == [[], []] and short[2] != long[2]
    assert keys(adapters["all"], 11, 6) == keys(adapters["all"], 19, 6)
    assert keys(adapters["f1"], 11, 6) == keys(adapters["f1"], 19, 6)


def test_two_adapters_share_no_block_with_an_edited_token(adapters):
    keyed = {spec: keys(adapter, 11, 4) for spec, adapter in adapters.items()}
    for spec, mine in keyed.items():
        for other, theirs in keyed.items():
            for one, two in zip(mine, theirs, strict=True):
                assert spec == other or one != two or one == two == []


def test_requests_without_an_adapter_of_ours_have_no_key(adapters):
    assert keys(None, 11, 2) == [[], []]
    lora = SimpleNamespace(lora_int_id=77, lora_path="lora")
    assert keys(lora, 11, 2) == [[], []] and not cache_keys.is_served(Request(lora, 11))


def test_the_tokens_of_a_beam_are_no_prompt(adapters):
    path = join_path(adapters["l1"].lora_path, 6)
    found = keys(SimpleNamespace(lora_int_id=1, lora_path=path), 11, 3)
    assert found == keys(adapters["l1"], 6, 3) and found[1] and not found[2]
