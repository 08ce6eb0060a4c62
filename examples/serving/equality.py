"""Whether an engine of vLLM gives the tokens of ReftModel, for random adapters and requests.

    python examples/serving/equality.py --adapters 32 --requests 200

Adapters have random kinds, ranks, layers, components, positions and weights; a request names none,
one, or two with weights. Prompts come in chunks, many begin alike, and the cache is too small for
all that runs: requests find cached blocks, and are preempted. Exits with 1 if a token differs.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

# The engine runs in this process, whose counters are read.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import torch
from transformers import AutoModelForCausalLM

import pyreft

KINDS = ["loreft", "noreft", "direft", "nodireft", "consreft", "lobireft"]
COMPONENTS = ["block_output", "block_output", "block_input", "mlp_output", "attention_output"]
# Of these, tensor parallel processes have a part each.
COMPONENTS += ["value_output", "head_attention_value_output"]
POSITIONS = ["l1", "f1", "f2+l2", "f3+l3", "l3", "prompt", "all", "completion", [0, 4, -1]]
BLOCK = 32  # tokens


class Request(NamedTuple):
    names: list[str]
    weights: list[float]
    prompt: list[int]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--at-once", type=int, default=16, help="Requests that run.")
    parser.add_argument("--blocks", type=int, default=30, help=f"Of {BLOCK} tokens, in the cache.")
    parser.add_argument("--chunk", type=int, default=96, help="Tokens of a step, at most.")
    parser.add_argument("--scale", type=float, default=0.5, help="Of the weights of adapters.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="Tensor parallel ones.")
    parser.add_argument("--drafts", type=int, default=0, help="Tokens of speculation by n-grams.")
    parser.add_argument("--compile", action="store_true", help="The engine compiles its model.")
    return parser.parse_args()


def make_model(options: argparse.Namespace, choose: random.Random) -> pyreft.ReftModel:
    """A model with random adapters "a0", "a1", ..."""
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype="float32")
    count = base.config.num_hidden_layers
    model = None
    for index in range(options.adapters):
        config = pyreft.ReftConfig(
            kind=KINDS[index % len(KINDS)],
            layers=sorted(choose.sample(range(count), choose.randint(1, min(4, count)))),
            component=choose.choice(COMPONENTS[: None if options.processes == 1 else -2]),
            positions=choose.choice(POSITIONS),
            rank=choose.randint(1, 8),
        )
        if model is None:
            model = pyreft.get_reft_model(base, config, adapter_name="a0")
        else:
            model.add_adapter(f"a{index}", config)
        torch.manual_seed(index)
        for parameter in model.adapters[f"a{index}"].interventions.parameters():
            parameter.data.add_(options.scale * torch.randn_like(parameter))
    assert model is not None
    return model.eval()


def make_requests(
    options: argparse.Namespace, choose: random.Random, vocabulary: int
) -> list[Request]:
    made: list[Request] = []
    for index in range(options.requests):
        length = choose.randint(8, 100)
        ids = [choose.randrange(3, vocabulary) for _ in range(length)]
        if made and index % 2:  # what an earlier prompt begins with, or all of it
            ids = choose.choice(made).prompt[: choose.choice([32, 64, 200])] + ids[: length // 3]
        count = choose.choice([0, 1, 1, 1, 1, 1, 1, 2])
        names = [f"a{one}" for one in choose.sample(range(options.adapters), count)]
        weights = [choose.choice([0.5, 1.0, -1.0]) if count > 1 else 1.0 for _ in names]
        made.append(Request(names, weights, ids))
    return made


def generate(model: pyreft.ReftModel, request: Request, count: int) -> list[int]:
    """The tokens that ReftModel generates."""
    ids = torch.tensor([request.prompt])
    if request.names:
        model.set_adapter(request.names, request.weights)
    with nullcontext() if request.names else model.disable_adapter():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return out[0, ids.shape[1] :].tolist()


def serve(
    options: argparse.Namespace, requests: list[Request], folder: Path
) -> tuple[list[list[int]], dict[str, float]]:
    """The tokens that the engine generates, and its counters."""
    from vllm import LLM, SamplingParams
    from vllm.compilation.counter import compilation_counter
    from vllm.lora.request import LoRARequest
    from vllm.v1.metrics.reader import Counter

    drafts = {"method": "ngram", "num_speculative_tokens": options.drafts}
    drafts |= {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    llm = LLM(
        options.model,
        enable_lora=True,
        max_loras=options.at_once,
        max_cpu_loras=options.at_once,
        additional_config={"pyreft": {}},
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=not options.compile,
        max_model_len=512,
        max_num_seqs=options.at_once,
        max_num_batched_tokens=options.chunk,
        block_size=BLOCK,
        num_gpu_blocks_override=options.blocks,
        enable_prefix_caching=True,
        disable_log_stats=False,
        distributed_executor_backend="uni" if options.processes == 1 else "mp",
        tensor_parallel_size=options.processes,
        speculative_config=drafts if options.drafts else None,
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=options.new_tokens, ignore_eos=True, detokenize=False
    )
    adapters, numbers = [], {}
    for one in requests:
        parts = [f"{folder / n}*{w}" for n, w in zip(one.names, one.weights, strict=True)]
        source = "+".join(parts) if len(parts) > 1 else "".join(str(folder / n) for n in one.names)
        number = numbers.setdefault(source, len(numbers) + 1)
        adapters.append(LoRARequest(source, number, source) if source else None)
    prompts = [{"prompt_token_ids": one.prompt} for one in requests]
    found = llm.generate(prompts, sampling, lora_request=adapters, use_tqdm=False)
    counters = {one.name: one.value for one in llm.get_metrics() if isinstance(one, Counter)}
    counters["compiled_models"] = compilation_counter.num_models_seen
    return [list(one.outputs[0].token_ids) for one in found], counters


def main() -> None:
    options = read_arguments()
    choose = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        model = make_model(options, choose)
        model.save_pretrained(name)
        requests = make_requests(options, choose, model.config.vocab_size)
        expected = [generate(model, one, options.new_tokens) for one in requests]
        bare = [generate(model, one._replace(names=[]), options.new_tokens) for one in requests]
        found, counters = serve(options, requests, Path(name))
    equal = [one == other for one, other in zip(found, expected, strict=True)]
    changed = sum(one != other for one, other in zip(bare, expected, strict=True))
    several = sum(len(one.names) > 1 for one in requests)
    print(f"{sum(equal)} of {len(equal)} requests have the tokens of ReftModel")
    print(f"adapters: {options.adapters}; requests for several: {several}")
    print(f"requests whose tokens are not those of the base model: {changed}")
    for name, value in counters.items():
        if name.endswith(("preemptions", "hits", "prompt_tokens", "accepted_tokens", "models")):
            print(f"{name}: {value:g}")
    for request, one, other in zip(requests, found, expected, strict=True):
        if one != other:
            print(f"{request.names} {request.weights}, {len(request.prompt)} tokens: {one} {other}")
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
