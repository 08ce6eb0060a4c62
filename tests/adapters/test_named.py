"""Several adapters on one base model: added, activated, weighted, swapped, deleted."""

import copy

import pytest
import torch
from reft import IDS, LABELS, batch, logits, wrap

from conftest import make_base, randomize
from pyreft import AdapterError, ReftConfig, ReftModel, get_reft_model

# Of other layers, positions, ranks and kinds than "default", which `wrap` makes.
OTHER = {"layers": [0, 2], "positions": "l2", "rank": 2, "kind": "direft"}


def add(model, name="other", seed=5, **changes):
    torch.manual_seed(seed)
    model.add_adapter(name, ReftConfig(**OTHER | changes))
    torch.manual_seed(seed)
    for parameter in model.adapters[name].interventions.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


def alone(name, source, base=None):
    """The same adapter on a base model of its own."""
    base = make_base("llama") if base is None else base
    adapter = copy.deepcopy(source.adapters[name])
    made = get_reft_model(base, adapter.config)
    made.interventions.load_state_dict(adapter.interventions.state_dict())
    return made.eval()


def handles(base):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules())


def test_an_added_adapter_does_nothing_until_it_is_activated(causal):
    model = wrap(make_base(causal)).eval()
    inputs = batch(model.model)
    before = logits(model, inputs)
    add(model)
    assert model.active_adapters == ["default"]
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=0)
    model.set_adapter("other")
    assert model.active_adapter == "other"
    expected = logits(alone("other", model, make_base(causal)), inputs)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=0)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=0)


def test_only_active_adapters_learn():
    model = add(wrap(make_base("llama")))
    learning = {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
    assert learning == {"default"}
    model.set_adapter(["default", "other"])
    model(IDS, labels=LABELS).loss.backward()
    for adapter in model.adapters.values():
        assert all(p.grad is not None for p in adapter.interventions.parameters())
    model.set_adapter("other")
    assert not any(p.requires_grad for p in model.adapters["default"].parameters())


def test_what_the_user_froze_stays_frozen_through_a_switch():
    model = add(wrap(make_base("llama")))
    frozen = next(iter(model.interventions.values()))
    frozen.requires_grad_(False)
    model.set_adapter("other")
    model.set_adapter("default")
    assert not any(p.requires_grad for p in frozen.parameters())
    assert sum(p.requires_grad for p in model.interventions.parameters()) > 0


@pytest.mark.parametrize("weights", [None, [0.5, -2.0]])
def test_several_active_adapters_add_up_their_edits_of_a_hidden_state(weights):
    model = wrap(make_base("llama"), layers=[1], positions="f2+l2").eval()
    add(model, layers=[1], kind="loreft")
    model.set_adapter(["default", "other"], weights)
    hidden = []
    layer = model.model.model.layers[1]
    layer.register_forward_hook(lambda module, args, output: hidden.append(output.clone()))
    with model.disable_adapter():
        logits(model, {"input_ids": IDS})
    logits(model, {"input_ids": IDS})
    bare, found = (h[0].double() for h in hidden)
    first, second = (next(iter(a.interventions.values())).double() for a in model.adapters.values())
    one, other = weights or [1.0, 1.0]
    expected = bare.clone()
    with torch.no_grad():
        for column in (0, 1, -2, -1):
            expected[column] += one * (first(bare[column]) - bare[column])
        for column in (-2, -1):
            expected[column] += other * (second(bare[column]) - bare[column])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[-1] - bare[-1]).abs().max() > 1e-2


