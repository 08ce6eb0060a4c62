"""Parts of the base model that are trained with the interventions: heads, and PEFT's LoRA."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

import pyreft
from conftest import KINDS, make_base, randomize

# PEFT asks an old name of transformers.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

CONFIG = {"layers": [1], "positions": "f2", "rank": 2}


def classifier(**changes):
    config = pyreft.ReftConfig(**CONFIG | {"modules_to_save": ["classifier"]} | changes)
    return pyreft.get_reft_model(make_base("bert"), config)


def with_lora(seed=0, trainable=True, **changes):
    torch.manual_seed(seed)
    arguments = {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False} | changes
    base = get_peft_model(make_base("llama"), LoraConfig(**arguments))
    return pyreft.get_reft_model(
        base, pyreft.ReftConfig(**CONFIG), disable_model_grads=not trainable
    )


def learn(model, ids, steps=3):
    """A few steps of whatever requires a gradient."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids).logits.square().mean().backward()
        optimizer.step()
    return model


@pytest.fixture
def ids():
    return torch.arange(3, 15).view(2, 6)


def test_named_modules_learn_and_nothing_else_of_the_base_does():
    model = classifier()
    learning = {name for name, p in model.model.named_parameters() if p.requires_grad}
    assert learning == {"classifier.weight", "classifier.bias"}
    model.disable_model_gradients()
    assert model.model.classifier.weight.requires_grad


