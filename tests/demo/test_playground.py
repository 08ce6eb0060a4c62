"""What a playground answers, marks and refuses, without a page."""

import itertools
import threading
import time

import pytest
import torch
from encoder_decoder_models import make
from playground_of import ask, make_playground, save_adapter
from transformers import AutoModelForCausalLM

from conftest import make_base
from pyreft import AdapterError, ReftConfig, ReftModel, edit_strengths, get_reft_model
from pyreft.data.prompts import encode_prompt
from pyreft.demo import Playground
from pyreft.demo.choice import Choice, edited, layers_of
from pyreft.demo.turn import Turn

PROMPT = "what do dogs like?"


@pytest.fixture
def playground(tmp_path):
    return make_playground(tmp_path)


@pytest.fixture
def adapter(playground, tmp_path):
    return playground.read(save_adapter(playground.base, tmp_path / "adapter"))


def answer(playground, model, new_tokens=6):
    """What a model answers by `generate` itself."""
    inputs = encode_prompt(playground.tokenizer, [{"role": "user", "content": PROMPT}])
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return playground.tokenizer.decode(new, skip_special_tokens=True)


def test_answers_are_those_of_the_base_model_and_of_the_adapter(playground, adapter, tmp_path):
    found = ask(playground, PROMPT, Choice(adapter))
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    assert found.base == answer(playground, bare)
    model = ReftModel.from_pretrained(bare, tmp_path / "adapter")
    assert found.adapter == answer(playground, model) != found.base
    inputs = encode_prompt(playground.tokenizer, [{"role": "user", "content": PROMPT}])
    expected = edit_strengths(model, playground.tokenizer, inputs)
    assert found.marked.tokens == expected.tokens
    torch.testing.assert_close(found.marked.strength, expected.strength, equal_nan=True)


def test_answers_come_while_they_are_generated(playground, adapter):
    steps = list(playground.ask(PROMPT, Choice(adapter), 12))
    assert steps[0].marked is not None
    assert len({step.base for step in steps}) > 3
    assert len({step.adapter for step in steps}) > 3
    for before, after in itertools.pairwise(steps):
        assert after.base.startswith(before.base)
        assert after.adapter.startswith(before.adapter)


def test_without_an_adapter_the_base_model_answers_alone(playground):
    found = ask(playground, PROMPT)
    assert found.base
    assert (found.adapter, found.marked) == ("", None)


def test_strength_is_the_weight_of_the_edits(playground, adapter, tmp_path):
    whole, half = (ask(playground, PROMPT, Choice(adapter, s)) for s in (1.0, 0.5))
    first = [m.marked.strength[:, 0].nan_to_num() for m in (whole, half)]
    torch.testing.assert_close(first[1], first[0] / 2, rtol=1e-4, atol=1e-6)
    model = ReftModel.from_pretrained(playground.base, tmp_path / "adapter")
    model.set_adapter("default", [0.5])
    assert half.adapter == answer(playground, model)
    model.unwrap()
    none = ask(playground, PROMPT, Choice(adapter, 0.0))
    assert none.adapter == none.base
    assert not none.marked.edited.any()


def test_a_layer_that_is_off_is_not_edited(playground, tmp_path):
    saved = save_adapter(playground.base, tmp_path / "both")
    alone = save_adapter(playground.base, tmp_path / "alone", layers=[3], positions="f1+l2", rank=2)
    both = playground.read(saved)
    assert layers_of(both) == [1, 3]
    found = ask(playground, PROMPT, Choice(both, off=frozenset({1})))
    assert not found.marked.edited[:, 0].any()
    assert found.marked.edited[:, 1].sum() == 3
    key = "layer_3_comp_block_output_unit_pos_nunit_1#0"
    with edited(playground.base, Choice(both)) as model:
        weights = model.interventions[key].state_dict()
    with edited(playground.base, Choice(playground.read(alone))) as model:
        # An adapter of that layer alone, with the same weights.
        model.interventions[key].load_state_dict(weights)
        assert found.adapter == answer(playground, model)
    none = ask(playground, PROMPT, Choice(both, off=frozenset({1, 3})))
    assert none.adapter == none.base


