"""Threads of a CPU that wait for each other, since other processes have its cores.

torch's threads meet after each operation. One of them that is not running, since its core is given
to another process, then holds up all: short operations take ten times as long as on one thread.
"""

from __future__ import annotations

import functools
import statistics
import time

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Tokens, features in and out of the matmul that is timed, and how often.
_SHAPE, _TIMES = (64, 512, 1024), 9
# How many times as long it may take on several threads as on one.
_ALLOWED = 1.5


@functools.cache
def warn_if_threads_wait() -> None:
    """Time a matmul on one thread and on all of them, and warn if one is faster.

    Once in a process, some milliseconds. The number of threads stays what the user set.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return
    try:
        several, one = seconds_of_matmul(threads), seconds_of_matmul(1)
    finally:
        torch.set_num_threads(threads)
    if several > _ALLOWED * one:
        logger.warning(
            f"A matmul takes {several / one:.1f} times as long on {threads} threads "
            "as on one: other processes have the cores, and threads wait for each other. A run on "
            "one thread is faster now: call torch.set_num_threads(1), or set OMP_NUM_THREADS=1."
        )


def seconds_of_matmul(threads: int) -> float:
    """The median time of a matmul on so many threads, which are left set."""
    torch.set_num_threads(threads)
    tokens, features, outputs = _SHAPE
    x = torch.ones(tokens, features, device="cpu")
    weight = torch.ones(features, outputs, device="cpu")
    seconds = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        torch.mm(x, weight)
        seconds.append(time.perf_counter() - begun)
    # The first ones start threads.
    return statistics.median(seconds[_TIMES // 3 :])
