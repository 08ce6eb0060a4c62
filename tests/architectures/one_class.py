"""One architecture in a process of its own, with a limit of time and memory."""

import json
import multiprocessing
import resource
from dataclasses import asdict, dataclass, field

import torch
from auto_mappings import classes, find_class
from class_checks import check_all, reason_of
from class_configs import tiny_config
from class_inputs import working_inputs

SECONDS, BYTES = 120, 10 * 2**30
_fork = multiprocessing.get_context("fork")


@dataclass
class Outcome:
    """What came of one architecture.

    Args:
        mapping, name: The auto mapping, and the model class.
        unbuilt: Why no tiny model of it could be built and run, None if it could.
        checks: By name, None for a check that holds, else the reason.
    """

    mapping: str
    name: str
    unbuilt: str | None = None
    checks: dict = field(default_factory=dict)

    @property
    def failed(self):
        """The first check that failed, with its reason; None if all hold."""
        return next(((name, why) for name, why in self.checks.items() if why), None)

    def to_json(self):
        return json.dumps(asdict(self))


def run_class(mapping, name, config_name, seconds=SECONDS):
    """The outcome of one architecture; one that takes too long or too much fails."""
    receiver, sender = _fork.Pipe(duplex=False)
    process = _fork.Process(target=_work, args=(mapping, name, config_name, sender))
    process.start()
    sender.close()
    outcome = Outcome(mapping, name)
    stage, ended = "built", False
    try:
        while not ended and receiver.poll(seconds):
            stage, outcome, ended = receiver.recv()
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    if not ended:
        how = f"no end after {seconds} s" if process.exitcode == -9 else "the process died"
        if stage == "built":
            return Outcome(mapping, name, unbuilt=how)
        outcome.checks["time and memory"] = how
    return outcome


def _work(mapping, name, config_name, sender):
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    outcome = Outcome(mapping, name)
    try:
        model = build(name, config_name)
        inputs = working_inputs(model)
        calibrate(model, inputs)
    except Exception as error:
        outcome.unbuilt = reason_of(error)
        sender.send(("built", outcome, True))
        return
    sender.send(("checked", outcome, False))
    outcome.checks = check_all(model, inputs, mapping)
    sender.send(("checked", outcome, True))


def warm_up():
    """Import all that checks need, once, so that the processes of architectures inherit it."""
    model = build("LlamaForCausalLM", "LlamaConfig")
    check_all(model, working_inputs(model), "causal_lm")


def build(name, config_name):
    """A tiny model with random weights, none of which is zero or one exactly, in evaluation."""
    model_class, config_class = find_class(name, config_name)
    torch.manual_seed(0)
    config = tiny_config(config_class)
    if name in classes("causal_lm") and getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    model = model_class(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                inputs = parameter[0].numel() if parameter.dim() > 1 else 100
                parameter.add_(0.5 * inputs**-0.5 * torch.randn_like(parameter))
    # torch chooses other kernels for weights that require gradients, with other roundings. LeViT
    # keeps tables of its weights from the moment on when it is put in evaluation mode.
    return model.requires_grad_(False).train().eval()


def calibrate(model, inputs):
    """Set the statistics of batch norms, without which a signal does not reach the last layer."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        model(**inputs)
    model.eval()