def test_a_trained_head_is_not_seen_by_the_base_model(playground, tmp_path):
    before = ask(playground, PROMPT).base
    saved = save_with_head(playground.base, tmp_path / "head")
    found = ask(playground, "who?", Choice(playground.read(saved)))
    assert found.adapter != found.base
    playground.bare_answers.clear()
    assert ask(playground, PROMPT).base == before
    assert not any(parameter.requires_grad for parameter in playground.base.parameters())


@torch.no_grad()
def save_with_head(base, directory):
    config = ReftConfig(layers=[1], positions="l1", rank=2, modules_to_save=["lm_head"])
    model = get_reft_model(base, config)
    model.model.lm_head.weight.mul_(-1)
    model.save_pretrained(directory)
    model.unwrap()
    return directory


def test_users_do_not_see_what_others_chose(playground, tmp_path):
    adapters = [
        playground.read(save_adapter(playground.base, tmp_path / str(seed), seed=seed))
        for seed in (1, 2, 3)
    ]
    choices = [None, *(Choice(a) for a in adapters), Choice(adapters[0], 0.5)]
    choices.append(Choice(adapters[1], off=frozenset({1})))
    alone = [ask(playground, PROMPT, choice, 10) for choice in choices]
    marks = [str(one.marked) for one in alone]
    assert len(set(marks)) == len(choices)
    playground.bare_answers.clear()
    together = [None] * len(choices)

    def user(index):
        together[index] = ask(playground, PROMPT, choices[index], 10)

    threads = [threading.Thread(target=user, args=(i,)) for i in range(len(choices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together, strict=True):
        assert (found.base, found.adapter) == (expected.base, expected.adapter)
        assert str(found.marked) == str(expected.marked)


def test_the_turn_goes_round():
    turn, order = Turn(), []

    def ask_often(name):
        for _ in range(3):
            with turn:
                order.append(name)

    turn.acquire()
    threads = [threading.Thread(target=ask_often, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    while turn._next < 3:
        time.sleep(0.001)
    turn.release()
    for thread in threads:
        thread.join()
    # Both waited, so the second has its first turn before the first has its second.
    assert order[0] != order[1]


def test_a_request_that_is_closed_ends(playground, adapter):
    asked = playground.ask(PROMPT, Choice(adapter), 400)
    next(asked)
    asked.close()
    # The next one gets its turn, and what was cut short is not kept as the answer.
    assert ask(playground, PROMPT, Choice(adapter)).adapter
    assert list(playground.bare_answers) == [(PROMPT, 6)]


def test_the_base_model_is_as_it_was(playground, adapter):
    before = {name: tensor.clone() for name, tensor in playground.base.state_dict().items()}
    ask(playground, PROMPT, Choice(adapter))
    for module in playground.base.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for name, tensor in playground.base.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("prompt", "message"), [(" \n", "empty"), ("a long text " * 9000, "at most 2,042")]
)
def test_a_prompt_that_cannot_be_answered_is_refused(playground, adapter, prompt, message):
    with pytest.raises(ValueError, match=message):
        ask(playground, prompt, Choice(adapter))
    assert ask(playground, PROMPT).base, "the turn is given back"


def test_an_adapter_for_another_model_is_refused(playground, tmp_path):
    other = make_base("llama", vocab_size=99, num_hidden_layers=4, hidden_size=64)
    with pytest.raises(AdapterError, match="hidden_size 64"):
        playground.read(save_adapter(other, tmp_path / "other"))
    assert ask(playground, PROMPT).base


def test_an_adapter_without_positions_is_refused(playground, tmp_path):
    saved = save_adapter(
        playground.base,
        tmp_path / "adapter",
        representations=[{"layer": 1, "low_rank_dimension": 2}],
    )
    with pytest.raises(AdapterError, match="--positions"):
        playground.read(saved)


def test_an_encoder_decoder_is_refused(tmp_path):
    make("t5", vocab_size=300).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="causal language models"):
        Playground.load(str(tmp_path))


def test_a_strength_that_is_no_number_is_refused(playground, adapter):
    with pytest.raises(ValueError, match="finite"):
        ask(playground, PROMPT, Choice(adapter, float("nan")))
    assert ask(playground, PROMPT, Choice(adapter)).adapter
