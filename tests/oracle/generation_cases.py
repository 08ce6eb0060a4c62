"""Ways to generate, at random."""

from bases import VOCAB


def draw_generation(rng, architecture, prompts, shared):
    """(options of `generate`, how to go on from its cache)."""
    options = {"max_new_tokens": rng.randint(2, 6)}
    two_stacks = architecture in ("t5", "bart")
    ways = {"greedy": 8, "processors": 7, "sampling": 7, "beams": 5, "ends": 3}
    if not shared:
        ways |= {"static": 2, "chunks": 3, "assisted": 2, "lookup": 2, "uncached": 2}
    way = rng.choices(list(ways), list(ways.values()))[0]
    options["way"] = way
    if way in ("static", "chunks") and two_stacks:
        way = options["way"] = "greedy"
    if way == "static":
        options |= {"cache_implementation": "static", "disable_compile": True}
    if way == "chunks":
        options["prefill_chunk_size"] = rng.randint(1, 5)
        if rng.random() < 0.3:
            options |= {"cache_implementation": "static", "disable_compile": True}
    if way in ("assisted", "lookup"):
        options["alone"] = True
        options |= {"prompt_lookup_num_tokens": rng.randint(1, 3)} if way == "lookup" else {}
    if way == "uncached" or (way in ("processors", "sampling", "beams") and rng.random() < 0.2):
        options["use_cache"] = False
    if way in ("processors", "sampling") and rng.random() < (1 if way == "processors" else 0.6):
        options |= _draw_processors(
            rng, 1 if two_stacks else max(prompts), options["max_new_tokens"]
        )
    if way == "sampling":
        options |= _draw_sampling(rng)
    if way == "beams":
        options["num_beams"] = rng.choice([2, 3])
        options["num_return_sequences"] = rng.randint(1, options["num_beams"])
        options["length_penalty"] = rng.choice([1.0, 0.0, 2.0, -1.0])
        if rng.random() < 0.3:
            options["early_stopping"] = True
        if rng.random() < 0.3:
            options |= _draw_processors(
                rng, 1 if two_stacks else max(prompts), options["max_new_tokens"]
            )
        if rng.random() < 0.2:
            options |= {"do_sample": True, "temperature": rng.choice([0.5, 3.0])}
    if way == "ends" or rng.random() < 0.2:
        options["eos_token_id"] = sorted(rng.sample(range(3, VOCAB), 8))
    if rng.random() < 0.15 and way not in ("assisted", "lookup", "beams") and not two_stacks:
        options["max_length"] = max(prompts) + options.pop("max_new_tokens")
    then = None
    if way in ("greedy", "chunks", "processors") and options.get("use_cache") is None:
        goes_on = "eos_token_id" not in options and "cache_implementation" not in options
        if goes_on and not two_stacks and rng.random() < 0.5:
            then = rng.choice(["forward", "generate"])
    if way == "greedy" and not two_stacks and not then and not shared and rng.random() < 0.2:
        options["embeddings"] = True
        options["max_new_tokens"] = options.get("max_new_tokens", 4)
        options.pop("max_length", None)
    if two_stacks and rng.random() < 0.3:
        options["decoder_prompt"] = rng.randint(1, 4)
    if way != "assisted" and rng.random() < 0.15:
        options["object"] = True
    return options, then


def _draw_processors(rng, width, new):
    # Of `width` tokens before, and `new` that are generated.
    some_ids = rng.sample(range(3, VOCAB), 6)
    drawn = {
        "repetition_penalty": rng.choice([1.3, 3.0, 0.5]),
        "encoder_repetition_penalty": rng.choice([1.5, 3.0]),
        "no_repeat_ngram_size": rng.choice([1, 2, 3]),
        "encoder_no_repeat_ngram_size": rng.choice([1, 2]),
        "min_length": width + rng.randint(1, new),
        "min_new_tokens": rng.randint(1, new),
        "exponential_decay_length_penalty": (1, 1.5),
        "bad_words_ids": [[some_ids[0]], some_ids[1:3]],
        "sequence_bias": [[[some_ids[3]], 3.0], [some_ids[4:6], -4.0]],
        "suppress_tokens": some_ids[:2],
        "begin_suppress_tokens": some_ids[2:5],
        "renormalize_logits": True,
    }
    names = rng.sample(list(drawn), rng.randint(1, 2))
    if rng.random() < 0.4:
        # Of those that a user is likeliest to give.
        names = ["repetition_penalty"]
    chosen = {name: drawn[name] for name in names}
    if {"min_length", "min_new_tokens", "exponential_decay_length_penalty"} & set(names):
        chosen["eos_token_id"] = sorted(rng.sample(range(3, VOCAB), 12))
    return chosen


def _draw_sampling(rng):
    drawn = {"do_sample": True, "top_k": rng.choice([0, 3, 10])}
    if drawn["top_k"] == 0 and rng.random() < 0.5:
        name = rng.choice(["top_p", "min_p", "typical_p", "epsilon_cutoff"])
        drawn[name] = 0.02 if name == "epsilon_cutoff" else rng.choice([0.3, 0.8])
    drawn["temperature"] = rng.choice([0.3, 0.7, 2.0])
    if rng.random() < 0.4:
        drawn["num_return_sequences"] = rng.randint(2, 3)
    return drawn
