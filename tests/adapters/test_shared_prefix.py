"""Prompts that begin alike: what they share runs once, and what is generated is the same."""

import pytest
import torch
from architectures import MAKERS
from reft import cache_of, passing, wrap
from transformers import GenerationConfig

from conftest import VOCAB, make_base
from pyreft.adapters import shared_prefix

SHARED, RESTS = 40, [5, 9, 2]


def prompts(ragged=True, side="left"):
    generator = torch.Generator().manual_seed(0)
    shared = torch.randint(3, VOCAB, (SHARED,), generator=generator)
    rows = [
        torch.cat([shared, torch.randint(3, VOCAB, (n if ragged else 9,), generator=generator)])
        for n in RESTS
    ]
    width = max(map(len, rows))
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, one in enumerate(rows):
        where = slice(width - len(one), None) if side == "left" else slice(len(one))
        ids[row, where], mask[row, where] = one, 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def widths(monkeypatch):
    """(rows, tokens) of every forward pass of a base model."""
    seen = []

    def watch(model):
        model.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)),
            with_kwargs=True,
        )
        return seen

    return watch


def make(architecture, **config):
    base = make_base(architecture, tie_word_embeddings=False)
    model = wrap(base, **{"positions": "l2"} | config).eval()
    model.generation_config.eos_token_id = VOCAB
    return model


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}, {"max_length": 53}],
    ids=str,
)
def test_what_is_generated_is_what_each_prompt_gives_by_itself(causal, ragged, options, widths):
    model, inputs = make(causal), prompts(ragged)
    settings = {"max_new_tokens": 4, "do_sample": False, **options}
    if "max_length" in options:
        del settings["max_new_tokens"]
    seen = widths(model)
    found = model.generate(**inputs, **settings)
    copies = options.get("num_return_sequences", 1) * len(RESTS)
    # The shared part once, then the rest of all rows. Columns do not move: where others end their
    # shared part later, since they are padded, the longest prompt is read on until there.
    once = SHARED + (min(9 - n for n in RESTS if n < 9) if ragged else 0)
    assert seen[0] == (1, once)
    assert seen[1] == (len(RESTS) * options.get("num_beams", 1), SHARED + 9 - once)
    assert torch.equal(found[:, :49], inputs["input_ids"].repeat_interleave(copies // 3, dim=0))
    for row in range(len(RESTS)):
        alone = inputs["input_ids"][row : row + 1, inputs["attention_mask"][row] == 1]
        expected = model.generate(alone, **settings | {"max_new_tokens": 4, "max_length": None})
        mine = found[row * copies // 3 : (row + 1) * copies // 3]
        assert torch.equal(mine[:, 49:], expected[:, alone.shape[1] :])


def test_the_pieces_of_an_output_are_the_same(widths):
    model, inputs = make("llama"), prompts()
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    settings |= {"output_logits": True}
    found = model.generate(**inputs, **settings)
    seen = widths(model)
    # A setting that goes by columns has prompts run as they are.
    expected = model.generate(**inputs, **settings, no_repeat_ngram_size=60)
    assert seen[0] == (3, 49)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(
        torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4
    )


def test_a_mixed_batch_shares_what_no_adapter_edits(widths):
    from test_named import add

    model, inputs = make("llama"), prompts()
    add(model)
    seen = widths(model)
    names = ["default", "other", "__base__"]
    settings = {"max_new_tokens": 4, "do_sample": False}
    found = model.generate(**inputs, **settings, adapter_names=names)
    assert seen[0] == (1, SHARED + 4)
    expected = model.generate(**inputs, **settings, adapter_names=names, no_repeat_ngram_size=60)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"positions": "f1+l1"}, {}),
        ({"positions": "all"}, {}),
        ({}, {"use_cache": False}),
        ({}, {"no_repeat_ngram_size": 3}),
        ({}, {"output_hidden_states": True, "return_dict_in_generate": True}),
        ({}, {"cache_implementation": "static"}),
    ],
)
def test_prompts_run_as_they_are_where_sharing_could_change_anything(config, options, widths):
    model = make("llama", **config)
    seen = widths(model)
    model.generate(**prompts(), max_new_tokens=2, **options)
    assert seen[0] == (3, 49)


