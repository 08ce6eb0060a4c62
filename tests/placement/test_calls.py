"""How a ReftModel is called: both conventions, threads, and ways of generating it cannot know."""

import threading
import types

import pytest
import torch
from reft import cache_of, passing
from transformers import MambaConfig, MambaForCausalLM

from conftest import VOCAB, enlarge, make_base, randomize
from pyreft import ReftConfig, ReftModel, get_reft_model
from pyreft.placement import batch

IDS = torch.arange(3, 11)[None]


def wrap(base=None, **config):
    config = ReftConfig(**{"positions": "l1", "rank": 2} | config)
    model = get_reft_model(make_base("llama") if base is None else base, config).eval()
    return randomize(model, 0.2)


@torch.no_grad()
def logits(model, *args, **kwargs):
    outputs = model(*args, **kwargs)
    return (outputs[1] if isinstance(outputs, tuple) else outputs).logits


def test_explicit_positions_and_boundaries_reach_a_batch_given_as_a_dict():
    model = wrap()
    explicit = torch.tensor([[[0]]] * 1).expand(1, 3, 1)
    mask = (torch.arange(8) > 3).long()[None]
    for given in ({"intervention_locations": explicit}, {"completion_mask": mask}):
        expected = logits(model, input_ids=IDS, **given)
        assert torch.equal(logits(model, {"input_ids": IDS}, **given), expected)
        assert not torch.equal(expected, logits(model, input_ids=IDS))
    settings = {"max_new_tokens": 3, "do_sample": False, "intervention_locations": explicit}
    _, ids = model.generate({"input_ids": IDS}, **settings)
    assert torch.equal(ids, model.generate(IDS, **settings))


@pytest.mark.parametrize("name", ["unit_locations", "sources", "source_representations"])
def test_upstreams_arguments_need_upstreams_convention(name):
    model = wrap()
    with pytest.raises(TypeError, match=f"{name} belongs to upstream's convention"):
        model(input_ids=IDS, **{name: None})
    with pytest.raises(TypeError, match=f"{name} belongs to upstream's convention"):
        model.generate(input_ids=IDS, **{name: None})


def test_threads_do_not_see_each_others_edits():
    model, wrong = wrap(), []

    def work(end):
        mask = (torch.arange(8) >= end).long()[None]
        expected = reference[end]
        for _ in range(40):
            if not torch.equal(logits(model, input_ids=IDS, completion_mask=mask), expected):
                wrong.append(end)

    masks = {end: (torch.arange(8) >= end).long()[None] for end in (2, 6)}
    reference = {e: logits(model, input_ids=IDS, completion_mask=m) for e, m in masks.items()}
    threads = [threading.Thread(target=work, args=(end,)) for end in masks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_subspaces_hold_after_a_filled_cache():
    model = wrap(positions="all")
    whole = logits(model, input_ids=IDS, subspaces=[0])
    cache = cache_of(model(input_ids=IDS[:, :5], use_cache=True, subspaces=[0]))
    rest = logits(model, input_ids=IDS[:, 5:], **passing(cache, model), subspaces=[0])
    torch.testing.assert_close(rest, whole[:, 5:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("positions", ["f1+l1", "all"])
def test_a_state_that_does_not_count_is_counted_by_the_steps(positions):
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = wrap(enlarge(MambaForCausalLM(config).eval()), positions=positions)
    settings = {"max_new_tokens": 5, "do_sample": False, "output_logits": True}
    settings["return_dict_in_generate"] = True
    cached, whole = (model.generate(IDS, use_cache=c, **settings) for c in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(cached.logits, whole.logits, rtol=0, atol=1e-4)


def test_a_call_on_a_state_that_does_not_count_needs_no_number_or_is_refused():
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    model = wrap(MambaForCausalLM(config).eval(), positions="f1")
    state = model(IDS, use_cache=True).cache_params
    with pytest.raises(ValueError, match=r"which does not count its tokens"):
        model(IDS[:, :1], cache_params=state)


def test_ways_of_generating_with_texts_of_their_own_are_refused():
    with pytest.raises(ValueError, match="a ReftModel cannot be used with it"):
        wrap().generate(IDS, max_new_tokens=3, guidance_scale=1.5, do_sample=False)


def test_a_name_without_its_last_letter_is_refused():
    for call in (wrap(), wrap().generate):
        with pytest.raises(TypeError, match="no argument adapter_name, but adapter_names"):
            call(IDS, adapter_name=["default"])


def test_an_adapter_on_an_adapter_is_refused():
    with pytest.raises(TypeError, match="has an adapter already"):
        get_reft_model(wrap(), ReftConfig())


def test_a_path_and_a_name_of_one_place_must_be_disjoint():
    representations = [
        {"layer": 1, "low_rank_dimension": 2, "positions": "l1"},
        {"component": "model.layers[1].output", "low_rank_dimension": 2, "positions": "l1"},
    ]
    with pytest.raises(ValueError, match="two interventions edit one token"):
        ReftModel(ReftConfig(representations=representations), make_base("llama"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_moved_to_another_type_comes_back_exactly(dtype, tmp_path, kind):
    model = wrap(kind=kind).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = ReftModel.from_pretrained(make_base("llama").to(dtype), tmp_path)
    assert torch.equal(logits(loaded, input_ids=IDS), logits(model, input_ids=IDS))


# ---- forward itself ------------------------------------------------------------------------------


def test_forward_edits_as_a_call_does():
    model = wrap()
    labels = IDS.masked_fill(torch.arange(8) < 4, -100)
    mask = (torch.arange(8) > 2).long()[None]
    for inputs in ({"labels": labels}, {"completion_mask": mask}):
        expected = logits(model, IDS, **inputs)
        with torch.no_grad():
            assert torch.equal(model.forward(IDS, **inputs).logits, expected)
        assert not torch.equal(expected, logits(model, IDS))
    with torch.no_grad():
        assert model.forward({"input_ids": IDS})[1].logits.shape == expected.shape


def test_a_forward_that_a_trainer_put_in_its_place_is_edited():
    """It keeps the labels, and runs the backbone with a head of its own, as TRL's does."""
    model = wrap()
    labels = IDS.masked_fill(torch.arange(8) < 4, -100)
    expected = logits(model, IDS, labels=labels)

    def scored(self, input_ids, labels):
        hidden = self.base_model(input_ids).last_hidden_state
        return types.SimpleNamespace(logits=self.get_output_embeddings()(hidden))

    model.forward = types.MethodType(scored, model)
    assert torch.equal(logits(model, IDS, labels=labels), expected)
    with model.disable_adapter():
        assert torch.equal(logits(model, IDS, labels=labels), logits(make_base("llama"), IDS))


@pytest.mark.parametrize("positions", ["l1", "all"])
def test_training_without_labels_says_what_the_prompt_then_is(positions, caplog):
    model = wrap(positions=positions).train()
    batch.logger.warning_once.cache_clear()
    told = {"completion_mask": (torch.arange(8) > 3).long()[None]}
    model(IDS, **told)
    model(IDS, labels=IDS.masked_fill(torch.arange(8) < 4, -100))
    logits(model, IDS)
    assert not caplog.text
    model(IDS)
    assert ("each whole row is taken as a prompt" in caplog.text) == (positions == "l1")
