"""Generated texts, and what goes on from their caches, against the reference."""

import copy

import torch
from bases import NO_END, PAD, START, VOCAB, cache_name, make
from batches import embedded, explicit, padded, texts, token_positions
from comparing import compare, require
from forward_checks import compare_cache
from row_by_row import Turn
from subject import call, refusal
from transformers import GenerationConfig

_OWN = ("way", "embeddings", "alone", "decoder_prompt", "object")
_TOKENS = {"pad_token_id": PAD, "eos_token_id": NO_END, "decoder_start_token_id": START}
# What changes how tokens are computed, and not which.
_WAYS = ("use_cache", "cache_implementation", "disable_compile", "prefill_chunk_size")
_WAYS += ("prompt_lookup_num_tokens", "assistant_model")


def prompts(case):
    """The arguments of `generate`, and the rows in it: (ids, n, None, read) as in `batch`."""
    rows, _ = texts(case)
    ids, mask = padded(rows, case.padding, case.extra)
    arguments = {"input_ids": ids, "attention_mask": mask}
    if case.seed % 3 == 0 and case.extra == 0 and len(set(map(len, rows))) == 1:
        del arguments["attention_mask"]
    seen = [torch.tensor(row) for row in rows]
    if case.two_stacks:
        generator = torch.Generator().manual_seed(case.seed)
        given = case.options.get("decoder_prompt", 0)
        starts = torch.randint(3, VOCAB, (len(rows), 1 + given), generator=generator)
        starts[:, 0] = START
        if given:
            # With the start token, or without it, which generate then puts before.
            arguments["decoder_input_ids"] = starts[:, case.seed % 2 :]
        prompts = zip(starts, seen, strict=True)
        return arguments, [(start, 1 + given, None, row) for start, row in prompts], mask
    return arguments, [(row, len(row), None, None) for row in seen], mask


def check_generation(pair):
    """Tokens, and the logits and scores of every step."""
    case = pair.case
    arguments, rows, mask = prompts(case)
    refused = refusal(pair, rows)
    options = {name: value for name, value in case.options.items() if name not in _OWN}
    if "max_length" in options:
        options["max_length"] += case.extra
    plain = {name: value for name, value in options.items() if name not in _WAYS}
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    if case.options["way"] == "assisted":
        options["assistant_model"] = copy.deepcopy(make(case.architecture, case.weights + 1))
    given = embedded(pair.model, arguments) if case.options.get("embeddings") else arguments
    options = {"do_sample": False, **options}
    if case.options.get("object"):
        given = {**given, "generation_config": GenerationConfig(**_TOKENS | options)}
    torch.manual_seed(case.seed)
    told = {} if "generation_config" in given else options
    outputs = call(refused, pair.model.generate, **given, **told, **explicit(case))
    edits = [pair.edits(row) for row in range(len(rows))]
    for name in _WAYS:
        options.pop(name, None)
    torch.manual_seed(case.seed)
    with pair.reference.answering(edits, rows, mask) as base:
        wanted = base.generate(**arguments, **options, use_cache=False)
    begin = rows[0][1] if case.two_stacks else mask.shape[1]
    compare_generated(case, begin, outputs, wanted, plain)
    if case.then:
        check_next_turn(pair, rows, mask, outputs)


def compare_generated(case, begin, outputs, wanted, options):
    """All that `generate` returns after `begin` tokens, up to where each row ends."""
    found = outputs.sequences[:, 0 if case.options.get("embeddings") else begin :]
    expected = wanted.sequences[:, begin:]
    for row, (mine, other) in enumerate(zip(found, expected, strict=True)):
        mine, other = cut(options, mine), cut(options, other)
        # Before the tokens, so that it is seen what made them others.
        for step in range(0 if "num_beams" in options else min(len(mine), len(other))):
            what = f"row {row}, step {step}"
            compare(f"logits of {what}", outputs.logits[step][row], wanted.logits[step][row])
            scores = outputs.scores[step][row], wanted.scores[step][row]
            compare(f"scores of {what}", *scores, nan=True)
            if mine[step] != other[step]:
                break
        require(mine == other, f"row {row} is {mine}, not {other}")
    if "num_beams" in options:
        compare("scores of beams", outputs.sequences_scores, wanted.sequences_scores)
    require(found.shape == expected.shape, f"{tuple(found.shape)} tokens")
    if not case.options.get("embeddings"):
        same = torch.equal(outputs.sequences, wanted.sequences)
        require(same, "prompts or padding in the sequences are not as they were given")


