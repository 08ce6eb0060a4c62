"""Components: every name and path is the place it says, checked against hooks set by hand."""

import pytest
import torch
import transformers as hf
from architectures import COMPONENTS, HEADS, PARTS, make, place
from by_hand import on_output
from torch import Tensor, nn

from conftest import VOCAB, WIDTH, make_base
from pyreft import ReftConfig, get_reft_model

LAYER = 1
IDS = torch.randint(3, VOCAB - 9, (2, 7), generator=torch.Generator().manual_seed(0))
# OPT flattens the tokens of a batch into one dimension around its feed-forward part.
FLAT = [("opt", "mlp_input"), ("opt", "mlp_activation"), ("opt", "mlp_output")]
PLACES = [(a, c) for a in PARTS for c in COMPONENTS if (a, c) not in FLAT]


class Shift(nn.Module):
    """h -> h + a fixed vector."""

    def __init__(self, width: int):
        super().__init__()
        vector = 3 * torch.randn(width, generator=torch.Generator().manual_seed(width))
        self.vector = nn.Parameter(vector)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.vector


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def edited(architecture, width, **entry):
    """Logits with a shift at the last token."""
    entry = {"layer": LAYER, "positions": "l1", "intervention": Shift(width)} | entry
    return logits(get_reft_model(make(architecture), ReftConfig(representations=entry)))


def edited_by_hand(architecture, path, side, edit):
    """Logits with `edit` on the last token of what goes into, or comes out of, a module."""
    model = make(architecture)

    def change(hidden):
        hidden = hidden.clone()
        hidden[:, -1] = edit(hidden[:, -1])
        return hidden

    def before(module, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    module = model.get_submodule(path)
    if side == "input":
        module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module.register_forward_hook(on_output(change))
    return logits(model)


def assert_edited(found, expected, base):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected - base).abs().max() > 1e-3


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "component"), PLACES)
def test_a_name_is_the_place_it_says(architecture, component):
    path, side, width = place(architecture, component)
    found = edited(architecture, width, component=component)
    expected = edited_by_hand(architecture, path, side, Shift(width))
    assert_edited(found, expected, logits(make(architecture)))


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("architecture", PARTS)
def test_an_intervention_gets_the_width_of_its_component(architecture, component):
    config = ReftConfig(layers=[LAYER], component=component, rank=2)
    (one,) = get_reft_model(make(architecture), config).reft_config.representations
    assert one.intervention.embed_dim == place(architecture, component)[2]


