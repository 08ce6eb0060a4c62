"""The edits of a step of an engine, on layers as vLLM has them, against ReftModel."""

import copy

import pytest
import torch

import pyreft
from conftest import CONSTANT, KINDS, VOCAB, make_base, randomize
from engine_layers import EngineLlama
from pyreft import memory
from pyreft.installed.vllm import TextInStep
from pyreft.interventions import slotted
from pyreft.serving import step
from pyreft.serving.loaded import LoadedAdapters
from pyreft.serving.places import Place, PlaceHooks
from pyreft.serving.registry import join_path
from pyreft.serving.served import ServedAdapter, build_base
from pyreft.serving.sources import read_source
from pyreft.sharing import AdapterError

CPU = torch.device("cpu")
COMPONENTS = [
    *("block_input", "block_output", "attention_input", "attention_output", "mlp_input"),
    *("mlp_output", "attention_value_output", "head_attention_value_output", "query_output"),
    *("key_output", "value_output"),
]
UPSTREAM = {"component": "block_output", "low_rank_dimension": 2}
IN_HEAD = {**UPSTREAM, "component": "lm_head.input", "positions": "l1"}
TEXTS = [
    torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (5, 21, 9, 40, 6)
]


def saved(tmp_path, number, **config):
    """An adapter in a directory, and the model that it is on."""
    model = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(**config))
    randomize(model, 0.5, seed=number).eval()
    model.save_pretrained(tmp_path / str(number))
    return model, str(tmp_path / str(number))


def served(source, structure=None, named=()):
    """An adapter, or several with weights, as an engine serves them."""
    structure = build_base(make_base("llama").config) if structure is None else structure
    return ServedAdapter(read_source(source, dict(named)), structure)


def loaded(directories, capacity=8):
    """An engine's model with these adapters, numbered from 1."""
    llama = make_base("llama")
    engine, structure = EngineLlama(copy.deepcopy(llama)), build_base(llama.config)
    hooks = PlaceHooks(engine.layers)
    adapters = LoadedAdapters(hooks, CPU, capacity)
    for number, directory in enumerate(directories, 1):
        adapters.add(number, served(directory, structure), set())
    return engine, hooks, adapters


def run(engine, hooks, adapters, texts, numbers):
    """Logits of each text, which one step computes."""
    here, offset = [], 0
    for index, (text, number) in enumerate(zip(texts, numbers, strict=True)):
        if number:
            where = (offset, 0, len(text))
            here.append(TextInStep(str(index), number, "", len(text), text, *where))
        offset += len(text)
    with hooks.editing(adapters.plan(here, offset)):
        logits = engine(texts)
    return logits.split([len(text) for text in texts])


def test_the_layers_compute_what_transformers_computes():
    engine, hooks, adapters = loaded([])
    for text, logits in zip(TEXTS, run(engine, hooks, adapters, TEXTS, [0] * 5), strict=True):
        expected = make_base("llama")(torch.tensor([text])).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("component", COMPONENTS)
