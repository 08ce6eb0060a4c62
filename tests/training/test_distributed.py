"""Two processes train as one does with the same global batch, and write what one would write.

The processes are real ones, started as users start them, which talk through gloo.
"""

import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch
from safetensors.torch import load_file

import pyreft

TESTS = Path(__file__).parent.parent
TRAINER = ["ddp", "fsdp"]
LOOP = ["loop", "fsdp-loop"]
ADAPTER = {"reft_config.json", "reft_model.safetensors"}
OF_THE_RUN = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where two processes wrote what they ended with, for each way to train."""
    directory = tmp_path_factory.mktemp("runs")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(Path(pyreft.__file__).parents[1])]),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = str(TESTS / "training" / "distributed_worker.py")
    command = [*launcher, "--nproc_per_node", "2", script, str(directory)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process ends with."""
    directory = tmp_path_factory.mktemp("alone")
    trainer = distributed_worker.train(directory, processes=1)
    by_trainer = distributed_worker.of_trainer(trainer)
    by_trainer |= {"last": load_file(directory / "checkpoint-6" / "reft_model.safetensors")}
    by_loop = distributed_worker.loop(processes=1)
    return {"ddp": by_trainer, "fsdp": by_trainer, "loop": by_loop, "fsdp-loop": by_loop}


def assert_close(found, expected):
    for name in expected.keys() - {"last", "sharded"}:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", TRAINER + LOOP)
def test_two_processes_train_as_one_does(way, out, alone):
    for rank in (0, 1):
        assert_close(load_file(out / f"{way}-{rank}.safetensors"), alone[way])


@pytest.mark.parametrize("way", TRAINER)
def test_the_last_checkpoint_is_that_of_one_process(way, out, alone):
    last = load_file(out / way / "checkpoint-6" / "reft_model.safetensors")
    assert_close(last, alone[way]["last"])


@pytest.mark.parametrize("way", TRAINER + LOOP)
def test_the_processes_end_with_the_same_bits(way, out):
    first, second = (load_file(out / f"{way}-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("way", TRAINER)
def test_a_checkpoint_is_written_once_and_holds_no_base_model(way, out):
    assert {path.name for path in (out / way).iterdir()} == {"checkpoint-3", "checkpoint-6"}
    files = {path.name for path in (out / way / "checkpoint-6").iterdir()}
    assert files == ADAPTER | OF_THE_RUN | {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.parametrize("way", TRAINER)
def test_a_resumed_run_of_two_processes_is_the_same_bit_for_bit(way, out):
    names = [f"{way}/checkpoint-6", f"{way}-resumed/checkpoint-6"]
    whole, resumed = (load_file(out / name / "reft_model.safetensors") for name in names)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("way", TRAINER)
def test_two_processes_end_with_the_best_adapter(way, out):
    base = distributed_worker.make_model(seed=0).unwrap()
    best = pyreft.ReftModel.from_pretrained(base, out / way / "checkpoint-3")
    last = pyreft.ReftModel.from_pretrained(best.unwrap(), out / way / "checkpoint-6")
    ended = load_file(out / f"{way}-1.safetensors")
    for name, parameter in best.named_parameters():
        if name.startswith("interventions."):
            assert torch.equal(ended[name], parameter)
            assert not torch.equal(ended[name], last.get_parameter(name))


def test_fsdp_shards_the_base_model_and_no_intervention(out):
    ended = load_file(out / "fsdp-0.safetensors")
    base = distributed_worker.make_model(seed=0).model
    assert ended["sharded"] >= len(list(base.model.layers.parameters()))


def test_an_intervention_without_a_token_has_the_gradient_zero():
    model = distributed_worker.make_model(seed=0)
    model(**distributed_worker.pad([distributed_worker.Rows()[0]])).loss.backward()
    first_half, last_half, *_ = model.interventions.values()
    assert all(not p.grad.any() for p in first_half.parameters())
    assert all(p.grad.any() for p in last_half.parameters())


def test_data_parallel_is_refused_with_advice():
    with pytest.raises(RuntimeError, match="torchrun"):
        distributed_worker.make_model(seed=0)._replicate_for_data_parallel()
