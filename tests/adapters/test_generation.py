"""Every way to generate, against a recomputation of the whole sequence for each new token."""

import functools

import pytest
import torch
from recomputation import NEW, POSITIONS, Recomputation, bare, generate, left_padded, prompt, wrap
from reft import cache_of, passing
from transformers import GenerationConfig

from conftest import LAYERS


@pytest.fixture(params=POSITIONS)
def positions(request):
    return request.param


@pytest.fixture
def pair(causal, positions):
    """A model and its recomputation."""
    model = wrap(bare(causal), positions)
    return model, Recomputation(causal, model, POSITIONS[positions])


@pytest.fixture
def simple(causal):
    """The same, at the paper's positions."""
    model = wrap(bare(causal))
    return model, Recomputation(causal, model, POSITIONS["f2+l1"])


SETTINGS = {
    "cached": {},
    "uncached": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "prefill in chunks of 3": {"prefill_chunk_size": 3},
    "chunks into a static cache": {
        "prefill_chunk_size": 4,
        "cache_implementation": "static",
        "disable_compile": True,
    },
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "a config object": {"generation_config": GenerationConfig(num_beams=1, pad_token_id=0)},
}


@functools.cache
def settings(name):
    """Arguments for `generate`, if the base model takes them: transformers 5.0.0 has bugs."""
    try:
        generate(bare("llama"), input_ids=prompt(8)[None], **SETTINGS[name])
    except (ValueError, IndexError) as error:
        pytest.skip(f"this transformers cannot: {error}")
    return SETTINGS[name]


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_decoding_is_the_recomputation(pair, setting):
    model, recomputation = pair
    row = torch.cat([prompt(4), prompt(4)])  # it repeats, so that prompt lookup finds something
    expected, logits = recomputation.greedy(row)
    found = model.generate(
        input_ids=row[None],
        attention_mask=torch.ones(1, 8, dtype=torch.long),
        max_new_tokens=NEW,
        **{"do_sample": False} | settings(setting),
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert found.sequences[0].tolist() == [*row.tolist(), *expected.tolist()]
    torch.testing.assert_close(torch.cat(found.logits), logits, rtol=1e-4, atol=1e-4)


def test_candidates_of_early_layers_are_the_recomputation(pair, causal):
    model, recomputation = pair
    row = prompt(7)
    try:
        generate(bare(causal), input_ids=row[None], assistant_early_exit=1)
    except (IndexError, TypeError):
        pytest.skip("this transformers does not generate so with this model")
    found = generate(model, input_ids=row[None], assistant_early_exit=1)
    assert found[0].tolist() == recomputation.greedy(row)[0].tolist()


@pytest.mark.parametrize("assistant", ["another model", "the base model", "a wrapped model"])
def test_assisted_decoding_is_the_recomputation(pair, causal, assistant):
    model, recomputation = pair
    helper = model.model if assistant == "the base model" else bare(causal, seed=5)
    if assistant == "a wrapped model":
        helper = wrap(helper, "all")
    row = prompt(7)
    found = generate(model, input_ids=row[None], assistant_model=helper)
    assert found[0].tolist() == recomputation.greedy(row)[0].tolist()


def test_the_edit_decides_what_is_generated(pair):
    model, recomputation = pair
    row = prompt(8)
    edited = generate(model, input_ids=row[None])[0].tolist()
    with model.disable_adapter():
        unedited = generate(model, input_ids=row[None])[0].tolist()
    recomputation.columns = lambda n, t: []
    assert edited != unedited == recomputation.greedy(row)[0].tolist()


@pytest.mark.parametrize(
    "setting", ["cached", "uncached", "static cache", "prefill in chunks of 3"]
)
def test_a_left_padded_batch_is_its_rows_one_by_one(pair, setting):
    model, recomputation = pair
    rows = [prompt(length, seed=length) for length in (3, 9, 6)]
    found = generate(model, **left_padded(rows), **settings(setting))
    assert found.tolist() == [recomputation.greedy(row)[0].tolist() for row in rows]


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_are_the_recomputation(pair, use_cache):
    model, recomputation = pair
    rows = [prompt(length, seed=length) for length in (4, 8)]
    found = generate(
        model, **left_padded(rows), num_beams=3, num_return_sequences=2, use_cache=use_cache
    )
    expected = [best for row in rows for best in recomputation.beams(row, 3)[:2].tolist()]
    assert found.tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False])
