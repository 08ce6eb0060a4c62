"""Two processes under DeepSpeed train as one does alone, and write the adapter it would write."""

import distributed_worker
import pytest
import torch
from safetensors.torch import load_file
from test_distributed import ADAPTER, assert_close, launch

from conftest import make_base

pytest.importorskip("deepspeed")

# What deepspeed_worker runs.
WAYS = ["zero2", "zero3", "zero3-loaded"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where two processes wrote what they ended with, for each way to train."""
    directory = tmp_path_factory.mktemp("runs")
    make_base("llama", tie_word_embeddings=True).save_pretrained(directory / "base")
    launch("deepspeed_worker.py", directory, directory / "base", DS_ACCELERATOR="cpu")
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process without DeepSpeed ends with."""
    trainer = distributed_worker.train(tmp_path_factory.mktemp("alone"), processes=1)
    return distributed_worker.of_trainer(trainer)


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(way, out, alone):
    for rank in (0, 1):
        assert_close(load_file(out / f"{way}-{rank}.safetensors"), alone)


@pytest.mark.parametrize("way", WAYS)
def test_one_whole_adapter_is_saved(way, out, alone):
    directory = out / f"{way}-adapter"
    assert {path.name for path in directory.iterdir()} == ADAPTER | {"training_args.bin"}
    saved = distributed_worker.make_model(seed=7)
    saved.load_weights(directory)
    assert_close(distributed_worker.trained(saved), {k: v for k, v in alone.items() if "." in k})


@pytest.mark.parametrize("way", WAYS)
def test_a_checkpoint_holds_the_adapter_and_no_base_model(way, out):
    checkpoint = out / way / "checkpoint-6"
    assert {path.name for path in checkpoint.iterdir()} >= ADAPTER
    base = distributed_worker.make_model(seed=0).model
    whole = sum(p.numel() * p.element_size() for p in base.parameters())
    for path in checkpoint.rglob("*model_states.pt"):
        assert path.stat().st_size < whole / 2


@pytest.mark.parametrize("way", ["zero2", "zero3"])
def test_a_resumed_run_is_the_same_bit_for_bit(way, out):
    names = [f"{way}/checkpoint-6", f"{way}-resumed/checkpoint-6"]
    whole, resumed = (load_file(out / name / "reft_model.safetensors") for name in names)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