def test_a_saved_adapter_loads_beside_another_and_is_swapped_in_place(tmp_path):
    model = wrap(make_base("llama")).eval()
    source = randomize(get_reft_model(make_base("llama"), ReftConfig(**OTHER)), 0.2).eval()
    source.save_pretrained(tmp_path / "one")
    inputs = batch(model.model)
    model.load_adapter(tmp_path / "one", "other")
    model.set_adapter("other")
    torch.testing.assert_close(logits(model, inputs), logits(source, inputs), rtol=0, atol=0)

    randomize(source, 0.2, seed=9).save_pretrained(tmp_path / "two")
    modules, hooks = list(model.interventions.values()), handles(model.model)
    model.load_adapter(tmp_path / "two", "other")
    torch.testing.assert_close(logits(model, inputs), logits(source, inputs), rtol=0, atol=0)
    assert list(model.interventions.values()) == modules
    assert handles(model.model) == hooks


def test_an_adapter_of_another_config_is_not_swapped_in(tmp_path):
    model = wrap(make_base("llama")).eval()
    get_reft_model(make_base("llama"), ReftConfig(rank=2)).save_pretrained(tmp_path)
    inputs = batch(model.model)
    before = logits(model, inputs)
    with pytest.raises(AdapterError, match=r"intervention 0 of .* has "):
        model.load_adapter(tmp_path, "default")
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=0)


def test_an_adapter_that_does_not_fit_leaves_no_hook(tmp_path):
    model = wrap(make_base("llama"), layers=[0]).eval()
    hooks = handles(model.model)
    broken = get_reft_model(make_base("llama"), ReftConfig(layers=[1]))
    broken.save_pretrained(tmp_path)
    text = (tmp_path / "reft_config.json").read_text()
    assert '"low_rank_dimension": 8' in text
    (tmp_path / "reft_config.json").write_text(
        text.replace('"low_rank_dimension": 8', '"low_rank_dimension": 4')
    )
    with pytest.raises(AdapterError):
        model.load_adapter(tmp_path, "other")
    assert list(model.adapters) == ["default"]
    assert handles(model.model) == hooks


def test_deleting_takes_off_the_hooks_that_nobody_needs():
    model = wrap(make_base("llama"), layers=[0]).eval()
    hooks, inputs = handles(model.model), batch(model.model)
    before = logits(model, inputs)
    add(model)
    model.set_adapter("other")
    model.delete_adapter("other")
    assert model.active_adapters == ["default"]
    assert handles(model.model) == hooks
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=0)
    with pytest.raises(ValueError, match="only adapter"):
        model.delete_adapter("default")


def test_each_adapter_has_the_head_it_learned(tmp_path):
    heads = {"modules_to_save": ["classifier"]}
    base = make_base("bert")
    original = base.classifier.weight.clone()
    model = wrap(base, **heads).eval()
    inputs = {k: v for k, v in batch(base).items() if k != "labels"}
    learn_head(model, 1.0)
    first = logits(model, inputs)
    add(model, **heads)
    torch.testing.assert_close(logits(model, inputs), first, rtol=0, atol=0)
    model.set_adapter("other")
    torch.testing.assert_close(base.classifier.weight, original, rtol=0, atol=0)
    learn_head(model, -1.0)
    second = logits(model, inputs)
    model.set_adapter("default")
    torch.testing.assert_close(logits(model, inputs), first, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    with model.disable_adapter():
        torch.testing.assert_close(base.classifier.weight, original, rtol=0, atol=0)
    model.set_adapter("other")
    torch.testing.assert_close(logits(model, inputs), second, rtol=0, atol=0)
    with pytest.raises(ValueError, match="have each trained classifier"):
        model.set_adapter(["default", "other"])
    loaded = ReftModel.from_pretrained(make_base("bert"), tmp_path)
    torch.testing.assert_close(logits(loaded, inputs), first, rtol=0, atol=0)
    assert torch.equal(model.unwrap().classifier.weight, original)


@torch.no_grad()
def learn_head(model, change):
    for tensor in model.trained.tensors().values():
        assert tensor.requires_grad
        tensor.add_(change)


@pytest.mark.parametrize("name", ["", "a.b", "../up", "a/b", "keys", "__base__", None, "ä"])
def test_names_that_cannot_be_a_folder_or_a_module_are_refused(name):
    with pytest.raises(ValueError, match="the name of an adapter"):
        get_reft_model(make_base("llama"), ReftConfig(), adapter_name=name)


def test_unknown_names_say_which_there_are():
    model = add(wrap(make_base("llama")))
    for act in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match="no adapter 'none'; there are default, other"):
            act("none")
    with pytest.raises(ValueError, match="there is an adapter 'other' already"):
        add(model)
    with pytest.raises(ValueError, match="different names, and at least one"):
        model.set_adapter(["default", "default"])
    with model.disable_adapter(), pytest.raises(RuntimeError, match="inside disable_adapter"):
        model.set_adapter("other")