def test_the_parts_of_all_active_adapters_stay_trainable():
    model = classifier()
    other = pyreft.ReftConfig(**CONFIG | {"modules_to_save": ["pooler"], "positions": "l1"})
    model.add_adapter("other", other)
    model.set_adapter(["default", "other"])
    trainable = {name for name, p in model.model.named_parameters() if p.requires_grad}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= trainable
    model.disable_model_gradients()
    assert {name for name, p in model.model.named_parameters() if p.requires_grad} == trainable


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_goes_through_disk_exactly(kind, ids, tmp_path):
    model = learn(randomize(classifier(kind=kind), 0.5), ids).eval()
    model.save_pretrained(tmp_path)
    loaded = pyreft.ReftModel.from_pretrained(make_base("bert"), tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.reft_config.modules_to_save == ["classifier"]
    loaded.save_pretrained(tmp_path / "again")
    again = pyreft.ReftModel.from_pretrained(make_base("bert"), tmp_path / "again")
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_head_that_learns_by_hand_is_saved_as_well(ids, tmp_path):
    """As upstream's scripts do it under allow_cls_grad."""
    model = classifier(modules_to_save=None)
    for parameter in model.model.classifier.parameters():
        parameter.requires_grad = True
    learn(model, ids).eval().save(tmp_path)
    loaded = pyreft.ReftModel.load(tmp_path, make_base("bert"))
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert loaded.reft_config.modules_to_save == ["classifier.weight", "classifier.bias"]


def test_without_the_adapter_the_head_is_the_base_models(ids):
    base = make_base("bert")
    before = base(input_ids=ids).logits
    model = learn(classifier(), ids).eval()
    after = model(input_ids=ids).logits
    with model.disable_adapter(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, after)
    assert torch.equal(model.unwrap()(input_ids=ids).logits, before)


def test_a_gradient_is_right_though_the_adapter_was_off_in_between(ids):
    plain, other = classifier(), classifier()
    learn(plain, ids), learn(other, ids)
    loss = other(input_ids=ids).logits.square().mean()
    with other.disable_adapter(), torch.no_grad():
        other(input_ids=ids)
    for model in (plain, other):
        model.zero_grad()
    loss.backward()
    plain(input_ids=ids).logits.square().mean().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        assert (one.grad is None and two.grad is None) or torch.equal(one.grad, two.grad)


def test_a_head_is_saved_loaded_and_taken_off_as_ever_while_the_adapter_is_off(ids, tmp_path):
    model, bare = learn(classifier(), ids).eval(), make_base("bert")
    expected = model(input_ids=ids).logits
    with model.disable_adapter():
        model.save_pretrained(tmp_path)
    loaded = pyreft.ReftModel.from_pretrained(make_base("bert"), tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, expected)
    other = classifier().eval()
    with other.disable_adapter():
        other.load_weights(tmp_path)
        assert torch.equal(other(input_ids=ids).logits, bare(input_ids=ids).logits)
    assert torch.equal(other(input_ids=ids).logits, expected)
    with other.disable_adapter():
        base = other.unwrap()
    assert torch.equal(base(input_ids=ids).logits, bare(input_ids=ids).logits)


def test_the_adapter_is_off_until_the_last_of_overlapping_blocks_ends(ids):
    model, bare = learn(classifier(), ids).eval(), make_base("bert")
    expected = model(input_ids=ids).logits
    # As two threads may have them: the first to begin is the first to end.
    first, second = model.disable_adapter(), model.disable_adapter()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(model(input_ids=ids).logits, bare(input_ids=ids).logits)
    second.__exit__(None, None, None)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_tied_tensor_under_both_of_its_names_is_one(ids):
    config = pyreft.ReftConfig(**CONFIG, modules_to_save=["lm_head", "embed_tokens"])
    base = make_base("llama", tie_word_embeddings=True)
    model = learn(pyreft.get_reft_model(base, config), ids)
    expected = model(input_ids=ids).logits
    with model.disable_adapter():
        bare = model(input_ids=ids).logits
    same = make_base("llama", tie_word_embeddings=True)(input_ids=ids).logits
    assert torch.equal(bare, same)
    assert torch.equal(model(input_ids=ids).logits, expected)


def test_a_part_without_parameters_is_refused():
    with pytest.raises(ValueError, match="'dropout' of modules_to_save has no parameters"):
        classifier(modules_to_save=["dropout"])


def test_a_config_that_is_refused_leaves_the_base_frozen():
    base = make_base("bert").requires_grad_(False)
    with pytest.raises(ValueError, match="layer 77"):
        pyreft.get_reft_model(base, pyreft.ReftConfig(layers=[77], modules_to_save=["classifier"]))
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert not any(module._forward_pre_hooks for module in base.modules())


def test_a_copied_model_has_a_head_of_its_own(ids):
    model = learn(classifier(), ids).eval()
    twin = copy.deepcopy(model)
    before = twin(input_ids=ids).logits
    learn(model, ids)
    assert torch.equal(twin.eval()(input_ids=ids).logits, before)


def test_a_name_may_be_the_end_of_one(ids):
    model = classifier(modules_to_save=["pooler", "classifier"])
    assert model.reft_config.modules_to_save == ["bert.pooler", "classifier"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["score"], r"has no module 'score'.*Its parts are bert, dropout, classifier"),
        ([], "must be a list of names"),
        ("classifier", "must be a list of names"),
        ([3], "must be a list of names"),
    ],
)
def test_names_that_name_nothing_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        classifier(modules_to_save=names)


def test_a_tied_head_is_refused():
    base = make_base("llama", tie_word_embeddings=True)
    config = pyreft.ReftConfig(**CONFIG, modules_to_save=["lm_head"])
    with pytest.raises(ValueError, match="the same tensor as"):
        pyreft.get_reft_model(base, config)


