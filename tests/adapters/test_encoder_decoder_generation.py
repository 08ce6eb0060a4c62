"""Generation of encoder-decoder models, against a recomputation of the whole for each new token."""

import functools

import pytest
import torch
from encoder_decoder_models import PAD, START, make_generator
from encoder_decoders import BLOCKS, Recomputation, ids, padded, wrap
from reft import cache_of, passing

from conftest import randomize
from pyreft import ReftConfig, get_reft_model

NEW = 5
# For each stack: position spec -> (n, t) -> the columns it edits of t tokens, n of them prompt.
POSITIONS = {
    "encoder": {"f2+l1": lambda n, t: [0, 1, n - 1], "all": lambda n, t: list(range(n))},
    "decoder": {
        "l1": lambda n, t: [n - 1],
        "completion": lambda n, t: list(range(n, t)),
        "all": lambda n, t: list(range(t)),
    },
}
CASES = [(stack, spec) for stack, specs in POSITIONS.items() for spec in specs]
SETTINGS = {
    "cached": {},
    "uncached": {"use_cache": False},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.fixture(params=["t5", "bart"])
def architecture(request):
    return request.param


@pytest.fixture(params=CASES, ids="-".join)
def pair(request, architecture):
    """A model and its recomputation."""
    stack, spec = request.param
    model = wrap(make_generator(architecture), stack, positions=spec)
    return model, Recomputation(architecture, model, {stack: POSITIONS[stack][spec]})


@functools.cache
def settings(architecture, name):
    """Arguments for `generate`, if the base model takes them: transformers 5.0.0 has bugs."""
    try:
        generate(make_generator(architecture), input_ids=ids(4)[None], **SETTINGS[name])
    except (ValueError, IndexError, RuntimeError) as error:
        pytest.skip(f"this transformers cannot: {error}")
    return SETTINGS[name]


def generate(model, **inputs):
    """(B, NEW) generated ids."""
    return model.generate(max_new_tokens=NEW, **{"do_sample": False} | inputs)[:, -NEW:]


def prompts(*lengths, side="right"):
    rows = [ids(length, seed=length) for length in lengths]
    input_ids, mask = padded(rows, side=side)
    return rows, {"input_ids": input_ids, "attention_mask": mask}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_decoding_is_the_recomputation(pair, architecture, setting, side):
    model, recomputation = pair
    if architecture == "bart" and side == "left":
        side = "right"  # its positions are absolute
    rows, inputs = prompts(5, 8, 6, side=side)
    found = generate(model, **inputs, **settings(architecture, setting))
    assert found.tolist() == [recomputation.greedy(row, NEW).tolist() for row in rows]


def test_the_edit_decides_what_is_generated(pair):
    model, recomputation = pair
    rows, inputs = prompts(5, 8)
    edited = generate(model, **inputs).tolist()
    with model.disable_adapter():
        bare = generate(model, **inputs).tolist()
    recomputation.columns = {stack: lambda n, t: [] for stack in recomputation.columns}
    assert edited != bare == [recomputation.greedy(row, NEW).tolist() for row in rows]


@pytest.mark.parametrize("use_cache", [True, False])
def test_beams_are_the_recomputation(pair, use_cache):
    model, recomputation = pair
    rows, inputs = prompts(4, 7)
    found = generate(model, **inputs, num_beams=3, num_return_sequences=2, use_cache=use_cache)
    expected = [best for row in rows for best in recomputation.beams(row, 3, NEW)[:2].tolist()]
    assert found.tolist() == expected


@pytest.mark.parametrize("use_cache", [True, False])
def test_sampling_with_a_seed_is_the_recomputation(pair, use_cache):
    model, recomputation = pair
    rows, inputs = prompts(6)
    torch.manual_seed(3)
    sampling = {"do_sample": True, "top_k": 0, "temperature": 2.0, "num_return_sequences": 3}
    found = generate(model, **inputs, use_cache=use_cache, **sampling)
    expected = recomputation.samples(rows[0], 3, seed=3, temperature=2.0, steps=NEW)
    assert found.tolist() == expected.tolist()


def test_assisted_decoding_is_the_recomputation(pair, architecture):
    model, recomputation = pair
    rows, inputs = prompts(6)
    for helper in (make_generator(architecture, seed=5), model.model):
        found = generate(model, **inputs, assistant_model=helper)
        assert found.tolist() == [recomputation.greedy(rows[0], NEW).tolist()]


@pytest.mark.parametrize("starts", [True, False])
def test_a_decoder_prompt_of_the_caller_is_the_prompt(pair, starts):
    """With the start token or without: transformers puts it in front where it is missing."""
    model, recomputation = pair
    rows, inputs = prompts(6)
    forced = [START, 7, 9]
    given = torch.tensor([forced if starts else forced[1:]])
    found = generate(model, **inputs, decoder_input_ids=given)
    expected = recomputation.greedy(rows[0], NEW, start=forced)
    assert found.tolist() == [expected.tolist()]
    mask = torch.ones_like(given)
    found = generate(model, **inputs, decoder_input_ids=given, decoder_attention_mask=mask)
    assert found.tolist() == [expected.tolist()]


def test_both_stacks_are_edited_in_one_generation(architecture):
    base = make_generator(architecture)
    entries = [
        {"layer": layer, "component": name, "positions": "all", "low_rank_dimension": 4}
        for name in BLOCKS.values()
        for layer in range(3 if architecture == "bart" and name != "block_output" else 2)
    ]
    model = randomize(get_reft_model(base, ReftConfig(representations=entries)).eval(), 0.3)
    columns = {stack: POSITIONS[stack]["all"] for stack in BLOCKS}
    recomputation = Recomputation(architecture, model, columns)
    rows, inputs = prompts(5, 8)
    for more in ({}, {"use_cache": False}):
        found = generate(model, **inputs, **more)
        assert found.tolist() == [recomputation.greedy(row, NEW).tolist() for row in rows]


def test_outputs_of_the_encoder_that_the_caller_gives_are_kept_as_they_are(pair, architecture):
    model, recomputation = pair
    rows, inputs = prompts(6)
    with torch.no_grad():
        outputs = make_generator(architecture).get_encoder()(**inputs, return_dict=True)
    if "encoder" in recomputation.columns:
        recomputation.columns["encoder"] = lambda n, t: []
    expected = recomputation.greedy(rows[0], NEW)
    found = generate(model, encoder_outputs=outputs, attention_mask=inputs["attention_mask"])
    assert found.tolist() == [expected.tolist()]


def test_explicit_positions_win_in_generation(architecture):
    model = wrap(make_generator(architecture), positions="f1")
    recomputation = Recomputation(architecture, model, {"encoder": lambda n, t: [2, n - 1]})
    rows, inputs = prompts(5, 8)
    explicit = torch.tensor([[[2, -1]], [[2, -1]]])
    found = generate(model, **inputs, intervention_locations=explicit, num_beams=1)
    assert found.tolist() == [recomputation.greedy(row, NEW).tolist() for row in rows]


def test_subspaces_follow_their_row_into_its_beams(architecture):
    model = wrap(make_generator(architecture), "decoder", positions="all")
    _, inputs = prompts(6, 6)
    inputs["input_ids"][1] = ids(6, seed=9)
    chosen = [[[0, 1], [3]]] * len(model.interventions)
    together = generate(model, **inputs, subspaces=chosen, num_beams=2)
    alone = [
        generate(
            model,
            input_ids=inputs["input_ids"][row : row + 1],
            subspaces=[[one]] * len(chosen),
            num_beams=2,
        )
        for row, one in enumerate(([0, 1], [3]))
    ]
    assert together.tolist() == torch.cat(alone).tolist()
    assert together.tolist() != generate(model, **inputs, num_beams=2).tolist()


def test_embeddings_generate_what_their_tokens_generate(pair):
    model, recomputation = pair
    rows, inputs = prompts(5, 8)
    embeddings = model.get_encoder().get_input_embeddings()
    inputs["inputs_embeds"] = embeddings(inputs.pop("input_ids")).detach()
    expected = [recomputation.greedy(row, NEW).tolist() for row in rows]
    assert generate(model, **inputs).tolist() == expected


def test_without_a_mask_generate_reads_what_the_base_model_reads(architecture):
    """And positions count the tokens that are not padding."""
    model = wrap(make_generator(architecture), positions="l1")
    _, inputs = prompts(5, 8)
    explicit = torch.tensor([[[4]], [[7]]])
    found = generate(model, input_ids=inputs["input_ids"])
    told = generate(model, input_ids=inputs["input_ids"], intervention_locations=explicit)
    assert found.tolist() == told.tolist()
    with model.disable_adapter():
        bare = generate(model, input_ids=inputs["input_ids"])
    none = torch.full((2, 1, 1), -100)
    nowhere = generate(model, input_ids=inputs["input_ids"], intervention_locations=none)
    assert nowhere.tolist() == bare.tolist()


def test_decoding_by_hand_with_a_cache_is_the_recomputation(pair):
    model, recomputation = pair
    rows, inputs = prompts(6)
    step, cache, found, outputs = torch.tensor([[START]]), None, [], None
    with torch.no_grad():
        for _ in range(NEW):
            encoded = {} if outputs is None else {"encoder_outputs": (outputs[1],)}
            made = model(
                **inputs, **encoded, decoder_input_ids=step, **passing(cache, model), use_cache=True
            )
            outputs = (None, made.encoder_last_hidden_state)
            cache, step = cache_of(made), made.logits[:, -1].argmax(-1, keepdim=True)
            found.append(step.item())
    assert found == recomputation.greedy(rows[0], NEW).tolist()


def test_rows_that_end_early_change_no_other_row(pair):
    model, recomputation = pair
    rows, inputs = prompts(5, 8)
    expected = [recomputation.greedy(row, NEW).tolist() for row in rows]
    only = [token for token in expected[0] if token not in expected[1]]
    if not only:
        pytest.skip("the rows generate the same tokens")
    stop = expected[0].index(only[0]) + 1
    found = generate(model, **inputs, eos_token_id=only[0])
    assert found.tolist() == [[*expected[0][:stop], *[PAD] * (NEW - stop)], expected[1]]


def test_a_generation_that_fails_leaves_the_base_model_bare(architecture):
    model = wrap(make_generator(architecture), "encoder", positions="all")
    _, inputs = prompts(6)
    expected = generate(make_generator(architecture), **inputs)

    def stop(ids, scores, **kwargs):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        generate(model, **inputs, stopping_criteria=[stop])
    assert torch.equal(generate(model.model, **inputs), expected)