def test_sampling_with_a_seed_is_the_recomputation(pair, use_cache):
    model, recomputation = pair
    rows = torch.stack([prompt(7, seed=1), prompt(7, seed=2)])
    sampling = {"do_sample": True, "top_k": 0, "temperature": 2.0, "num_return_sequences": 3}
    torch.manual_seed(3)
    found = generate(model, input_ids=rows, use_cache=use_cache, **sampling)
    assert len({tuple(row) for row in found.tolist()}) > 2
    expected = recomputation.samples(rows.repeat_interleave(3, 0), seed=3, temperature=2.0)
    assert found.tolist() == expected.tolist()


def test_rows_that_end_early_change_no_other_row(pair):
    model, recomputation = pair
    rows = [prompt(5, seed=1), prompt(8, seed=2)]
    expected = [recomputation.greedy(row)[0].tolist() for row in rows]
    end = next(token for token in expected[0] if token not in expected[1])
    stop = expected[0].index(end) + 1
    assert stop < NEW
    found = generate(model, **left_padded(rows), eos_token_id=end)
    assert found.tolist() == [[*expected[0][:stop], *[0] * (NEW - stop)], expected[1]]


@pytest.mark.parametrize("tied", [True, False])
def test_a_short_prompt_is_cut_as_in_the_paper(causal, tied):
    """f1+l6 on n tokens: the first one and, of those left of six, ceil(n / 2)."""
    model = wrap(bare(causal), "f1+l6", tied=tied)
    interventions = list(model.interventions.values())
    for prefix, suffix in zip(interventions[:LAYERS], interventions[-LAYERS:], strict=True):
        suffix.load_state_dict(prefix.state_dict())
    recomputation = Recomputation(causal, model, lambda n, t: [0, *range(n - (n + 1) // 2, n)])
    rows = [prompt(4), prompt(6, seed=2), prompt(5, seed=3)]
    found = generate(model, **left_padded(rows))
    assert found.tolist() == [recomputation.greedy(row)[0].tolist() for row in rows]


def test_embeddings_generate_what_their_tokens_generate(pair):
    model, recomputation = pair
    rows = [prompt(length, seed=length) for length in (4, 9)]
    batch = left_padded(rows)
    batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    expected = [recomputation.greedy(row)[0].tolist() for row in rows]
    assert generate(model, **batch).tolist() == expected
    alone = model.get_input_embeddings()(rows[1][None])
    assert generate(model, inputs_embeds=alone).tolist() == expected[1:]


@pytest.mark.parametrize("ends", [98, [97, 98], torch.tensor(98), torch.tensor([97, 98])])
def test_padding_is_found_without_a_mask_however_end_tokens_are_given(simple, ends):
    model, _ = simple
    rows = [prompt(length, seed=length) for length in (4, 9)]
    ids = left_padded(rows)["input_ids"]
    found = generate(model, input_ids=ids, eos_token_id=ends, pad_token_id=0, min_new_tokens=NEW)
    for row, one in zip(rows, found, strict=True):
        alone = generate(model, input_ids=row[None], eos_token_id=ends, min_new_tokens=NEW)
        assert one.tolist() == alone[0].tolist()


def test_decoding_by_hand_with_a_cache_is_the_recomputation(pair):
    model, recomputation = pair
    row = prompt(7)
    step, cache, found = row[None], None, []
    with torch.no_grad():
        for _ in range(NEW):
            outputs = model(input_ids=step, **passing(cache, model), use_cache=True)
            cache, step = cache_of(outputs), outputs.logits[:, -1].argmax(-1, keepdim=True)
            found.append(step.item())
    assert found == recomputation.greedy(row)[0].tolist()


def test_decoding_a_padded_batch_by_hand_is_the_recomputation(pair):
    model, recomputation = pair
    rows = [prompt(length, seed=length) for length in (4, 8)]
    batch, cache, found = left_padded(rows), None, []
    step, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        for _ in range(NEW):
            where = (mask.cumsum(1) - 1).clamp(min=0)[:, -step.shape[1] :]
            outputs = model(step, mask, position_ids=where, **passing(cache, model), use_cache=True)
            cache, step = cache_of(outputs), outputs.logits[:, -1].argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(step)], dim=1)
            found.append(step)
    expected = [recomputation.greedy(row)[0].tolist() for row in rows]
    assert torch.cat(found, dim=1).tolist() == expected


def test_training_sees_what_generation_will_see(pair):
    """The logits of a completion under teacher forcing are those it was generated with."""
    model, recomputation = pair
    row = prompt(7)
    completion, logits = recomputation.greedy(row)
    ids = torch.cat([row, completion])[None]
    labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(row), -100)
    with torch.no_grad():
        found = model(input_ids=ids, labels=labels).logits[0, len(row) - 1 : -1]
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


