"""What the benchmarks share: workers in their environments, steps in turn, tables and files.

Each method trains in a process of its own (worker.py), upstream and adapter-hub with the Python of
an environment that is made for them on the first run. All take steps in turn while the others wait,
so that a noisy machine disturbs all alike, and a ratio is the median over such rounds. Of two steps
in a turn the second is timed: the first finds the caches full of what others did.
"""

import argparse
import json
import os
import platform
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

HERE = Path(__file__).parent
# Environment -> what pip installs into it, one command after the other.
ENVIRONMENTS = {
    "upstream": [
        ["torch==2.13.0"],
        ["transformers==4.45.1", "accelerate<1.5", "datasets", "huggingface_hub<1"],
        ["matplotlib", "plotnine", "safetensors"],
        ["--no-deps", "pyreft==0.1.0", "pyvene==0.1.8"],
    ],
    "adapters": [["torch==2.13.0"], ["adapters==1.3.0", "accelerate"]],
    "other": [["torch==2.13.0"], ["-e", str(HERE.parents[1])], ["transformers==5.23.0"]],
}
ENVIRONMENT_OF = {
    "upstream": "upstream",
    "adapter-hub": "adapters",
    "pyreft, other release": "other",
}
METHODS = ["pyreft", "pyreft, no reuse", "bare", "upstream", "lora", "adapter-hub"]
# pyreft on another transformers: two_releases.py alone runs it.
OTHER_RELEASE = "pyreft, other release"


def parse(description: str, methods: list[str], *more: tuple[str, dict]) -> argparse.Namespace:
    """The arguments that all benchmarks have, and those of one of them."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--model", help="directory of a causal language model; SmolLM2 by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="for the JSON")
    parser.add_argument("--markdown", type=Path, help="put the table into this document as well")
    parser.add_argument("--suffix", default="", help="of the table's name, for another machine")
    if methods:
        parser.add_argument(
            "--methods", nargs="*", default=methods, choices=[*METHODS, OTHER_RELEASE]
        )
        text = "folder of the peers' environments, made if they are not there"
        parser.add_argument("--peers-dir", type=Path, default=Path("out/peers"), help=text)
    for name, settings in more:
        parser.add_argument(name, **settings)
    arguments = parser.parse_args()
    if arguments.model is None:
        arguments.model = runpy.run_path(str(HERE.parent / "base_model.py"))["smollm2"]()
    torch.set_num_threads(arguments.threads)
    return arguments


def load(arguments: argparse.Namespace) -> Any:
    """The base model, in this process."""
    base = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    return base.to(arguments.device).eval()


def depth_of(model: str) -> int:
    """The number of layers of a model."""
    return int(transformers.AutoConfig.from_pretrained(model).num_hidden_layers)


# ---- workers ---------------------------------------------------------------------------------


class Worker:
    """A method at work on one setting, in a process of its own.

    Args:
        method: One of `METHODS`.
        setting: layers, positions (first, last), rank, prompt, completion, batch, rows, dtype.
        arguments: As of `parse`.
    """

    def __init__(self, method: str, setting: dict, arguments: argparse.Namespace) -> None:
        self.method = method
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name) / "errors"
        own = {"threads": arguments.threads, "device": arguments.device, "out": self._folder.name}
        setting = {"model": arguments.model, **own, **setting, "method": method}
        if isinstance(setting["model"], str):
            setting["model"] = for_older_releases(setting["model"], Path(self._folder.name))
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        if method in ENVIRONMENT_OF and not method.startswith("pyreft"):
            environment.pop("PYTHONPATH", None)
        with open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                [
                    python_of(method, arguments.peers_dir),
                    str(HERE / "worker.py"),
                    json.dumps(setting),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )

    def loss(self) -> float:
        """Of its base model, on two rows; to be read once, before anything is asked."""
        return self._read()["loss"]

    def ask(self, command: str) -> dict[str, Any]:
        """Tell it "step", "saved" (a step that counts what is kept for backward), "generate",
        "generate bare" or "peak".
        """
        assert self._process.stdin
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise SystemExit(f"{self.method} ended:\n{self._errors.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate("")
        self._folder.cleanup()


def start(setting: dict, arguments: argparse.Namespace) -> list[Worker]:
    """A worker for each method. Their base models have the same loss, or they are not the same."""
    workers = [Worker(method, setting, arguments) for method in arguments.methods]
    losses = {worker.method: worker.loss() for worker in workers}
    tolerance = 1e-3 if setting["dtype"] == "float32" else 0.05
    if losses and max(losses.values()) - min(losses.values()) > tolerance:
        raise SystemExit(f"they do not run the same base model, their losses are {losses}.")
    return workers


def take_turns(workers: list[Worker], rounds: int) -> dict[str, list[float]]:
    """Seconds of one of two steps of each in each round, begun by another one each time."""
    seconds: dict[str, list[float]] = {worker.method: [] for worker in workers}
    for turn in range(rounds):
        first = turn % max(len(workers), 1)
        for worker in workers[first:] + workers[:first]:
            worker.ask("step")
            seconds[worker.method].append(worker.ask("step")["seconds"])
        # A run takes long, and may be stopped.
        print({method: round(times[-1], 3) for method, times in seconds.items()}, file=sys.stderr)
    return seconds


def measure_later(setting: dict, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of steps whose rows were seen before, in an epoch of two steps."""
    workers = start({**setting, "rows": 2 * setting["batch"]}, arguments)
    take_turns(workers, 1)
    found = take_turns(workers, arguments.rounds)
    for worker in workers:
        worker.close()
    return found


