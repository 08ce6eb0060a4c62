"""A whole `ReftModel` that is compiled trains in one graph, with the numbers of plain code."""

import copy
import threading
import warnings

import pytest
import torch
from encoder_decoder_models import make
from reft import assert_same, batch, gradients, logits, no_dropout, wrap
from torch import nn

from conftest import make_base
from pyreft import ReftConfig, register_intervention

PLACES = {
    "separate weights": {"positions": "f2+l1", "tied": False, "component": "block_input"},
    "every token": {"positions": "all"},
    "indices": {"positions": "1+-1"},
    "heads": {"component": "head_attention_value_output", "heads": [1, 3]},
}


INPUTS = batch(make_base("llama"))


@pytest.fixture(autouse=True)
def quiet():
    """The compiler itself warns of this and that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()


def tiny(name="llama"):
    return no_dropout(make_base(name, num_hidden_layers=1)).train()


def compiled(model, **settings):
    return torch.compile(model, backend="aot_eager", **settings)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_training_is_one_graph(name):
    model, plain = wrap(tiny(name)), wrap(tiny(name))
    whole = compiled(model, fullgraph=True)
    for seed in range(3):
        inputs = batch(plain.model, seed)
        assert_same(gradients(whole, inputs), gradients(plain, inputs))


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_all_positions_and_components_are_one_graph(places):
    whole, plain = compiled(wrap(tiny(), **places), fullgraph=True), wrap(tiny(), **places)
    assert_same(gradients(whole, INPUTS), gradients(plain, INPUTS))


def test_an_encoder_decoder_is_one_graph():
    places = {"component": "decoder_block_output", "layers": [0]}
    model, plain = (wrap(make("t5"), **places) for _ in range(2))
    ids = torch.arange(3, 11).repeat(2, 1)
    inputs = {"input_ids": ids, "labels": ids[:, :5].contiguous()}
    assert_same(gradients(compiled(model, fullgraph=True), inputs), gradients(plain, inputs))


def test_positions_of_the_batch_are_one_graph():
    model, plain = wrap(tiny()), wrap(tiny())
    whole = compiled(model, fullgraph=True)
    for first in (0, 2):
        locations = torch.tensor([[[first, -1]], [[-1, -100]], [[2, -1]]])
        inputs = INPUTS | {"intervention_locations": locations}
        assert_same(gradients(whole, inputs), gradients(plain, inputs))


def test_several_active_adapters_are_one_graph():
    models = wrap(tiny()), wrap(tiny())
    for model in models:
        torch.manual_seed(3)
        model.add_adapter("other", ReftConfig(rank=2, positions="l1", layers=[0]))
        model.set_adapter({"default": 0.5, "other": 2.0})
    whole, plain = compiled(models[0], fullgraph=True), models[1]
    torch.testing.assert_close(logits(whole, INPUTS), logits(plain, INPUTS))
    with models[0].disable_adapter(), plain.disable_adapter():
        torch.testing.assert_close(logits(whole, INPUTS), logits(plain, INPUTS))


def test_a_copy_is_edited_as_itself():
    model = wrap(tiny())
    copied = copy.deepcopy(model)
    copied.set_adapter("default")
    copied.adapter_set.first.targets[:] = [
        target.at(target.positions.parse("l3")) for target in copied.adapter_set.first.targets
    ]
    for one in (model, copied):
        found = logits(compiled(one, fullgraph=True), INPUTS)
        torch.testing.assert_close(found, logits(one, INPUTS))


def test_a_wrong_batch_is_the_error_that_it_is_without():
    whole = compiled(wrap(tiny()), fullgraph=True)
    gradients(whole, INPUTS)
    wrong = INPUTS | {"labels": torch.full_like(INPUTS["labels"], -100)}
    with pytest.raises(ValueError, match="nothing ends the prompt of row 0"):
        whole(**wrong)


def test_layers_outside_of_any_graph_are_edited_all_the_same():
    model, plain = wrap(tiny()), wrap(tiny())
    layer = model.model.model.layers[0]
    plainly = {"__call__": torch.compiler.disable(nn.Module.__call__)}
    layer.__class__ = type("Plain", (type(layer),), plainly)
    assert_same(gradients(compiled(model), INPUTS), gradients(plain, INPUTS))


class Averaged(nn.Module):
    """A user's own module, which mixes the tokens that it is given."""

    def __init__(self, embed_dim, low_rank_dimension):
        super().__init__()
        self.map = nn.Linear(embed_dim, embed_dim)

    def forward(self, hidden):
        return hidden + self.map(hidden).mean(-2, keepdim=True)


def test_a_module_that_mixes_tokens_takes_more_graphs_and_gives_the_same():
    register_intervention("Averaged")(Averaged)
    model, plain = (wrap(tiny(), kind="Averaged") for _ in range(2))
    assert_same(gradients(compiled(model), INPUTS), gradients(plain, INPUTS))


def test_gradient_checkpointing_takes_more_graphs_and_gives_the_same():
    model, plain = wrap(tiny()), wrap(tiny())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients(compiled(model), INPUTS), gradients(plain, INPUTS))


def test_threads_do_not_see_the_edits_of_each_others_graphs():
    model = wrap(tiny())
    whole, others = compiled(model), {"intervention_locations": torch.tensor([[[2]]] * 3)}
    calls = [(model.model, INPUTS), (model, INPUTS | others), (whole, INPUTS | others)]
    expected = [logits(*call) for call in calls[:2]]
    edited, beside = logits(model, INPUTS), []

    def call(self, *args, **kwargs):
        if threading.current_thread() is threading.main_thread():
            work = threading.Thread(target=lambda: beside.extend(logits(*one) for one in calls))
            work.start()
            work.join()
        return nn.Module.__call__(self, *args, **kwargs)

    layer = model.model.model.layers[0]
    plainly = {"__call__": torch.compiler.disable(call)}
    layer.__class__ = type("Plain", (type(layer),), plainly)
    torch.testing.assert_close(logits(whole, INPUTS), edited)
    bare, *moved = beside
    assert torch.equal(bare, expected[0])
    for one in moved:
        torch.testing.assert_close(one, expected[1])