# ---- what the caller gives -------------------------------------------------------------------


def test_explicit_positions_win_in_generation(simple):
    model, recomputation = simple
    rows = [prompt(length, seed=length) for length in (5, 8)]
    explicit = torch.tensor([[[2, -1]], [[2, -1]]])
    recomputation.columns = lambda n, t: [2, n - 1]
    for use_cache in (True, False):
        found = generate(
            model, **left_padded(rows), intervention_locations=explicit, use_cache=use_cache
        )
        assert found.tolist() == [recomputation.greedy(row)[0].tolist() for row in rows]


def test_subspaces_follow_their_row_into_its_beams(simple):
    model, _ = simple
    rows = torch.stack([prompt(7, seed=1), prompt(7, seed=2)])
    chosen = [[[0, 1], [3]]] * len(model.interventions)
    together = generate(model, input_ids=rows, subspaces=chosen, num_beams=2)
    alone = [
        generate(model, input_ids=row[None], subspaces=[[one]] * len(chosen), num_beams=2)
        for row, one in zip(rows, ([0, 1], [3]), strict=True)
    ]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together.tolist() != generate(model, input_ids=rows, num_beams=2).tolist()


def test_padding_is_told_from_the_pad_token_where_that_is_safe(simple):
    model, recomputation = simple
    rows = [prompt(length, seed=length) for length in (4, 8)]
    found = generate(model, input_ids=left_padded(rows)["input_ids"])
    assert found.tolist() == [recomputation.greedy(row)[0].tolist() for row in rows]


def test_a_pad_token_that_also_ends_texts_hides_no_token(simple):
    model, recomputation = simple
    row = prompt(6)
    row[0] = 1
    model.generation_config.pad_token_id = model.generation_config.eos_token_id = 1
    expected = recomputation.greedy(row)[0]
    assert 1 not in expected
    assert generate(model, input_ids=row[None])[0].tolist() == expected.tolist()


def test_a_second_turn_may_go_on_from_the_cache_of_the_first(causal):
    model = wrap(bare(causal), "all")
    recomputation = Recomputation(causal, model, POSITIONS["all"])
    first = model.generate(
        input_ids=prompt(5)[None], max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    turn = torch.cat([first.sequences[0], prompt(4, seed=9)])
    found = generate(model, input_ids=turn[None], **passing(cache_of(first), model))
    assert found[0].tolist() == recomputation.greedy(turn)[0].tolist()


def test_a_generation_that_fails_leaves_the_base_model_bare(simple):
    model, _ = simple
    ids = prompt(7)[None]
    expected = bare(model.config.model_type).generate(ids, max_new_tokens=3, do_sample=False)

    def stop(ids, scores, **kwargs):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        generate(model, input_ids=ids, stopping_criteria=[stop])
    assert torch.equal(model.model.generate(ids, max_new_tokens=3, do_sample=False), expected)
    with model.disable_adapter():
        assert torch.equal(model.generate(ids, max_new_tokens=3, do_sample=False), expected)