def greedy(ids: torch.Tensor, tokens: int) -> dict[str, Any]:
    """The arguments of `generate` that make so many tokens of each prompt."""
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    return inputs | {"max_new_tokens": tokens, "min_new_tokens": tokens}


def seconds(function: Callable[[], Any], device: str) -> float:
    """How long one call takes, in this process."""
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds that each says it took, in each round, after a call that warms up."""
    for way in ways.values():
        way()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            found[name].append(ways[name]())
    return found


def python_of(method: str, directory: Path) -> str:
    """The Python that has a method, in an environment made for it if need be."""
    name = ENVIRONMENT_OF.get(method)
    if name is None:
        return sys.executable
    environment = directory.absolute() / name
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"making {environment}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        for packages in ENVIRONMENTS[name]:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def for_older_releases(model: str, folder: Path) -> str:
    """The model with the fields that transformers 4 read in its config."""
    if not Path(model).is_dir():
        return model
    copy = folder / "model"
    copy.mkdir()
    for file in Path(model).absolute().iterdir():
        (copy / file.name).symlink_to(file)
    config = json.loads((copy / "config.json").read_text())
    # Without it they take another value, and say nothing.
    config |= {"rope_theta": config.get("rope_parameters", {}).get("rope_theta", 10000.0)}
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(config))
    return str(copy)


# ---- numbers and tables ----------------------------------------------------------------------


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """The median over rounds of the time of one over that of the other."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, its columns as wide as they need to be."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in [head, *rows]]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _processor() -> str:
    """The model of the processor."""
    listed = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", listed.read_text()) if listed.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def publish(name: str, arguments: argparse.Namespace, figures: Any, text: str) -> None:
    """Print a table; write the figures beside it, and the table into a document if asked to."""
    about = {
        "processor": _processor(),
        "instructions": os.environ.get("ONEDNN_MAX_CPU_ISA")
        or torch.backends.cpu.get_cpu_capability(),
        "threads": f"{arguments.threads} threads",
        "torch": f"torch {torch.__version__}",
        "transformers": f"transformers {transformers.__version__}",
        "rounds": f"{arguments.rounds} rounds",
    }
    if arguments.device == "cuda":
        about = {"device": torch.cuda.get_device_name(), **about}
    name, text = name + arguments.suffix, f"{text}\n\n{', '.join(about.values())}."
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"arguments": vars(arguments), "machine": about, "figures": figures}
    (arguments.out / f"{name}.json").write_text(json.dumps(content, indent=2, default=str))
    if arguments.markdown:
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        document = arguments.markdown.read_text(encoding="utf-8")
        if not re.search(marks, document, re.DOTALL):
            raise SystemExit(f"{arguments.markdown} has no <!-- {name} --> ... <!-- end -->")
        changed = re.sub(
            marks, lambda found: f"{found[1]}{text}\n{found[2]}", document, flags=re.DOTALL
        )
        arguments.markdown.write_text(changed, encoding="utf-8")