def test_weights_of_other_heads_are_refused_and_change_nothing(ids, tmp_path):
    learn(classifier(), ids).save_pretrained(tmp_path)
    model = classifier(modules_to_save=["pooler"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(pyreft.AdapterError, match="was trained with modules_to_save"):
        model.load_weights(tmp_path)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_head_of_another_size_is_refused_and_the_base_stays_as_it_was(ids, tmp_path):
    learn(classifier(), ids).save_pretrained(tmp_path)
    base = make_base("bert", num_labels=5)
    before = base(input_ids=ids).logits
    with pytest.raises(pyreft.AdapterError, match=r"classifier\.weight"):
        pyreft.ReftModel.from_pretrained(base, tmp_path)
    assert torch.equal(base(input_ids=ids).logits, before)


def test_an_adapter_that_is_not_finite_is_not_saved(ids, tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    good = (tmp_path / "reft_model.safetensors").read_bytes()
    model.model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"classifier\.bias is not finite.*has diverged"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "reft_model.safetensors").read_bytes() == good


def test_lora_and_interventions_are_saved_together_in_files_of_their_own(ids, tmp_path):
    model = learn(with_lora(), ids).eval()
    model.save_pretrained(tmp_path)
    expected = model(input_ids=ids).logits
    for base in (make_base("llama"), with_lora(seed=5).unwrap()):
        loaded = pyreft.ReftModel.from_pretrained(base, tmp_path)
        assert torch.equal(loaded(input_ids=ids).logits, expected)
    alone = PeftModel.from_pretrained(make_base("llama"), str(tmp_path)).eval()
    assert torch.equal(alone(input_ids=ids).logits, model.model(input_ids=ids).logits)


def test_weights_of_lora_and_interventions_are_loaded_together(ids, tmp_path):
    model = learn(with_lora(), ids).eval()
    model.save_pretrained(tmp_path)
    other = with_lora(seed=5).eval()
    other.load_weights(tmp_path)
    assert torch.equal(other(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_frozen_lora_is_the_users_own_business(ids, tmp_path):
    with_lora(trainable=False).save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()


def test_another_lora_is_refused(tmp_path):
    with_lora().save_pretrained(tmp_path)
    with pytest.raises(pyreft.AdapterError, match="has r 2, this model's has 4"):
        with_lora(r=4).load_weights(tmp_path)
    plain = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(**CONFIG))
    with pytest.raises(pyreft.AdapterError, match=r"has PEFT's LoRA, this model has none"):
        plain.load_weights(tmp_path)


def test_a_lora_left_by_another_save_is_not_loaded(ids, tmp_path):
    with_lora().save_pretrained(tmp_path)
    plain = pyreft.get_reft_model(make_base("llama"), pyreft.ReftConfig(**CONFIG))
    learn(plain, ids).eval().save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_the_files_of_pefts_are_for_peft_alone(ids, tmp_path):
    model = learn(with_lora(), ids).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter_config.json").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_lora_given_by_patterns_comes_back(ids, tmp_path):
    changes = {"target_modules": r".*\.(q|v)_proj", "rank_pattern": {r"layers\.1.*q_proj": 5}}
    changes |= {"layers_to_transform": None, "alpha_pattern": {"v_proj": 3}, "use_rslora": True}
    changes |= {"modules_to_save": ["lm_head"], "bias": "all", "lora_bias": False}
    model = learn(with_lora(**changes), ids).eval()
    model.save_pretrained(tmp_path)
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    other = with_lora(seed=7, **changes)
    other.load_weights(tmp_path)
    assert torch.equal(other.eval()(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication="),
    ],
)
def test_a_lora_that_changes_more_than_modules_is_not_saved(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        with_lora(**changes).save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_what_else_peft_trains_is_not_saved(tmp_path):
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[])
    base = get_peft_model(make_base("llama"), config)
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(**CONFIG), disable_model_grads=False)
    with pytest.raises(ValueError, match="IA3Config: only a LoRA is saved"):
        model.save_pretrained(tmp_path / "adapter")


def test_without_the_adapter_a_lora_that_is_trained_with_it_is_off_as_well(ids):
    model, bare = learn(with_lora(), ids), make_base("llama")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    reference = pyreft.ReferenceModel(model)(input_ids=ids).logits
    torch.testing.assert_close(reference, bare(input_ids=ids).logits)
    assert learning == {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = with_lora(trainable=False)
    with frozen.disable_adapter():
        logits = frozen(input_ids=ids).logits
    assert torch.equal(logits, frozen.model(input_ids=ids).logits)


def test_a_lora_is_saved_while_the_adapter_is_off_and_again_after_loading(ids, tmp_path):
    model = learn(with_lora(), ids).eval()
    with model.disable_adapter():
        model.save_pretrained(tmp_path / "first")
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    again = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path / "second")
    assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
