"""What must hold for every architecture; each check raises `CheckError` with the reason."""

import copy
import inspect
import tempfile

import torch
from class_inputs import BATCH, training_inputs

import pyreft

POSITIONS = "f1+l1"


class CheckError(AssertionError):
    """A check failed."""


def check_all(model, inputs, mapping):
    """The checks by name: None for one that holds, else the reason, of each that was reached."""
    fresh = copy.deepcopy(model)
    components = ["block_output"]
    two = "decoder_input_ids" in inspect.signature(model.forward).parameters
    if two and model.config.is_encoder_decoder:
        components.append("decoder_block_output")
    results = {}
    for name, check in CHECKS.items():
        try:
            for component in components:
                results[name] = check(model, inputs, mapping, fresh, component)
        except Exception as error:
            # Later checks would fail for the same reason.
            return results | {name: reason_of(error)}
    return results


def reason_of(error):
    """One line for the table."""
    text = " ".join(str(error).split())
    return f"{'' if isinstance(error, CheckError) else type(error).__name__ + ': '}{text}"[:400]


def wrap(model, component, layers="all"):
    """The model with a small adapter, which edits something."""
    torch.manual_seed(1)
    config = pyreft.ReftConfig(component=component, positions=POSITIONS, layers=layers, rank=2)
    reft = pyreft.get_reft_model(model, config).eval()
    with torch.no_grad():
        for parameter in reft.interventions.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return reft


def check_identity(model, inputs, mapping, fresh, component):
    """Without positions it is the base model."""
    bare = run(model, inputs)
    reft = wrap(model, component)
    try:
        nowhere = torch.full((BATCH, 1, 1), -100)
        _require_same(run(reft, inputs | {"intervention_locations": nowhere}), bare, "no positions")
        with reft.disable_adapter():
            _require_same(run(reft, inputs), bare, "the disabled adapter")
    finally:
        reft.unwrap()
    _require_same(run(model, inputs), bare, "the unwrapped model")


def check_edits(model, inputs, mapping, fresh, component):
    """At the edited layer, the first and the last token of each row change, and no other."""
    for layer in (0, -1):
        reft = wrap(model, component, [layer])
        try:
            (target,) = next(iter(reft.adapter_set.values())).targets
            (intervention,) = reft.interventions.values()
            seen = _Seen(target.component.module)
            with reft.disable_adapter():
                bare = run(reft, inputs)
            before, seen.outputs = seen.outputs, []
            edited = run(reft, inputs)
            seen.remove()
            width = intervention.embed_dim
            _require_local(before, seen.outputs, width, model, inputs, component, layer)
        finally:
            reft.unwrap()
        if all(torch.equal(a, b) for a, b in zip(bare, edited, strict=True)):
            raise CheckError(f"an edit of layer {layer} changes nothing that the model returns")


class _Seen:
    """The hidden states that a module returned, one for each time that it ran."""

    def __init__(self, module):
        self.outputs = []
        self._hook = module.register_forward_hook(self._see)

    def _see(self, module, args, output):
        self.outputs.append(next(tensors_in(output)).detach().clone())

    def remove(self):
        self._hook.remove()


def _require_local(before, after, width, model, inputs, component, layer):
    if not before:
        raise CheckError("the module of the layer does not run")
    changed = [
        i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)
    ]
    if not changed:
        raise CheckError("silent: the call runs unedited")
    if changed[0] != layer % len(before):
        raise CheckError(f"layer {layer} is edited when it runs for the {changed[0] + 1}. time")
    read = "decoder_input_ids" if component.startswith("decoder_") else "input_ids"
    # A decoder that is given nothing reads what the encoder reads, shifted.
    given = inputs.get(read, inputs.get("input_ids"))
    changes = before[changed[0]] != after[changed[0]]
    # CANINE has layers of fewer tokens than the text.
    fewer = changes.dim() == 3 and len(changes) == BATCH and changes.shape[1] < 8
    changes = (
        _by_token(changes, width)
        if given is None or fewer
        else _of_text(changes, given.shape[1], _copies(model))
    )
    expected = expected_tokens(changes, model, inputs, component)
    sound = "input_features" in inputs or "input_values" in inputs
    if not torch.equal(changes, expected) and not (sound and _is_shorter(changes, expected)):
        raise CheckError(
            f"edits {changes.int().tolist()}, expected {expected.int().tolist()}, of "
            f"{tuple(before[0].shape)}"
        )


