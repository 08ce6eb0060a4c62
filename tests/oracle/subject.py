"""What is tested: a ReftModel made of a case, with the parameters of its reference."""

import copy
import dataclasses
import tempfile

import torch
from adapter_cases import NAMES, interventions
from bases import HEADS, make, place, with_lora
from comparing import require
from formulas import Parameters
from position_rules import AFTER_LARGE, RefusedError, after_large, split
from row_by_row import Edit, Reference, Turn, refuse

import pyreft

pyreft.register_position(AFTER_LARGE, after_large)


class Pair:
    """A model of pyreft's and its reference, of one case.

    Attributes:
        model: The `ReftModel`.
        reference: The `Reference`.
        parameters: The parameters of each adapter's interventions, as `model` has them.
        bare: Whether nothing is edited in the reference, as in a model whose adapter is disabled.
    """

    def __init__(self, case):
        self.case = case
        base = copy.deepcopy(make(case.architecture, case.weights))
        # The reference changes nothing, so that it takes the one that all cases share.
        beside = make(case.architecture, case.weights)
        if case.lora:
            base = with_lora(base, case.architecture, case.lora, case.seed)
            beside = copy.deepcopy(base)
        self.reference = Reference(beside, case.architecture)
        generator = torch.Generator().manual_seed(case.seed)
        self.configs = interventions(case)
        self.parameters = [[self._draw(one, generator) for one in each] for each in self.configs]
        self.model = self._wrap(base)
        if "saved" in case.history:
            self.model = self._reload(self.model)
        self.bare = False

    def _draw(self, one, generator):
        _, _, width, _, _ = place(self.case.architecture, one["layer"], one["component"])
        shape = (one["kind"], width, one["rank"], one.get("act_fn"), one.get("add_bias", False))
        return Parameters(*shape, generator)

    def _wrap(self, base):
        configs = [_config(config) for config in self.case.adapters]
        model = pyreft.get_reft_model(base, configs[0])
        for name, config in list(zip(NAMES, configs, strict=False))[1:]:
            model.add_adapter(name, config)
        if "switched" in self.case.history:
            model.add_adapter("gone", pyreft.ReftConfig(positions="f1", rank=2))
            model.set_adapter("gone")
        self._activate(model)
        if "switched" in self.case.history:
            model.delete_adapter("gone")
        if "warm" in self.case.history:
            _run(model.eval())
        for name, parameters in zip(NAMES, self.parameters, strict=False):
            modules = model.adapters[name].interventions.values()
            for module, one in zip(modules, parameters, strict=True):
                width = one.tensors["basis"].shape[1]
                what = f"{type(module).__name__} is {module.embed_dim} wide, its place {width}"
                require(module.embed_dim == width, what)
                one.give(module)
        return model.eval()

    def _activate(self, model):
        names, weights = zip(*self.case.active, strict=True)
        model.set_adapter(list(names), list(weights))

    def _reload(self, model):
        """The same from a file, on the base model that it is taken off."""
        with tempfile.TemporaryDirectory() as directory:
            model.set_adapter("default")
            model.save_pretrained(directory)
            model = pyreft.ReftModel.from_pretrained(model.unwrap(), directory)
            for name in NAMES[1 : len(self.parameters)]:
                model.load_adapter(directory, name, subfolder=name)
        self._activate(model)
        return model.eval()

    def edits(self, row):
        """The `Edit`s of a row."""
        return [] if self.bare else row_edits(self.case, row, self.parameters)


@torch.no_grad()
def _run(model):
    """One pass on some batch; whatever is kept of it must not be used for another."""
    ids = torch.arange(3, 43).view(2, 20)
    if model.config.is_encoder_decoder:
        model(input_ids=ids, decoder_input_ids=ids)
    elif model.can_generate():
        model.generate(input_ids=ids, max_new_tokens=2)
    else:
        model(input_ids=ids)


def row_edits(case, row, parameters=None):
    """The `Edit`s of a row, with parameters or to find positions alone."""
    found = []
    for name, weight in case.edits(row):
        adapter = NAMES.index(name)
        configs = interventions(case)[adapter]
        places = [place(case.architecture, c["layer"], c["component"])[:2] for c in configs]
        for index, config in enumerate(configs):
            beside = [
                c["positions"] for c, at in zip(configs, places, strict=True) if at == places[index]
            ]
            one = Edit(parameters and parameters[adapter][index], weight, config, tuple(beside))
            found.append(dataclasses.replace(one, adapter=adapter, **_explicit(case, index, row)))
    return found


def _explicit(case, index, row):
    """Explicit positions and directions of an intervention in a row."""
    found = {}
    if case.locations is not None:
        rows = case.locations[row]
        found["positions"] = tuple(rows[index if len(rows) > 1 else 0])
    if case.subspaces is not None:
        found["directions"] = tuple(case.subspaces[index][row])
    return found


def refuse_config(case):
    """Raise RefusedError if two interventions of an adapter meet in every long prompt, or one is
    of what an encoder does not read, a completion."""
    alone = dataclasses.replace(case, names=None, locations=None, subspaces=None)
    for name in NAMES[: len(case.adapters)]:
        one = dataclasses.replace(alone, active=((name, 1.0),))
        edits = row_edits(one, 0)
        refuse(case.architecture, edits, [Turn(0, 900)], 1000, read=900)
        by_function = set()
        for edit in edits:
            path, side, *_, stack = place(
                case.architecture, edit.config["layer"], edit.config["component"]
            )
            words = set(split(edit.config["positions"]))
            if AFTER_LARGE in words:
                here = {(path, side, h) for h in edit.config.get("heads") or range(HEADS)}
                if here & by_function:
                    raise RefusedError("two interventions are where one function says")
                by_function |= here
            if stack == "encoder" and "completion" in words and "prompt" not in words:
                raise RefusedError("an encoder reads no completion")


def refusal(pair, rows):
    """Why pyreft must refuse a batch, or None."""
    case, edited = pair.case, False
    try:
        for row, (ids, n, _, read) in enumerate(rows):
            length = 0 if read is None else len(read)
            edited |= refuse(
                case.architecture, pair.edits(row), [Turn(0, n)], len(ids), ids, length
            )
    except RefusedError as refused:
        return str(refused)
    by_itself = case.names is None and case.locations is None
    if pair.model.training and torch.is_grad_enabled() and by_itself and not edited:
        return "training that edits nothing"
    return None


def call(refused, function, **arguments):
    """What pyreft returns, unless it must refuse the arguments.

    Raises:
        RefusedError: If it must, and does.
    """
    try:
        outputs = function(**arguments)
    except ValueError as error:
        if refused:
            raise RefusedError(refused) from error
        raise
    require(not refused, f"not refused: {refused}")
    return outputs


def _config(config):
    if "representations" not in config:
        return pyreft.ReftConfig(**{"dtype": "float64", "rank": 8, **config})
    listed = []
    for one in config["representations"]:
        one = {**one, "intervention": one["kind"], "dtype": "float64"}
        del one["kind"]
        listed.append(one)
    return pyreft.ReftConfig(representations=listed)