def test_adapters_of_one_step_edit_as_reft_model_does(tmp_path, component):
    where = {"layers": [0, 1], "component": component}
    specs = ["l1", "f2+l2", "prompt", "l2"]
    made = [
        saved(tmp_path, i, kind=KINDS[i], rank=i + 1, positions=spec, **where)
        for i, spec in enumerate(specs)
    ]
    engine, hooks, adapters = loaded([directory for _, directory in made])
    numbers = [1, 2, 0, 3, 4]
    bare = make_base("llama")
    for text, number, logits in zip(
        TEXTS, numbers, run(engine, hooks, adapters, TEXTS, numbers), strict=True
    ):
        ids = torch.tensor([text])
        expected = (made[number - 1][0] if number else bare)(ids).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        if number:
            assert (expected - bare(ids).logits[0]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_edited_with_ranks_mixed(tmp_path, kind):
    made = [
        saved(tmp_path, i, kind=kind, layers=[1], positions="f1+l2", rank=rank, act_fn=act_fn)
        for i, (rank, act_fn) in enumerate(
            [(1, None), (5, None), (2, None if kind in CONSTANT else "silu")]
        )
    ]
    engine, hooks, adapters = loaded([directory for _, directory in made])
    found = run(engine, hooks, adapters, TEXTS[:3], [1, 2, 3])
    for (model, _), text, logits in zip(made, TEXTS[:3], found, strict=True):
        torch.testing.assert_close(
            logits, model(torch.tensor([text])).logits[0], atol=1e-3, rtol=1e-3
        )


def test_untouched_texts_are_bit_identical(tmp_path):
    _, directory = saved(tmp_path, 0, layers="all", positions="prompt", rank=2)
    engine, hooks, adapters = loaded([directory])
    alone = run(engine, hooks, adapters, TEXTS, [0] * 5)
    mixed = run(engine, hooks, adapters, TEXTS, [1, 0, 1, 0, 1])
    assert torch.equal(mixed[1], alone[1]) and torch.equal(mixed[3], alone[3])
    assert not torch.equal(mixed[0], alone[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in engine.modules())


def test_the_work_of_a_step_does_not_depend_on_the_number_of_adapters(tmp_path, monkeypatch):
    made = [saved(tmp_path, i, layers=[0, 2], positions="l1", rank=1 + i)[1] for i in range(4)]
    calls = []
    edit = slotted.edit_stacked

    def count(weights, hidden, *rest):
        calls.append(tuple(hidden.shape))
        return edit(weights, hidden, *rest)

    monkeypatch.setattr(slotted, "edit_stacked", count)
    engine, hooks, adapters = loaded(made)
    run(engine, hooks, adapters, TEXTS[:4], [1, 2, 3, 4])
    assert calls == [(4, 1, 32)] * 2  # one for each edited layer


COMBINED = {
    "a": {"kind": "loreft", "layers": [0, 1], "positions": "f2+l2", "rank": 2},
    "b": {"kind": "direft", "layers": [1, 2], "positions": "prompt", "rank": 3},
    "c": {"kind": "noreft", "layers": [1], "positions": "l1", "rank": 2, "act_fn": "silu"},
    "heads": {
        "component": "head_attention_value_output",
        "layers": [1],
        "positions": "l3",
        "rank": 2,
    },
    "value": {"layers": [1], "positions": "l2", "rank": 2, "component": "value_output"},
}


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["a", "b"], [0.5, 1.0]),
        (["a", "b", "c"], [1.0, -0.5, 2.0]),
        (["heads", "value"], [0.5, 1.5]),
        (["b"], [0.25]),
    ],
)
def test_several_adapters_of_one_request_are_summed_with_weights(tmp_path, names, weights):
    model = None
    for seed, (name, config) in enumerate(COMBINED.items()):
        config = pyreft.ReftConfig(**config)
        if model is None:
            model = pyreft.get_reft_model(make_base("llama"), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        model.set_adapter(name)
        randomize(model, 0.5, seed=seed)
    model.eval().save_pretrained(tmp_path)
    parts = [f"{tmp_path / name}*{w}" for name, w in zip(names, weights, strict=True)]
    engine, hooks, adapters = loaded([str(tmp_path / "b"), " + ".join(parts), str(tmp_path / "a")])
    numbers = [1, 2, 0, 2, 3]
    found = run(engine, hooks, adapters, TEXTS, numbers)
    for text, number, logits in zip(TEXTS, numbers, found, strict=True):
        ids = torch.tensor([text])
        if number == 2:
            model.set_adapter(names, weights)
        elif number:
            model.set_adapter("b" if number == 1 else "a")
        if number:
            torch.testing.assert_close(logits, model(ids).logits[0], atol=1e-3, rtol=1e-3)


def test_a_beam_is_edited_in_its_prompt_alone(tmp_path):
    _, directory = saved(tmp_path, 0, layers=[0], positions="l1", rank=2)
    _, _, adapters = loaded([directory])
    text = TextInStep("a", 1, join_path("copy", 4), 7, list(range(7)), 0, 0, 7)
    (edits,) = adapters.plan([text], 7)[Place(0, "", "output", False, 32)]
    assert edits.calls[0].slots.scatter.tolist() == [3]


def test_a_step_edits_what_it_has_of_a_prompt(tmp_path):
    _, directory = saved(tmp_path, 0, layers=[0], positions="f2+l1", rank=2)
    _, _, adapters = loaded([directory])
    edited = []
    for start in range(0, 12, 4):
        stop = start + 4  # a prompt of 10 tokens, and two generated ones
        plan = adapters.plan([TextInStep("a", 1, "", 10, None, 3, start, stop)], 7)
        edited += [
            index - 3 + start
            for several in plan.values()
            for edits in several
            for call in edits.calls
            for index in call.slots.scatter.tolist()
        ]
    assert edited == [0, 1, 9]


def test_generated_tokens_are_edited_by_all_alone(tmp_path):
    specs = enumerate(["all", "prompt"])
    directories = [saved(tmp_path, i, layers=[0], positions=p, rank=1)[1] for i, p in specs]
    _, _, adapters = loaded(directories)
    # After preemption, generated tokens are computed again, with the prompt.
    for number, count in ((1, 8), (2, 6)):
        ((edits,),) = adapters.plan([TextInStep("a", number, "", 6, None, 0, 0, 8)], 8).values()
        assert edits.calls[0].slots.scatter.tolist() == list(range(count))
    assert adapters.plan([TextInStep("b", 2, "", 6, None, 0, 7, 8)], 1) == {}


def test_groups_are_filled_up_and_long_ones_divided(tmp_path):
    specs = enumerate(["prompt", "l1"])
    made = [saved(tmp_path, i, layers=[1], positions=p, rank=2) for i, p in specs]
    engine, hooks, adapters = loaded([directory for _, directory in made])
    found = run(engine, hooks, adapters, [TEXTS[3], TEXTS[1]], [1, 2])
    assert len(TEXTS[3]) > 2 * step.GROUP
    for (model, _), text, logits in zip(made, [TEXTS[3], TEXTS[1]], found, strict=True):
        torch.testing.assert_close(
            logits, model(torch.tensor([text])).logits[0], atol=1e-3, rtol=1e-3
        )


def test_slots_are_used_again_and_the_oldest_adapter_makes_room(tmp_path):
    made = [saved(tmp_path, i, layers=[1], positions="l1", rank=1 + i % 3) for i in range(5)]
    engine, hooks, adapters = loaded([], capacity=2)
    structure = build_base(make_base("llama").config)
    for number, (model, directory) in enumerate(made, 1):
        adapters.add(number, served(directory, structure), {number})
        logits = run(engine, hooks, adapters, TEXTS[:1], [number])[0]
        expected = model(torch.tensor(TEXTS[:1])).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        adapters.forget_except({})
    assert adapters.numbers == {4, 5}
    (table,) = adapters._tables.values()
    assert len(table._weights.bias) == 2


def test_more_adapters_than_memory_says_how_many_fit(tmp_path, monkeypatch):
    directories = [saved(tmp_path, i, layers=[0, 1], positions="l1", rank=2)[1] for i in range(3)]
    model = saved(tmp_path, 0, layers=[0, 1], positions="l1", rank=2)[0]
    engine, hooks, adapters = loaded(directories[:1])
    put, puts = slotted.InterventionTable.put, []

    def full(table, intervention):
        puts.append(intervention)
        if len(puts) == 4:
            raise torch.OutOfMemoryError
        return put(table, intervention)

    monkeypatch.setattr(slotted.InterventionTable, "put", full)
    adapters.add(2, served(directories[1]), set())
    with pytest.raises(ValueError, match="2 adapters fit into the memory of cpu, and 8 are"):
        adapters.add(3, served(directories[2]), set())
    assert adapters.numbers == {1, 2}
    logits = run(engine, hooks, adapters, TEXTS[:1], [1])[0]
    expected = model(torch.tensor(TEXTS[:1])).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_an_adapter_that_would_not_fit_is_refused_before_memory_is_used(tmp_path, monkeypatch):
    directories = [saved(tmp_path, i, layers=[0], positions="l1", rank=2)[1] for i in range(3)]
    _, _, adapters = loaded(directories[:2])
    (table,) = adapters._tables.values()
    size = sum(w.nbytes for w in table._weights if w is not None)
    # The table would grow from two slots to four, with the two that are there beside them.
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * size - 1)
    with pytest.raises(ValueError, match="2 adapters fit into the memory of cpu, and 8 are"):
        adapters.add(3, served(directories[2]), set())
    assert adapters.numbers == {1, 2} and len(table._weights.bias) == 2
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * size)
    adapters.add(3, served(directories[2]), set())
    assert adapters.numbers == {1, 2, 3} and len(table._weights.bias) == 4