def _is_shorter(changes, expected):
    """Whether rows differ from what is expected in their last token alone, which comes earlier.

    How many frames a sound becomes, with the mask that a model makes of it, is not known here.
    """
    return all(
        one == all_of or (len(one) == 2 and one[0] == all_of[0] and one[1] < all_of[1])
        for one, all_of in (
            (a.nonzero().flatten().tolist(), b.nonzero().flatten().tolist())
            for a, b in zip(changes, expected, strict=True)
        )
    )


def _copies(model):
    """How many hidden states ProphetNet's decoder has for each token, one after the other."""
    return 1 + (getattr(model.config, "ngram", None) or 0)


def _of_text(changed, count, copies=1):
    """Changed entries -> (B, T) changed tokens of a text, whatever the layout."""
    last = changed.dim() == 3 and changed.shape[1] != count == changed.shape[2]
    changed = changed.any(1) if last else changed.any(-1)
    shape = changed.shape
    if shape[:2] == (count, BATCH):
        changed = changed.transpose(0, 1)
    elif shape[1:3] == (BATCH, count):
        changed = changed.any(0)
    changed = changed.flatten(2).any(-1) if changed.dim() > 2 else changed
    if changed.shape[1] == count:
        return changed
    if copies > 1 and changed.shape[1] == copies * count:
        first, *others = changed.chunk(copies, 1)
        if any(not torch.equal(one, first) for one in others):
            raise CheckError("not all streams of a token are edited")
        return first
    # The model adds tokens before or after the text: row 0 has no padding.
    start = int(changed[0].int().argmax())
    inside = changed[:, start : start + count]
    if changed.sum() != inside.sum():
        raise CheckError(f"edits tokens that are not of the text: {changed.nonzero().tolist()}")
    return inside


def _by_token(changed, width):
    """Changed entries -> (B, T) changed tokens of no text, whatever the layout."""
    shape = list(changed.shape)
    axis = next(i for i in reversed(range(len(shape))) if shape[i] == width)
    tokens = changed.any(axis)
    if tokens.shape[0] != BATCH and tokens.dim() == 2 and tokens.shape[1] == BATCH:
        tokens = tokens.T
    return tokens.flatten(1)


def expected_tokens(changes, model, inputs, component):
    """The first and the last token of each row that is not padding."""
    mask = torch.ones_like(changes)
    of_decoder = component.startswith("decoder_") and "decoder_input_ids" in inputs
    given = inputs.get("decoder_attention_mask" if of_decoder else "attention_mask")
    if given is not None and "input_ids" in inputs and given.shape == changes.shape:
        mask = given.bool()
    elif given is not None and not of_decoder:
        frames = getattr(model, "_get_feature_vector_attention_mask", None)
        mask = frames(changes.shape[1], given).bool() if frames else mask
    order = mask.long().cumsum(1) * mask
    return mask & ((order == 1) | (order == order.max(1, keepdim=True).values))


def check_gradients(model, inputs, mapping, fresh, component):
    """Every intervention gets a gradient that is finite and not zero."""
    reft = wrap(model, component)
    # Of the modules inside, none: their chance is not part of this.
    reft.training = model.training = True
    try:
        torch.manual_seed(0)
        outputs = reft(**without_cache(model, inputs))
        sum(_score(one) for one in tensors_in(outputs)).backward()
        for name, parameter in reft.interventions.named_parameters():
            if parameter.grad is None or not parameter.grad.isfinite().all():
                raise CheckError(f"no finite gradient of {name}")
        for name, module in reft.interventions.items():
            if all(float(p.grad.abs().sum()) == 0 for p in module.parameters()):
                raise CheckError(f"no gradient reaches {name}")
    finally:
        reft.training = model.training = False
        reft.unwrap()


