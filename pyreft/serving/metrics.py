"""Metrics of each adapter, on the Prometheus endpoint of the server."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram
    from vllm.v1.engine import FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState
    from vllm.v1.metrics.stats import IterationStats


class _Metrics(NamedTuple):
    requests: Counter
    prompt_tokens: Counter
    cached_tokens: Counter
    generated_tokens: Counter
    first_token: Histogram
    whole: Histogram


def count(original: Callable[..., None]) -> Callable[..., None]:
    def update(
        self: OutputProcessor,
        req_state: RequestState,
        finish_reason: FinishReason | None,
        iteration_stats: IterationStats | None,
    ) -> None:
        original(self, req_state, finish_reason, iteration_stats)
        if iteration_stats is None or req_state.stats is None or req_state.lora_name is None:
            return
        finished, name = iteration_stats.finished_requests[-1], req_state.lora_name
        found = _metrics()
        found.requests.labels(name).inc()
        found.prompt_tokens.labels(name).inc(finished.num_prompt_tokens)
        found.cached_tokens.labels(name).inc(finished.num_cached_tokens)
        found.generated_tokens.labels(name).inc(finished.num_generation_tokens)
        found.first_token.labels(name).observe(req_state.stats.first_token_latency)
        found.whole.labels(name).observe(finished.e2e_latency)

    return update


def remove(name: str) -> None:
    """Forget the metrics of an adapter."""
    for one in _metrics():
        one.remove_by_labels({"adapter": name})


@cache
def _metrics() -> _Metrics:
    client = import_module("prometheus_client")

    def counter(name: str, text: str) -> Counter:
        made: Counter = client.Counter(f"pyreft:{name}", text, ["adapter"])
        return made

    def histogram(name: str, text: str) -> Histogram:
        buckets = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]
        made: Histogram = client.Histogram(f"pyreft:{name}", text, ["adapter"], buckets=buckets)
        return made

    return _Metrics(
        counter("requests", "Requests that ended."),
        counter("prompt_tokens", "Tokens of the prompts of requests that ended."),
        counter("cached_tokens", "Those of them that were in the prefix cache."),
        counter("generated_tokens", "Tokens that were generated for requests that ended."),
        histogram("time_to_first_token_seconds", "From the arrival of a request."),
        histogram("request_seconds", "From the arrival of a request to its end."),
    )