@pytest.fixture
def apart(monkeypatch):
    """Runs a function with prompts as they are."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(shared_prefix, "_SHORTEST", 10**6)
            return function()

    return run


PENALTIES = [
    {"repetition_penalty": 1.7},
    {"encoder_repetition_penalty": 0.4},
    {"repetition_penalty": 1.4, "num_beams": 2, "num_return_sequences": 2},
    {"min_new_tokens": 3, "suppress_tokens": [5, 6]},
]


@pytest.mark.parametrize("options", PENALTIES, ids=str)
def test_processors_of_logits_see_the_prompts_as_they_are(causal, options, apart, widths):
    model, inputs = make(causal), prompts()
    settings = {"max_new_tokens": 5, "do_sample": False, "output_scores": True}

    def scores():
        found = model.generate(**inputs, **settings, **options)
        return found if isinstance(found, torch.Tensor) else found.sequences

    seen = widths(model)
    found = scores()
    assert seen[0][0] == 1
    assert torch.equal(found, apart(scores))


def test_sampling_with_a_seed_gives_the_same_texts(causal, apart, widths):
    model, inputs = make(causal), prompts()

    def sampled():
        torch.manual_seed(3)
        return model.generate(
            **inputs, max_new_tokens=6, do_sample=True, temperature=0.7, top_k=20, top_p=0.9
        )

    seen = widths(model)
    found = sampled()
    assert seen[0][0] == 1
    assert torch.equal(found, apart(sampled))


@pytest.mark.parametrize("names", [None, ["default", "__base__", "default"], ["__base__"] * 3])
@pytest.mark.parametrize("ragged", [True, False])
def test_the_cache_that_is_returned_goes_on_as_without(names, ragged, apart, widths):
    model, inputs = make("llama"), prompts(ragged)
    settings = {"do_sample": False, "return_dict_in_generate": True, "adapter_names": names}
    turn = torch.randint(3, VOCAB, (3, 4), generator=torch.Generator().manual_seed(5))

    def two_turns():
        first = model.generate(**inputs, **settings, max_new_tokens=3)
        ids = torch.cat([first.sequences, turn], dim=1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 7), value=1)
        second = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=4,
            **settings,
            **passing(cache_of(first), model),
        )
        return first.sequences, second.sequences, cache_of(first)

    seen = widths(model)
    *found, cache = two_turns()
    # Where there is padding, a cache that is returned would have nothing in its columns.
    assert (seen[0][0] == 1) == (not ragged)
    *expected, whole = apart(two_turns)
    assert all(map(torch.equal, found, expected))
    for layer, other in zip(cache.layers, whole.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(layer.values, other.values, rtol=1e-4, atol=1e-4)


def test_a_position_function_is_asked_once_and_sees_the_columns_as_they_are(apart, widths):
    asked = []

    def third_from_last(tokens):
        asked.append(tokens.input_ids.clone())
        return tokens.prompt & (tokens.index == tokens.prompt_length - 3)

    model, inputs = make("llama", positions=third_from_last), prompts()

    def generated():
        return model.generate(**inputs, max_new_tokens=5, do_sample=False)

    seen = widths(model)
    found = generated()
    assert seen[0] == (1, SHARED + 4)
    (ids,) = asked
    assert torch.equal(ids, inputs["input_ids"])
    assert torch.equal(found, apart(generated))


@pytest.mark.parametrize(
    "own",
    [{"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}, {}],
    ids=str,
)
def test_settings_of_the_base_model_hold_beside_a_config_that_is_passed(own, apart):
    model, inputs = make("llama"), prompts()
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    settings = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=VOCAB)

    def generated():
        return model.generate(**inputs, generation_config=settings)

    assert torch.equal(generated(), apart(generated))


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_length_of_a_prompt_run_as_they_are(rope, widths):
    more = {"dynamic": {"factor": 2.0}}
    more["longrope"] = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}
    more["longrope"] |= {"original_max_position_embeddings": 45}
    parameters = {"rope_type": rope, "rope_theta": 1e4, **more[rope]}
    base = make_base("llama", rope_parameters=parameters, max_position_embeddings=90)
    model = wrap(base, positions="l2").eval()
    seen = widths(model)
    model.generate(**prompts(), max_new_tokens=2)
    assert seen[0] == (3, 49)


def test_sliding_windows_and_positions_by_columns_run_as_they_are(widths):
    for name in ("gemma3_text", "bloom"):
        torch.manual_seed(0)
        model = wrap(MAKERS[name](), positions="l1").eval()
        seen = widths(model)
        model.generate(**prompts(), max_new_tokens=2)
        assert seen.pop() == (3, 1)
        assert seen.pop() == (3, 49)
        seen.clear()
