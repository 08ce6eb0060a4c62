"""Load a server with open-loop traffic for several adapters, and measure what clients see.

    pyreft serve MODEL a0=ADAPTER a1=ADAPTER ... --port 8000
    python examples/serving/load.py --names a0 a1 --rate 2 --out reft.json
    python examples/serving/load.py --draw reft.json bare.json --picture load.png

Requests arrive at random times (a Poisson process), whether those before them are answered or not.
Prompts are random ids of tokens. The same seed gives the same requests at the same times, so that
servers can be compared.
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

SHOWN = {
    "first": "time to the first token (s)",
    "between": "time between tokens (s)",
    "whole": "whole request (s)",
}


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--names", nargs="+", default=[], help="Models of the requests, in turn.")
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rate", type=float, default=2.0, help="Requests a second.")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=1000, help="Ids of prompts are below.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="For the figures, as JSON.")
    parser.add_argument("--draw", nargs="+", type=Path, default=[], help="Files of --out.")
    parser.add_argument("--picture", type=Path, default=Path("load.png"))
    return parser.parse_args()


def run_request(url: str, body: dict, times: list[float], errors: list[str]) -> None:
    """Append the time of the start, and of each token."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    times.append(time.perf_counter())
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    choices = json.loads(line[6:])["choices"]
                    count = sum(len(choice.get("token_ids") or []) for choice in choices)
                    times.extend([time.perf_counter()] * count)
    except (OSError, ValueError) as error:
        errors.append(str(error))


def quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def measure(options: argparse.Namespace) -> dict:
    choose = random.Random(options.seed)
    all_times: list[list[float]] = []
    errors: list[str] = []
    threads = []
    begun = arrival = time.perf_counter()
    for index in range(options.requests):
        body = {
            "model": options.names[index % len(options.names)],
            "prompt": [
                choose.randrange(10, options.vocabulary) for _ in range(options.prompt_tokens)
            ],
            "max_tokens": options.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        arrival += choose.expovariate(options.rate)
        time.sleep(max(0.0, arrival - time.perf_counter()))
        all_times.append(times := [])
        thread = threading.Thread(target=run_request, args=(options.url, body, times, errors))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    answered = [times for times in all_times if len(times) > 1]
    samples = {
        "first": [times[1] - times[0] for times in answered],
        "between": [
            (times[-1] - times[1]) / (len(times) - 2) for times in answered if len(times) > 2
        ],
        "whole": [times[-1] - times[0] for times in answered],
    }
    tokens = sum(len(times) - 1 for times in answered)
    found = {"requests": options.requests, "models": len(options.names), "rate": options.rate}
    found |= {"errors": len(errors), "seconds": seconds, "tokens_per_second": tokens / seconds}
    for name, values in samples.items():
        for part in (0.5, 0.99) if values else ():
            found[f"{name}_p{part * 100:.0f}"] = quantile(values, part)
    if errors:
        print(f"{len(errors)} errors, the first: {errors[0]}")
    return found | {"samples": samples}


def draw(files: list[Path], picture: Path) -> None:
    """The share of requests that were as fast, for each file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, 3), SHOWN.items(), strict=True):
        for file in files:
            values = sorted(json.loads(file.read_text())["samples"][name])
            shares = [(index + 1) / len(values) for index in range(len(values))]
            axes.step(values, shares, where="post", label=file.stem)
        axes.set_xlabel(title)
        axes.set_ylim(0, 1)
    figure.axes[0].set_ylabel("share of requests")
    figure.axes[0].legend()
    figure.savefig(picture, dpi=120)
    print(f"{picture} is written.")


def main() -> None:
    options = read_arguments()
    if options.draw:
        draw(options.draw, options.picture)
        return
    if not options.names:
        raise SystemExit("give --names, the models of the requests.")
    found = measure(options)
    for name, value in found.items():
        if name != "samples":
            print(f"{name:20}{value:.4g}")
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
