"""What a request to a server may ask for beside tokens: it stays right with adapters."""

import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM
from vllm_server import NEW_TOKENS, prompts, running

import pyreft
from test_docs import bytes_tokenizer

pytestmark = pytest.mark.serving
# Adapters make room for each other all the time.
OPTIONS = ["--in-step", "2", "--in-memory", "2", "--max-num-seqs", "4"]
NAMES = ["last", "ends", "prompt", "all", "explicit"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("served"), NAMES, OPTIONS) as made:
        yield made


def ask(server, name, ids, **options):
    body = {"model": name, "prompt": ids, "max_tokens": NEW_TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True} | options
    status, text = server.post("/v1/completions", **body)
    assert status == 200, text
    return json.loads(text)["choices"]


def logits_of(server, name, ids, count):
    """Of the tokens after a prompt, when the rest of the ids was generated."""
    model = server.models[name]
    out = model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.cat(out.logits).log_softmax(-1)


def test_log_probabilities_are_those_of_reft_model(server):
    for name in NAMES:
        ids = prompts(1, seed=21)[0]
        (choice,) = ask(server, name, ids, logprobs=3)
        expected = logits_of(server, name, ids, NEW_TOKENS)
        tokens = torch.tensor(choice["token_ids"])
        chosen = expected.gather(1, tokens[:, None])[:, 0]
        found = torch.tensor(choice["logprobs"]["token_logprobs"])
        torch.testing.assert_close(found, chosen, atol=1e-3, rtol=1e-3)


def test_log_probabilities_of_the_prompt_are_those_of_the_edited_model(server):
    ids = prompts(1, seed=22)[0]
    for name in ("ends", "prompt", "explicit"):
        for _ in range(2):  # the second one may find cached blocks
            (choice,) = ask(server, name, ids, prompt_logprobs=0)
            pairs = zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)
            found = [one[str(token)]["logprob"] for token, one in pairs]
            logits = server.models[name](torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            expected = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found), expected, atol=1e-3, rtol=1e-3)


def test_a_completion_ends_at_a_stop_string(server):
    tokenizer, seen = bytes_tokenizer(), 0
    for name in NAMES:
        # Of letters alone: what bytes that are no text decode to depends on those beside them.
        ids = tokenizer(f"What do {name} like, and why is it so?").input_ids
        expected = server.expected(name, ids, 40)
        texts = [tokenizer.decode([token]) for token in expected]
        index = next((i for i, text in enumerate(texts) if i > 2 and "!" <= text <= "~"), None)
        if index is None or texts[index] in texts[:index]:
            continue
        (choice,) = ask(server, name, ids, max_tokens=40, stop=[texts[index]])
        assert choice["token_ids"] == expected[: index + 1]
        assert choice["finish_reason"] == "stop" and choice["stop_reason"] == texts[index]
        seen += 1
    assert seen > 1


@pytest.mark.parametrize("name", NAMES)
def test_structured_output_is_that_of_constrained_generation(server, name):
    ids = prompts(1, seed=23)[0]
    digits = bytes_tokenizer()("0123456789").input_ids
    allowed = {"prefix_allowed_tokens_fn": lambda batch, tokens: digits}
    expected = server.expected(name, ids, 8, **allowed)
    regex = {"regex": "[0-9]{8}"}
    (choice,) = ask(server, name, ids, max_tokens=8, structured_outputs=regex)
    assert choice["token_ids"] == expected


@pytest.mark.parametrize("name", NAMES)
def test_beams_are_those_of_reft_model(server, name):
    ids = prompts(1, seed=24)[0]
    found = ask(server, name, ids, n=3, max_tokens=6, use_beam_search=True, return_token_ids=False)
    out = server.models[name].generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=6,
        num_beams=3,
        num_return_sequences=3,
        do_sample=False,
        eos_token_id=None,
    )
    expected = [bytes_tokenizer().decode(row[len(ids) :]) for row in out]
    assert [choice["text"] for choice in found] == expected


def test_several_adapters_are_loaded_under_a_name(server):
    base = LlamaForCausalLM.from_pretrained(server.folder / "base")
    model = pyreft.ReftModel.from_pretrained(base, server.folder / "ends")
    model.load_adapter(server.folder / "all", "all")
    server.models["mix"] = model
    for name, source, weights in (
        ("half", "ends*0.5+all", [0.5, 1.0]),
        ("paths", f"{server.folder / 'ends'}*-1+all*0.25", [-1.0, 0.25]),
    ):
        status, text = server.post("/v1/load_lora_adapter", lora_name=name, lora_path=source)
        assert status == 200, text
        model.set_adapter(["default", "all"], weights)
        for ids in prompts(4, seed=25):
            for _ in range(2):
                assert server.complete(name, ids)[0] == [server.expected("mix", ids)]
                assert server.complete("all", ids)[0] == [server.expected("all", ids)]


def test_a_loaded_adapter_needs_its_directory_no_more(server):
    shutil.copytree(server.folder / "first", server.folder / "moving")
    body = {"lora_name": "moving", "lora_path": str(server.folder / "moving")}
    assert server.post("/v1/load_lora_adapter", **body)[0] == 200
    shutil.rmtree(server.folder / "moving")
    ids = prompts(3, seed=26)
    for name in ("moving", "last", "ends", "all", "moving", "prompt", "last", "ends", "moving"):
        expected = [server.expected("first" if name == "moving" else name, one) for one in ids]
        assert [server.complete(name, one)[0][0] for one in ids] == expected


def test_each_adapter_has_metrics(server):
    ids = prompts(1, seed=27)[0]
    shutil.copytree(server.folder / "first", server.folder / "counted")
    body = {"lora_name": "counted", "lora_path": str(server.folder / "counted")}
    assert server.post("/v1/load_lora_adapter", **body)[0] == 200
    for _ in range(3):
        server.complete("counted", ids)
    for metric, value in (
        ("requests_total", 3),
        ("prompt_tokens_total", 3 * len(ids)),
        ("generated_tokens_total", 3 * NEW_TOKENS),
        ("time_to_first_token_seconds_count", 3),
        ("request_seconds_count", 3),
    ):
        assert server.counted(f'pyreft:{metric}{{adapter="counted"}}') == value, metric
    assert server.post("/v1/unload_lora_adapter", lora_name="counted")[0] == 200
    assert 'adapter="counted"' not in server.get("/metrics")