def cut(options, generated):
    """The tokens up to the end token."""
    ends = options.get("eos_token_id", NO_END)
    ends = ends if isinstance(ends, list) else [ends]
    found = generated.tolist()
    stop = next((i + 1 for i, token in enumerate(found) if token in ends), len(found))
    return found[:stop]


# ---- going on from a cache -----------------------------------------------------------------------


@torch.no_grad()
def check_next_turn(pair, rows, mask, outputs):
    """The cache that was returned, and what comes after it."""
    case, generated = pair.case, outputs.sequences[:, mask.shape[1] :]
    new = generated.shape[1]
    generator = torch.Generator().manual_seed(case.seed + 1)
    more = torch.randint(3, VOCAB, (len(rows), 1 + case.seed % 4), generator=generator)
    cache = getattr(outputs, cache_name(pair.model))
    whole = [torch.cat([ids, tokens]) for (ids, *_), tokens in zip(rows, generated, strict=True)]
    cached = mask.shape[1] + new - 1
    require(
        cache.get_seq_length() == cached,
        f"the cache returned says {cache.get_seq_length()} tokens, there are {cached} columns",
    )
    seen = torch.cat([mask, torch.ones_like(generated)], dim=1)
    for row, ((_, n, *_), text) in enumerate(zip(rows, whole, strict=True)):
        one = pair.reference.run(pair.edits(row), [Turn(0, n)], text[:-1], cache=True)
        here = seen[row, :-1].nonzero().flatten()
        compare_cache(pair, outputs, one, row, here, cached)
    turns = [
        [Turn(0, n), Turn(len(text) - 1, None)]
        for (_, n, *_), text in zip(rows, whole, strict=True)
    ]
    go_on(pair, turns, [*whole], torch.cat([outputs.sequences, more], 1), seen, more, cache)


def go_on(pair, turns, whole, ids, seen, more, cache):
    """A second turn from a cache: whole rows are `whole` and `more`."""
    case, name = pair.case, cache_name(pair.model)
    mask = torch.cat([seen, torch.ones_like(more)], dim=1)
    after = [torch.cat([text, rest]) for text, rest in zip(whole, more, strict=True)]
    cached = cache.get_seq_length()
    if case.then == "forward":
        outputs = pair.model(
            input_ids=ids[:, cached:],
            attention_mask=mask,
            position_ids=token_positions(mask)[:, cached:],
            **{name: cache},
            **explicit(case),
        )
        for row, text in enumerate(after):
            logits = pair.reference.run(pair.edits(row), turns[row], text).logits[0]
            found = outputs.logits[row]
            compare(f"logits of row {row} after its cache", found, logits[-len(found) :])
        return
    # All of it is the prompt now, so edits may meet that did not before.
    refused = refusal(pair, [(text, len(text), None, None) for text in after])
    outputs = call(
        refused,
        pair.model.generate,
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=3,
        do_sample=False,
        **{name: cache},
        **explicit(case),
        return_dict_in_generate=True,
        output_logits=True,
    )
    generated = outputs.sequences[:, ids.shape[1] :]
    for row, text in enumerate(after):
        start = turns[row][-1].start
        two = [*turns[row][:-1], Turn(start, len(text))]
        text = torch.cat([text, generated[row]])
        logits = pair.reference.run(pair.edits(row), two, text[:-1]).logits[0, -3:]
        for step in range(3):
            found, what = outputs.logits[step][row], f"row {row}, step {step} of the second turn"
            compare(f"logits of {what}", found, logits[step])


def check_cached(pair):
    """A forward pass returns a cache, and another goes on from it."""
    case = pair.case
    arguments, rows, mask = prompts(case)
    refused = refusal(pair, rows)
    with torch.no_grad():
        position_ids = token_positions(mask)
        arguments |= {"position_ids": position_ids, "use_cache": True}
        outputs = call(refused, pair.model, **arguments, **explicit(case))
        whole = [ids for ids, *_ in rows]
        turns = [[Turn(0, n), Turn(n, None)] for _, n, *_ in rows]
        generator = torch.Generator().manual_seed(case.seed + 1)
        more = torch.randint(3, VOCAB, (len(rows), case.completions[0]), generator=generator)
        ids = torch.cat([arguments["input_ids"], more], 1)
        cache = getattr(outputs, cache_name(pair.model))
        go_on(pair, turns, whole, ids, mask, more, cache)
