"""A base model that accelerate keeps on CPU or disk gives the numbers that it gives without."""

import distributed_worker
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import TrainingArguments

import pyreft
from conftest import make_base

CPU = torch.device("cpu")
PARTS = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
DEVICE_MAP = dict.fromkeys(PARTS, "cpu") | {
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
}


def wrap(base):
    torch.manual_seed(0)
    return pyreft.get_reft_model(base, pyreft.ReftConfig(layers=[0, 1], positions="f2+l2", rank=2))


def rows():
    return distributed_worker.pad([distributed_worker.Rows()[index] for index in range(4)])


def dispatch(base, directory):
    dispatch_model(base, DEVICE_MAP, main_device="cpu", offload_dir=directory)


OFFLOAD = {
    "cpu": lambda base, directory: cpu_offload(base, CPU),
    "disk": lambda base, directory: disk_offload(base, directory, CPU),
    "device_map": dispatch,
}


@pytest.mark.parametrize("how", OFFLOAD)
# Older transformers take an offloaded model to be on another device than its input.
@pytest.mark.filterwarnings("ignore:You are calling .generate")
def test_an_offloaded_base_model_gives_the_same_numbers_and_gradients(how, tmp_path):
    base = make_base("llama")
    OFFLOAD[how](base, tmp_path)
    prompt = torch.arange(3, 9)[None]
    results = []
    for model in (wrap(base), wrap(make_base("llama"))):
        outputs = model(**rows())
        outputs.loss.backward()
        generated = model.generate(prompt, max_new_tokens=4, do_sample=False)
        gradients = [p.grad for p in model.interventions.parameters()]
        results.append([outputs.logits, generated, *gradients])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def train(model, directory):
    arguments = TrainingArguments(
        str(directory),
        max_steps=3,
        learning_rate=5e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    pyreft.ReftTrainer(
        model=model,
        args=arguments,
        train_dataset=distributed_worker.Rows(),
        data_collator=distributed_worker.pad,
    ).train()


def test_a_base_model_with_a_device_map_is_trained_to_the_same_adapter(tmp_path):
    base = make_base("llama")
    dispatch(base, tmp_path / "offloaded")
    models = wrap(base), wrap(make_base("llama"))
    for index, model in enumerate(models):
        train(model, tmp_path / str(index))
    ours, theirs = (model.interventions.state_dict() for model in models)
    # Of the other one frozen computation is reused, which rounds otherwise.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (tmp_path / "0" / "checkpoint-3" / "reft_model.safetensors").exists()


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_the_trainer_refuses_an_offloaded_base_model_that_has_no_device_map(how, tmp_path):
    base = make_base("llama")
    OFFLOAD[how](base, tmp_path)
    with pytest.raises(ValueError, match="device_map"):
        train(wrap(base), tmp_path / "run")