def without_cache(model, inputs):
    """The inputs of a training step: RWKV's states are changed in place."""
    takes = inspect.signature(model.forward).parameters
    return inputs | ({"use_cache": False} if "use_cache" in takes else {})


def _score(tensor):
    """A number that depends on all finite entries."""
    weights = torch.linspace(0.5, 1.5, tensor.numel()).view(tensor.shape)
    return (weights * tensor.nan_to_num(0, 0, 0)).sum()


def check_generation(model, inputs, mapping, fresh, component):
    """Generation with a cache computes the same logits as without."""
    if not model.can_generate():
        return
    if not _agrees(model, inputs):
        return
    reft = wrap(model, component)
    try:
        if not _agrees(reft, inputs):
            raise CheckError("generation with and without a cache differ")
    finally:
        reft.unwrap()


def _agrees(model, inputs):
    """Whether generation with and without a cache agree; for a bare model, also if it fails."""
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        settings |= {"return_dict_in_generate": True, "output_logits": True}
        try:
            made = model.generate(**inputs, **settings, use_cache=use_cache)
            logits = torch.stack(made.logits)
        except Exception:
            if isinstance(model, pyreft.ReftModel):
                raise
            return False
        found.append(logits.nan_to_num(0, 0, 0))
    return found[0].shape == found[1].shape and torch.allclose(*found, rtol=1e-3, atol=1e-3)


def check_reload(model, inputs, mapping, fresh, component):
    """A saved adapter on a fresh base model computes the same, bit for bit."""
    reft = wrap(model, component)
    try:
        edited = run(reft, inputs)
        with tempfile.TemporaryDirectory() as directory:
            reft.save_pretrained(directory)
            loaded = pyreft.ReftModel.from_pretrained(fresh, directory)
            try:
                _require_same(run(loaded, inputs), edited, "the reloaded adapter")
            finally:
                loaded.unwrap()
    finally:
        reft.unwrap()


def check_training(model, inputs, mapping, fresh, component):
    """Steps of Adam change the loss, and it stays finite."""
    reft = wrap(model, component)
    labelled = without_cache(model, training_inputs(model, inputs, mapping))
    try:
        run(model, labelled)
    except Exception:
        # The bare model does not take these labels.
        labelled = without_cache(model, inputs)
    optimizer = torch.optim.Adam(reft.interventions.parameters(), lr=1e-2)
    losses = []
    reft.train()
    for module in model.modules():
        module.training = isinstance(module, (type(reft), type(model)))
    try:
        for _ in range(3):
            torch.manual_seed(0)
            outputs = reft(**labelled)
            loss = outputs.get("loss") if isinstance(outputs, dict) else None
            if loss is None:
                # LeViT's logits are 1e17 here.
                loss = next(tensors_in(outputs)).nan_to_num(0, 0, 0).pow(2).mean().log1p()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    finally:
        reft.eval()
        reft.unwrap()
    if not all(abs(loss) < float("inf") for loss in losses) or losses[0] == losses[-1]:
        raise CheckError(f"the losses of three steps are {losses}")


CHECKS = {
    "identity": check_identity,
    "edits": check_edits,
    "gradients": check_gradients,
    "generation": check_generation,
    "reload": check_reload,
    "training": check_training,
}


def run(model, inputs):
    """The tensors of floats that a model returns; random numbers are the same in each call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return [one.clone() for one in tensors_in(model(**inputs))]


def tensors_in(value):
    """The tensors of floats in what a model or a module returned."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_in(one)


def _require_same(found, expected, of):
    same = len(found) == len(expected) and all(
        torch.equal(a.nan_to_num(0), b.nan_to_num(0)) for a, b in zip(found, expected, strict=True)
    )
    if not same:
        raise CheckError(f"{of} is not bit-identical to the bare model")
