"""Untrusted adapters: no code runs, the error is our own, and the model is as it was."""

import os
import resource
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hostile import CASES, TRACE
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import make_base, randomize
from pyreft import AdapterError, ReftConfig, ReftModel, get_reft_model
from pyreft.interventions import registry

# PEFT asks an old name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

# What a program does that runs other code, or talks to others.
CODE = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
CODE |= {"socket.connect", "socket.getaddrinfo", "exec", "import", "ctypes.dlopen", "os.putenv"}
IDS = torch.tensor([[3, 4, 5, 6]])
NAMED = [(which, name) for which, cases in CASES.items() for name in cases]


class Watch(TorchDispatchMode):
    """The largest tensor that was made with memory of its own."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.device.type != "meta":
            view = found._base is not None or "view" in str(function) or "set_" in str(function)
            self.largest = max(self.largest, 0 if view else found.numel())
        return found


class Audit:
    """What Python tells of code that runs, while it is asked to listen."""

    def __init__(self):
        self.events, self.listening = [], False
        sys.addaudithook(self.hear)

    def hear(self, event, args):
        if self.listening and event in CODE:
            self.events.append((event, str(args)[:200]))


AUDIT = Audit()


def make_model(which, base=None):
    base = make_base("llama") if base is None else base
    config = ReftConfig(
        layers=[0],
        positions="l1",
        rank=2,
        modules_to_save=["lm_head"] if which == "head" else None,
    )
    if which == "lora":
        base = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        model = get_reft_model(base, config)
        base.set_adapter("default")  # which learns again
        return randomize(model, 0.1)
    return randomize(get_reft_model(base, config), 0.1)


@torch.no_grad()
def logits(model):
    """Of a few tokens, as bytes."""
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.numpy().tobytes()


def everything(model):
    """All there is to a model, bit for bit, but for memory that it shares with nobody."""
    found = {"active": dict(getattr(model, "_active", {})), "logits": logits(model)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        bits = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = (id(tensor), tensor.requires_grad, bits)
    for name, module in model.named_modules():
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        hooks += [len(module._backward_hooks), len(module._state_dict_hooks)]
        found[f"module {name}"] = (id(module), module.training, hooks, sorted(vars(module)))
    return found


@pytest.fixture(scope="module")
def bases():
    """A bare model, and one with an adapter of each sort."""
    bare = make_base("llama")
    bare.model.norm.requires_grad_(False)
    bare.lm_head.train()
    models = {"bare": bare} | {which: make_model(which) for which in CASES}
    return {name: (model, everything(model)) for name, model in models.items()}


@pytest.fixture(scope="module")
def good(bases, tmp_path_factory):
    """Adapters before they are damaged; reading them imports whatever loading imports."""
    saved = tmp_path_factory.mktemp("good")
    for which in CASES:
        model = bases[which][0]
        model.save_pretrained(saved / which)
        ReftModel.from_pretrained(make_base("llama"), saved / which)
        model.load_weights(saved / which)
        if which != "lora":
            model.load_adapter(saved / which, "other")
            model.delete_adapter("other")
    (saved / "kilobytes").write_text(str(kilobytes()))
    return saved


def kilobytes():
    """The most memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def attack(load):
    """Try to load; nothing may happen but an error."""
    kinds, watch = dict(registry._kinds), Watch()
    AUDIT.events.clear()
    try:
        AUDIT.listening = True
        with pytest.raises(AdapterError) as caught, watch:
            load()
    finally:
        AUDIT.listening = False
    assert not AUDIT.events
    assert TRACE not in os.environ
    assert watch.largest < 10**7
    assert len(str(caught.value)) < 3000
    assert registry._kinds == kinds


def test_there_are_hundreds_of_cases():
    assert len(NAMED) >= 500
    assert [len(cases) for cases in CASES.values()] == [len(set(c)) for c in CASES.values()]


@pytest.mark.parametrize(("which", "name"), NAMED, ids=[name for _, name in NAMED])
def test_what_is_wrong_is_refused_and_changes_nothing(which, name, bases, good, tmp_path):
    directory = Path(shutil.copytree(good / which, tmp_path / "adapter"))
    CASES[which][name](directory)
    (bare, bare_before), (model, before) = bases["bare"], bases[which]
    attack(lambda: ReftModel.from_pretrained(bare, directory))
    assert everything(bare) == bare_before
    attack(lambda: model.load_weights(directory))
    attack(lambda: model.load_adapter(directory, "other"))
    attack(lambda: model.load_adapter(directory, "default"))
    assert everything(model) == before


def test_all_that_took_little_memory(good):
    """After the cases above, in the same process."""
    assert kilobytes() - int((good / "kilobytes").read_text()) < 300_000
