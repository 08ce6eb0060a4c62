"""What the same requests cost an engine of vLLM: bare, with ReFT adapters, with vLLM's own LoRA.

    python examples/serving/engines.py --model HuggingFaceTB/SmolLM2-135M-Instruct --adapters 8 64

Seconds are those of the processor, and each round runs all engines one after the other, so that the
ratios hold on a machine that does other things as well. The throughput is relative to the first
method in the same round: the median of the rounds, the least and the most.

Adapters have random weights: LoReFT of rank 8 at f3+l3 of every sixth layer; LoRA of rank 8 on all
linear maps of a layer. All engines run without compiling; `--compile` compiles those that can.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
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
    parser.add_argument("--adapters", type=int, nargs="+", default=[8], help="Of the requests.")
    parser.add_argument("--registered", type=int, default=0, help="ReFT adapters in memory.")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, help="For the figures, as JSON.")
    return parser.parse_args()


def save_adapters(name: str, folder: Path, methods: list[str], count: int, registered: int) -> None:
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
    for index in range(max(count, registered) if "reft" in methods else 0):
        for parameter in model.interventions.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
        model.save_pretrained(folder / f"reft{index}")
    for index in range(count if "lora" in methods else 0):
        tensors = {}
        for path, (after, before) in maps:
            name_in_peft = f"base_model.model.{path}"
            tensors[f"{name_in_peft}.lora_A.weight"] = torch.randn(8, before) * 0.02
            tensors[f"{name_in_peft}.lora_B.weight"] = torch.randn(after, 8) * 0.02
        (folder / f"lora{index}").mkdir()
        save_file(tensors, folder / f"lora{index}/adapter_model.safetensors")
        (folder / f"lora{index}/adapter_config.json").write_text(json.dumps(peft))


class Engine:
    """An engine with its requests.

    Args:
        options: The options of the command.
        method: "bare", "reft" or "lora".
        adapters: How many adapters the requests name, one after the other.
        folder: Where the adapters are.
    """

    def __init__(
        self, options: argparse.Namespace, method: str, adapters: int, folder: Path
    ) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        registered = max(adapters, options.registered) if method == "reft" else adapters
        given: dict = {"max_model_len": 512, "dtype": "float32", "skip_tokenizer_init": True}
        given |= {"max_num_seqs": 64, "enforce_eager": not options.compile}
        given |= {"enable_prefix_caching": False, "distributed_executor_backend": "uni"}
        if method != "bare":
            given |= {"enable_lora": True, "max_loras": adapters, "max_lora_rank": 8}
            given |= {"max_cpu_loras": registered}
        if method == "reft":
            given["additional_config"] = {"pyreft": {}}
        self.llm = LLM(options.model, **given)
        paths = [str(folder / f"{method}{number}") for number in range(registered)]
        made = [LoRARequest(path, number + 1, path) for number, path in enumerate(paths)]
        if method != "bare":
            for one in reversed(made):
                self.llm.llm_engine.add_lora(one)
        choose = random.Random(0)
        self.prompts = [
            {"prompt_token_ids": [choose.randrange(10, 1000) for _ in range(options.prompt_tokens)]}
            for _ in range(options.requests)
        ]
        self.requests = [
            None if method == "bare" else made[index % adapters]
            for index in range(options.requests)
        ]

    def run(self, count: int) -> float:
        """The seconds of the processor for these new tokens of each request."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        begun = time.process_time()
        self.llm.generate(self.prompts, sampling, lora_request=self.requests, use_tqdm=False)
        return time.process_time() - begun


def main() -> None:
    options = read_arguments()
    with tempfile.TemporaryDirectory() as name:
        folder, most = Path(name), max(options.adapters)
        save_adapters(options.model, folder, options.methods, most, options.registered)
        engines = {}
        for method in options.methods:
            for adapters in options.adapters if method != "bare" else [0]:
                label = f"{method} {adapters}" if adapters else method
                engines[label] = Engine(options, method, adapters, folder)
        seconds: dict[str, list[list[float]]] = {label: [] for label in engines}
        for turn in range(options.rounds + 1):
            # One engine after the other in each round, so that all have the same neighbours.
            for label, engine in engines.items():
                found = [engine.run(1), engine.run(options.new_tokens)]
                if turn:  # the first one allocates
                    seconds[label].append(found)
    first = seconds[next(iter(seconds))]
    results = {}
    for label, rounds in seconds.items():
        ratios = [one[1] / mine[1] for one, mine in zip(first, rounds, strict=True)]
        results[label] = {
            "prefill": statistics.median(one[0] for one in rounds),
            "all": statistics.median(one[1] for one in rounds),
            "throughput": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
        shown = ", ".join(f"{key} {value:.4g}" for key, value in results[label].items())
        print(f"{label:10}{shown}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