INF = float("inf")


@pytest.mark.parametrize("value", [[float("nan")], [INF], [-INF], [1.0, 2.0], []])
@pytest.mark.parametrize("call", ["set_adapter", "add_weighted_adapter"])
def test_weights_are_finite_and_one_for_each_adapter(call, value):
    assert_weights_refused(call, value, ValueError, "finite weight for each of the 1 adapters")


@pytest.mark.parametrize("value", [["0.5"], [True], [None], [1j], 0.5, "1"])
@pytest.mark.parametrize("call", ["set_adapter", "add_weighted_adapter"])
def test_weights_are_a_list_of_numbers(call, value):
    assert_weights_refused(call, value, TypeError, "weights must be a list of numbers")


def assert_weights_refused(call, value, error, message):
    model = wrap(make_base("llama"), kind="nodireft")
    with pytest.raises(error, match=message):
        if call == "set_adapter":
            model.set_adapter("default", value)
        else:
            model.add_weighted_adapter(["default"], value, "sum")
    assert list(model.adapters) == ["default"] and model.adapter_set.active == {"default": 1.0}


def test_positions_in_the_batch_are_of_one_adapter():
    model = add(wrap(make_base("llama")))
    model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="interventions of one adapter"):
        model(IDS, intervention_locations=torch.zeros(1, 1, 1, dtype=torch.long))


def test_the_repr_says_which_are_active():
    text = repr(add(wrap(make_base("llama"))))
    assert "default (active, weight 1)" in text
    assert "other (inactive)" in text


def test_several_adapters_are_saved_each_in_a_folder_of_its_name(tmp_path, caplog):
    model = add(wrap(make_base("llama")).eval())
    add(model, "third", seed=7, layers=[1])
    model.save_pretrained(tmp_path)
    assert (tmp_path / "third" / "README.md").exists()
    again = ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert "has further adapters, which are not loaded: other, third. Load" in caplog.text
    caplog.clear()
    ReftModel.from_pretrained(make_base("llama"), tmp_path, subfolder="third")
    assert "further adapters" not in caplog.text
    again.load_adapter(tmp_path, "other", subfolder="other")
    again.load_adapter(tmp_path / "third", "third")
    inputs = batch(model.model)
    for names in ("default", "other", "third", ["third", "default"]):
        model.set_adapter(names)
        again.set_adapter(names)
        torch.testing.assert_close(logits(again, inputs), logits(model, inputs), rtol=0, atol=0)


def test_weights_of_all_active_adapters_are_loaded_again(tmp_path):
    model = add(wrap(make_base("llama")).eval())
    model.set_adapter(["other", "default"])
    inputs = batch(model.model)
    before = logits(model, inputs)
    model.save_pretrained(tmp_path)
    randomize(model, 0.1)
    for parameter in model.adapters["default"].interventions.parameters():
        parameter.data.add_(0.1)
    assert (logits(model, inputs) - before).abs().max() > 1e-3
    model.load_weights(tmp_path)
    torch.testing.assert_close(logits(model, inputs), before, rtol=0, atol=0)


def test_only_selected_adapters_are_saved(tmp_path):
    model = add(wrap(make_base("llama")))
    model.save_pretrained(tmp_path, selected_adapters=["other"])
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    with pytest.raises(ValueError, match="no adapter 'none'"):
        model.save_pretrained(tmp_path, selected_adapters=["none"])