@pytest.mark.parametrize("heads", [None, [1, 3], [3, 0], [2]])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "qwen3", "bloom"])
def test_chosen_heads_are_edited_in_their_slices(architecture, heads):
    path, side, total = place(architecture, "attention_value_output")
    shift = Shift(total // HEADS)

    def edit(values):
        values = values.clone()
        for head in range(HEADS) if heads is None else heads:
            part = slice(head * total // HEADS, (head + 1) * total // HEADS)
            values[:, part] = shift(values[:, part])
        return values

    name = "head_attention_value_output"
    found = edited(architecture, total // HEADS, component=name, heads=heads)
    expected = edited_by_hand(architecture, path, side, edit)
    assert_edited(found, expected, logits(make(architecture)))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([4], "head 4 is out of range: there are 4"),
        ([-1], r"head.*-1"),
        ([], "head"),
        ([0, 0], "head"),
        ([1.0], "head.*1.0"),
        (["0"], "head.*'0'"),
        (2, "heads.*2"),
    ],
)
def test_heads_that_are_not_there_are_refused(heads, message):
    config = {"layers": [0], "component": "head_attention_value_output", "rank": 2}
    with pytest.raises((ValueError, TypeError), match=message):
        get_reft_model(make_base("llama"), ReftConfig(**config, heads=heads))


# ---- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_path_is_the_place_it_says(architecture, component):
    path, side, width = place(architecture, component)
    dotted = f"{path}.{side}"
    expected = edited_by_hand(architecture, path, side, Shift(width))
    for spelling in (dotted, dotted.replace(".1.", "[1].", 1)):
        found = edited(architecture, width, layer=None, component=spelling)
        assert_edited(found, expected, logits(make(architecture)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.layers[0]", 'must end with ".input" or ".output" of a module'),
        ("model.layers[0].mlp", 'must end with ".input" or ".output" of a module'),
        (".output", 'must end with ".input" or ".output" of a module'),
        ("model.layers[0].mpl.output", r"no module 'model.layers.0.mpl'.*self_attn, mlp"),
        ("model.layers[3].output", "no module 'model.layers.3'.*(has 3|0 to 2|0, 1, 2)"),
        ("model.layers[-1].output", r"no module"),
        ("transformer.h[0].output", "no module 'transformer.h.0'.*model, lm_head"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_breaks_off(path, message):
    config = ReftConfig(representations={"component": path, "low_rank_dimension": 2})
    with pytest.raises(ValueError, match=message):
        get_reft_model(make_base("llama"), config)


def refuse(architecture, message, **config):
    with pytest.raises(ValueError, match=message):
        logits(get_reft_model(make(architecture), ReftConfig(positions="l1", rank=2, **config)))


@pytest.mark.parametrize(
    ("path", "message"),
    [("model.layers.output", "layers|ModuleList"), ("model.output", "LlamaModel")],
)
def test_a_module_without_a_hidden_state_of_the_layer_is_refused(path, message):
    # A list of layers never runs, and a whole model returns no tensor: no silent no-op, no crash.
    refuse("llama", message, component=path)


def test_a_component_of_another_width_names_both_and_the_way_out():
    config = {"component": "model.layers[0].mlp.act_fn.output", "rank": 2}
    model = get_reft_model(make("llama"), ReftConfig(**config))
    assert [one.embed_dim for one in model.interventions.values()] == [48]
    arguments = {"embed_dim": WIDTH, "low_rank_dimension": 2}
    representations = {"component": config["component"], "arguments": arguments}
    with pytest.raises(ValueError, match=r"width 32.*width 48"):
        get_reft_model(make("llama"), ReftConfig(representations=representations))


# ---- architectures that are different ------------------------------------------------------------


@pytest.mark.parametrize("component", [component for _, component in FLAT])
def test_tokens_flattened_into_one_dimension_are_refused(component):
    refuse("opt", r"shape .*\(14, ", component=component, layers=[LAYER])


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("rows", [2, 7])
def test_hidden_states_with_the_tokens_first_are_edited(side, rows):
    ids = IDS[:1].repeat(rows, 1)  # with 7 rows, as many as tokens
    found = edit_of("xlnet", f"transformer.layer.{LAYER}", f"block_{side}", ids)
    assert found.shape[:2] == (7, rows)
    assert found.any(-1).tolist() == [[False] * rows] * 6 + [[True] * rows]


def edit_of(architecture, path, component, ids, **config):
    """Which entries of a hidden state are changed by an edit of the last token."""
    model = make(architecture)
    seen = []

    def see(module, args, kwargs, output):
        read = args[0] if args else kwargs.get("hidden_states", kwargs.get("output_h"))
        hidden = read if component.endswith("_input") else output
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        seen.append(hidden.clone())

    reft = get_reft_model(
        model,
        ReftConfig(component=component, layers=[LAYER], positions="l1", rank=2, **config),
    )
    model.get_submodule(path).register_forward_hook(see, with_kwargs=True)
    with torch.no_grad(), reft.disable_adapter():
        reft(input_ids=ids)
    bare = seen.copy()
    seen.clear()
    with torch.no_grad():
        reft(input_ids=ids)
    pairs = list(zip(bare, seen, strict=True))
    # Of a module that runs several times, the time at which it is edited.
    return next(a != b for a, b in pairs if not torch.equal(a, b))


def test_a_name_never_leads_to_a_module_that_does_not_run():
    refuse("mobilebert", "ffn|feed-forward", component="mlp_output", layers=[LAYER])


@pytest.mark.parametrize("side", ["input", "output"])
def test_experts_are_a_feed_forward_part(side):
    expected = edited_by_hand("mixtral", "model.layers.1.mlp", side, Shift(WIDTH))
    found = edited("mixtral", WIDTH, component=f"mlp_{side}")
    assert_edited(found, expected, logits(make("mixtral")))
    found = edited("mixtral", WIDTH, layer=None, component=f"model.layers[1].mlp.{side}")
    assert_edited(found, expected, logits(make("mixtral")))
    refuse("mixtral", "has experts, whose activations", component="mlp_activation")


def test_a_feed_forward_part_beside_experts_is_named_by_a_path():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 20}
    config = hf.GraniteMoeSharedConfig(
        **sizes, num_local_experts=2, num_experts_per_tok=1, shared_intermediate_size=24
    )
    with pytest.raises(ValueError, match=r"several feed-forward parts side by side"):
        get_reft_model(hf.GraniteMoeSharedForCausalLM(config), ReftConfig(component="mlp_output"))


def test_the_feed_forward_part_of_a_layer_without_attention_is_found():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 20}
    config = hf.JambaConfig(
        **sizes, num_experts=2, num_experts_per_tok=1, attn_layer_period=2, attn_layer_offset=1
    )
    model = hf.JambaForCausalLM(config)
    reft = get_reft_model(model, ReftConfig(component="mlp_output", positions="l1", rank=2))
    edited = [target.component.module for target in reft.adapter_set["default"].targets]
    assert edited == [layer.feed_forward for layer in model.model.layers]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_module_that_runs_for_several_layers_is_edited_for_one(layer):
    model = make("albert")
    group = model.albert.encoder.albert_layer_groups[0]
    config = ReftConfig(layers=[layer], positions="l1", rank=2)
    reft = get_reft_model(model, config)
    outputs = []
    group.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    for _ in range(2):  # each pass counts for itself
        outputs.clear()
        with torch.no_grad():
            reft(input_ids=IDS)
            with reft.disable_adapter():
                reft(input_ids=IDS)
        differ = [not torch.equal(outputs[run], outputs[run + 3]) for run in range(3)]
        assert differ == [run >= layer for run in range(3)]
        at = (outputs[layer] != outputs[layer + 3]).any(-1)
        assert at.tolist() == [[False] * 6 + [True]] * 2


def test_recomputing_a_module_that_runs_for_several_layers_is_refused():
    reft = get_reft_model(make("albert"), ReftConfig(positions="l1", rank=2)).train()
    edits = reft._hooks
    edits._recomputed = object()
    with pytest.raises(ValueError, match="gradient checkpointing of a layer that runs several"):
        _in_backward(lambda: edits.at(0, 0, 3))


def _in_backward(call):
    x = torch.ones(1, requires_grad=True)
    y = x * 1
    y.register_hook(lambda grad: call() and None)
    y.backward()


def test_layers_are_those_of_the_language_model_not_of_the_vision_tower():
    path = "model.language_model.layers.1"
    expected = edited_by_hand("llava", path, "output", Shift(WIDTH))
    assert_edited(edited("llava", WIDTH), expected, logits(make("llava")))


@pytest.mark.parametrize("component", ["block_output", "mlp_output"])
def test_a_model_runs_once_when_the_first_of_its_class_and_config_is_wrapped(component):
    runs = []
    # A config of its own for each case, which no other test has.
    sizes = {"intermediate_size": 4 * WIDTH + 8 + len(component)}
    for _ in range(3):
        base = make_base("llama", **sizes)
        base.register_forward_hook(lambda *_: runs.append(1))
        get_reft_model(base, ReftConfig(layers=[LAYER], component=component, rank=2))
        assert len(runs) == 1
