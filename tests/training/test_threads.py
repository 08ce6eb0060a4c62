"""Threads that wait for each other are said, and their number stays what the user set."""

import pytest
import torch
import transformers as hf
from runs import make_trainer, reft_model

from pyreft.training import threads


@pytest.fixture
def two_threads(monkeypatch):
    threads.warn_if_threads_wait.cache_clear()
    monkeypatch.setattr(hf.utils.logging.get_logger(threads.__name__), "propagate", True)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
    threads.warn_if_threads_wait.cache_clear()


@pytest.mark.parametrize("slower", [1.2, 9.6])
def test_a_run_warns_once_if_several_threads_are_slower(
    slower, two_threads, tokenizer, tmp_path, caplog, monkeypatch
):
    timed = []

    def seconds(count):
        timed.append(count)
        return slower * 1e-4 if count == 2 else 1e-4

    monkeypatch.setattr(threads, "seconds_of_matmul", seconds)
    for _ in range(2):
        make_trainer(reft_model(), tokenizer, tmp_path, max_steps=1).train()
    said = [record.message for record in caplog.records if record.name == threads.__name__]
    assert timed == [2, 1]
    assert len(said) == (slower > 2)
    assert all("9.6 times as long on 2 threads" in message for message in said)


def test_timing_leaves_the_number_of_threads(two_threads):
    assert threads.seconds_of_matmul(1) > 0
    torch.set_num_threads(2)
    threads.warn_if_threads_wait()
    assert torch.get_num_threads() == 2


def test_one_thread_is_not_timed(monkeypatch):
    threads.warn_if_threads_wait.cache_clear()
    monkeypatch.setattr(threads, "seconds_of_matmul", None)
    threads.warn_if_threads_wait()