def test_a_weighted_adapter_does_what_several_active_ones_do(tmp_path):
    model = wrap(make_base("llama"), kind="nodireft", layers=[0, 1], positions="f2").eval()
    add(model, layers=[1, 2], kind="nodireft", positions="f2", rank=3)
    model.add_weighted_adapter(["default", "other"], [0.5, -1.0], "sum")
    inputs = batch(model.model)
    model.set_adapter(["default", "other"], [0.5, -1.0])
    expected = logits(model, inputs)
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    alone = ReftModel.from_pretrained(make_base("llama"), tmp_path / "sum")
    torch.testing.assert_close(logits(alone, inputs), expected, rtol=1e-4, atol=1e-4)


SPECS = ["f1", "l1", "f3", "l3", "f2+l2", "prompt", "completion", "all", "0", "-1"]


@pytest.mark.parametrize("other", [*SPECS, "f3 l3", "f2 l2", "f2 completion"])
@pytest.mark.parametrize("one", [*SPECS, "f3 l3", "f2 l2"])
def test_a_weighted_adapter_adds_up_edits_of_short_prompts_as_well_or_is_refused(one, other):
    """Specs of separate interventions, on one layer, are separated by a space."""
    model = randomize(get_reft_model(make_base("llama"), at_layer_1(one)).eval(), 0.2)
    model.add_adapter("other", at_layer_1(other))
    randomize(model.adapters["other"], 0.2, seed=5)
    try:
        model.add_weighted_adapter(["default", "other"], [0.5, -1.0], "sum")
    except ValueError as error:
        assert one != other
        assert "share tokens" in str(error) or "prompts of fewer than" in str(error)
        return
    for length in range(1, 9):
        inputs = {"input_ids": IDS[:, :length]}
        model.set_adapter(["default", "other"], [0.5, -1.0])
        expected = logits(model, inputs)
        model.set_adapter("sum")
        try:
            found = logits(model, inputs)
        except ValueError as error:
            # Explicit positions of a prompt so short that they are those of the other end as well.
            assert "must be disjoint" in str(error) and {"0", "-1"} & {one, other}
        else:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def at_layer_1(specs):
    entry = {"layer": 1, "low_rank_dimension": 2, "intervention": "nodireft"}
    return ReftConfig(representations=[{**entry, "positions": s} for s in specs.split()])


def test_subspaces_that_have_something_in_common_are_not_merged():
    model = wrap(make_base("llama"), layers=[1], positions="l1")
    add(model, layers=[1], positions="l1", kind="loreft")
    with pytest.raises(ValueError, match=r"orthogonal|subspace"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    assert list(model.adapters) == ["default", "other"]


@pytest.mark.parametrize("name", ["active", "first", "disabled", "folder", "remove"])
def test_an_adapter_may_have_the_name_of_anything_that_is_done_with_adapters(name):
    model = add(wrap(make_base("llama")), name)
    model.set_adapter(name)
    assert model.active_adapters == [name] and list(model.adapters) == ["default", name]


def test_a_base_model_and_the_numbers_of_parameters_have_pefts_names():
    base = make_base("llama").eval()
    expected, of_base = base(IDS).logits, sum(p.numel() for p in base.parameters())
    config = ReftConfig(layers=[1], positions="l1", rank=2, modules_to_save=["lm_head"])
    model = randomize(get_reft_model(base, config), 0.2).eval()
    assert model.get_base_model() is base
    edited = model(IDS).logits
    with model.disable_adapter():
        torch.testing.assert_close(base(IDS).logits, expected, rtol=0, atol=0)
    assert not torch.allclose(edited, expected)
    head = model.get_base_model().lm_head.weight.numel()
    trained, every = model.get_nb_trainable_parameters()
    edit = sum(p.numel() for p in model.interventions.parameters())
    assert trained == edit + head == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert every == edit + of_base
