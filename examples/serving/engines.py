"""What the same requests cost an engine of vLLM: bare, with ReFT adapters, with vLLM's own LoRA.

    python examples/serving/engines.py --model HuggingFaceTB/SmolLM2-135M-Instruct --adapters 8 64

Seconds are those of the processor, so that they hold on a machine that does other things as well.
Adapters have random weights: LoReFT of rank 8 at f3+l3 of every sixth layer; LoRA of rank 8 on all
linear maps of a layer. All engines run without compiling; `--compile` compiles those that can.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

# The engine runs in this process, whose seconds are counted.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--methods", nargs="+", default=["bare", "reft", "lora"])
    parser.add_argument("--adapters", type=int, nargs="+", default=[8])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="For the figures, as JSON.")
    return parser.parse_args()


def save_adapters(name: str, folder: Path, count: int) -> None:
    """Random adapters "reft0", "lora0", ... on a model."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    import pyreft

    base = AutoModelForCausalLM.from_pretrained(name)
    layers = list(range(0, base.config.num_hidden_layers, 6))
    config = pyreft.ReftConfig(layers=layers, positions="f3+l3", rank=8)
    model = pyreft.get_reft_model(base, config)
    maps = [
        (path, module.weight.shape)
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in path
    ]
    peft = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none"}
    peft["target_modules"] = sorted({path.rpartition(".")[2] for path, _ in maps})
    for index in range(count):
        for parameter in model.interventions.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
        model.save_pretrained(folder / f"reft{index}")
        tensors = {}
        for path, (after, before) in maps:
            name_in_peft = f"base_model.model.{path}"
            tensors[f"{name_in_peft}.lora_A.weight"] = torch.randn(8, before) * 0.02
            tensors[f"{name_in_peft}.lora_B.weight"] = torch.randn(after, 8) * 0.02
        (folder / f"lora{index}").mkdir()
        save_file(tensors, folder / f"lora{index}/adapter_model.safetensors")
        (folder / f"lora{index}/adapter_config.json").write_text(json.dumps(peft))


def measure(options: argparse.Namespace, method: str, adapters: int, folder: Path) -> dict:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    given: dict = {"max_model_len": 512, "dtype": "float32", "skip_tokenizer_init": True}
    given |= {"max_num_seqs": 64, "enforce_eager": not options.compile}
    given |= {"enable_prefix_caching": False, "distributed_executor_backend": "uni"}
    if method != "bare":
        given |= {"enable_lora": True, "max_loras": adapters, "max_lora_rank": 8}
    if method == "reft":
        given["additional_config"] = {"pyreft": {}}
    llm = LLM(options.model, **given)
    choose = random.Random(0)
    prompts, requests = [], []
    for index in range(options.requests):
        ids = [choose.randrange(10, 1000) for _ in range(options.prompt_tokens)]
        prompts.append({"prompt_token_ids": ids})
        number = index % max(1, adapters)
        path = str(folder / f"{method}{number}")
        requests.append(None if method == "bare" else LoRARequest(path, number + 1, path))
    seconds: dict[str, list[float]] = {"one token": [], "all tokens": []}
    for turn in range(options.rounds + 1):
        for name, count in (("one token", 1), ("all tokens", options.new_tokens)):
            sampling = SamplingParams(
                temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
            )
            begun = time.process_time()
            llm.generate(prompts, sampling, lora_request=requests, use_tqdm=False)
            if turn:  # the first one loads the adapters
                seconds[name].append(time.process_time() - begun)
    prefill, whole = (min(values) for values in seconds.values())
    step = (whole - prefill) / (options.new_tokens - 1)
    return {"prefill": prefill, "decoding step": step, "all": whole}


def main() -> None:
    options = read_arguments()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        save_adapters(options.model, Path(folder), max(options.adapters))
        for method in options.methods:
            for adapters in options.adapters if method != "bare" else [0]:
                name = f"{method} {adapters}" if adapters else method
                found[name] = measure(options, method, adapters, Path(folder))
                shown = ", ".join(f"{key} {value:.4g} s" for key, value in found[name].items())
                print(f"{name:10}{shown}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