def test_slots_made_in_inference_mode_are_used_again_outside_of_it(tmp_path):
    directories = [saved(tmp_path, i, layers=[1], positions="l1", rank=2)[1] for i in range(2)]
    _, _, adapters = loaded([])
    with torch.inference_mode():  # as in a step
        adapters.add(1, served(directories[0]), set())
    adapters.remove(1)
    adapters.add(2, served(directories[1]), set())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"component": "mlp_activation"}, "in one step"),
        ({"representations": [{"layer": 0, **UPSTREAM}]}, "leaves positions to the batch"),
        ({"modules_to_save": ["lm_head"]}, "has trained lm_head"),
        ({"representations": [IN_HEAD]}, "in a layer"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(tmp_path, config, reason):
    if "representations" not in config:
        config = {"layers": [0], "rank": 2, "positions": "l1"} | config
    _, directory = saved(tmp_path, 0, **config)
    with pytest.raises(AdapterError, match=reason):
        served(directory)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    _, directory = saved(tmp_path, 0, layers=[0], positions="l1", rank=2)
    with pytest.raises(AdapterError, match="num_hidden_layers"):
        served(directory, build_base(make_base("llama", num_hidden_layers=5).config))


def test_a_position_outside_the_prompt_is_refused(tmp_path):
    _, directory = saved(tmp_path, 0, layers=[0], positions=[0, 7], rank=2)
    adapter = served(directory)
    with pytest.raises(ValueError, match="position 7 is outside the prompt"):
        adapter.place(7)


def test_parts_of_hidden_states_are_refused_in_tensor_parallel_processes(tmp_path):
    for component, refused in (("value_output", True), ("mlp_output", False)):
        _, directory = saved(tmp_path, 0, layers=[0], positions="l1", rank=2, component=component)
        adapter = served(directory)
        hooks = PlaceHooks(EngineLlama(make_base("llama")).layers)
        if refused:
            with pytest.raises(ValueError, match="divided among 2"):
                hooks.require(adapter.places[0], 2)
        else:
            hooks.require(adapter.places[0], 2)


def test_a_place_that_does_not_run_is_an_error(tmp_path):
    _, directory = saved(tmp_path, 0, layers=[0], positions="l1", rank=2, component="mlp_output")
    engine, hooks, adapters = loaded([directory])
    engine.layers[0].forward = lambda positions, hidden, residual: (hidden, hidden)
    with pytest.raises(RuntimeError, match="does not run 'mlp'"):
        run(engine, hooks, adapters, TEXTS[:1], [1])
