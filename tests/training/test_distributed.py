"""Two processes train as one does with the same global batch, and write what one would write.

The processes are real ones, started as users start them, which talk through gloo.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import distributed_worker
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

import pyreft
from conftest import make_base
from pyreft.installed.offloading import fsdp_can_ignore_parameters
from pyreft.training.distributed import partition_only_frozen

TESTS = Path(__file__).parent.parent
TRAINER = ["ddp", "ddp-no-buffers", "fsdp"]
LOOP = ["loop", "fsdp-loop"]
ADAPTER = {"reft_config.json", "reft_model.safetensors", "README.md"}
OF_THE_RUN = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin"}


def launch(script, *arguments, **environment):
    """Run a script of this folder in two processes."""
    path = os.pathsep.join([str(TESTS), str(Path(pyreft.__file__).parents[1])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", "2", str(TESTS / "training" / script)]
    command += map(str, arguments)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where two processes wrote what they ended with, for each way to train."""
    if Version(transformers.__version__) < Version("5.1"):
        pytest.skip("in this transformers several processes cannot resume on CPU")
    directory = tmp_path_factory.mktemp("runs")
    launch("distributed_worker.py", directory)
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process ends with."""
    directory = tmp_path_factory.mktemp("alone")
    trainer = distributed_worker.train(directory, processes=1)
    by_trainer = distributed_worker.of_trainer(trainer)
    by_trainer |= {"last": load_file(directory / "checkpoint-6" / "reft_model.safetensors")}
    by_loop = distributed_worker.loop(processes=1)
    return dict.fromkeys(TRAINER, by_trainer) | dict.fromkeys(LOOP, by_loop)


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


def test_fsdp_is_refused_on_a_torch_that_would_shard_everything(monkeypatch):
    monkeypatch.setattr(fsdp_can_ignore_parameters, "problem", "it ignores none")
    with pytest.raises(pyreft.UnsupportedReleaseError, match=r"ignored_params.*it ignores none"):
        pyreft.shard_only_frozen(None, distributed_worker.make_model(seed=0))


def deepspeed(**settings):
    """What an accelerator with DeepSpeed knows of it."""
    plugin = SimpleNamespace(deepspeed_config={"zero_optimization": settings})
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)), settings


@pytest.mark.parametrize(("asked", "told"), [(0, 64), (1000, 1000)])
def test_zero3_is_told_to_leave_trained_parameters_whole(asked, told):
    accelerator, settings = deepspeed(stage=3, stage3_param_persistence_threshold=asked)
    model = distributed_worker.make_model(seed=0)
    partition_only_frozen(accelerator, model)
    assert settings["stage3_param_persistence_threshold"] == told


def test_zero3_is_refused_where_it_would_leave_the_whole_base_model_whole():
    model = distributed_worker.make_model(seed=0)
    model.model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ValueError, match="Use ZeRO-2"):
        partition_only_frozen(deepspeed(stage=3)[0], model)
    partition_only_frozen(deepspeed(stage=2)[0], model)


def test_zero3_is_refused_if_the_original_of_a_trained_module_is_not_there():
    base = make_base("llama")
    weight = base.model.norm.weight
    # As DeepSpeed leaves a parameter of which this process has a part.
    weight.ds_numel, weight.data = weight.numel(), torch.empty(0)
    config = pyreft.ReftConfig(layers=[0], positions="l1", rank=1, modules_to_save=["norm"])
    with pytest.raises(ValueError, match="before the TrainingArguments"):
        partition_only_frozen(deepspeed(stage=3)[0], pyreft.get_reft_model(base, config))
