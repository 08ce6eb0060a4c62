"""What scripts for upstream, and for pyvene beneath it, write: each works, or is an error."""

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

import pyreft
from conftest import WIDTH, make_base, randomize

IDS = torch.arange(3, 15).view(2, 6)
TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def loreft(rank=2, **changes):
    torch.manual_seed(0)
    return pyreft.LoreftIntervention(embed_dim=WIDTH, low_rank_dimension=rank, **changes)


def wrap(*modules, layers=None, cls=pyreft.ReftModel, **changes):
    """A model in upstream's form, whose batches say the positions."""
    layers = layers or range(len(modules))
    entries = [
        {"layer": layer, "component": "block_output", "intervention": module, **changes}
        for layer, module in zip(layers, modules, strict=True)
    ]
    model = cls(pyreft.ReftConfig(representations=entries), make_base("llama"))
    with torch.no_grad():
        return randomize(model.eval(), 0.3)


def at(*positions):
    return {"sources->base": (None, list(positions))}


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("dataset", "ReftDataset ReftClassificationDataset IGNORE_INDEX parse_positions"),
        ("reft_model", "ReftModel count_parameters"),
        ("reft_trainer", "ReftTrainer ReftTrainerForCausalLM make_dataloader make_data_collator"),
        ("utils", "TaskType ReftType get_reft_model"),
        ("config", "ReftConfig"),
        ("interventions", "LoreftIntervention LowRankRotateLayer SourcelessIntervention"),
        ("interventions", "ConstantSourceIntervention DistributedRepresentationIntervention"),
    ],
)
def test_upstreams_modules_have_their_names(module, names):
    found = importlib.import_module(f"pyreft.{module}")
    for name in names.split():
        ours = getattr(pyreft, name, None)
        assert ours is None or getattr(found, name) is ours
        assert hasattr(found, name)
    assert not hasattr(found, "NoSuchName")


def test_an_intervention_is_found_as_before_pyvene_0_1_8():
    model = wrap(loreft(), loreft())
    (key, module), _ = model.interventions.items()
    assert module[0] is module is model.interventions[key][0]
    assert model.interventions["layer.0.comp.block_output.unit.pos.nunit.1#0"] is module
    assert list(model.representations) == list(model.interventions)
    with pytest.raises(IndexError, match="only the module itself"):
        module[1]


@pytest.mark.parametrize("kind", ["Loreft", "Direft", "Nodireft", "Noreft", "Consreft", "Lobireft"])
def test_upstreams_keys_are_read_and_loaded(kind):
    cls = getattr(pyreft, f"{kind}Intervention")
    one, other = (cls(embed_dim=WIDTH, low_rank_dimension=3) for _ in range(2))
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    state = copy.deepcopy(one.state_dict())
    if kind == "Loreft":
        named = {name: state[name] for name in ("weight", "bias", "rotate_layer")}
        torch.testing.assert_close(named["rotate_layer"], one.rotate_layer.weight)
        other.load_state_dict(named)
    else:
        other.load_state_dict(state)
    hidden = torch.randn(2, 3, WIDTH)
    torch.testing.assert_close(other(hidden), one(hidden))
    with pytest.raises(KeyError, match="no_such"):
        one.state_dict()["no_such"]


def test_directions_that_are_not_orthonormal_are_no_loreft():
    state = loreft().state_dict()
    named = {name: state[name] for name in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"not orthonormal.*noreft"):
        loreft().load_state_dict({**named, "rotate_layer": torch.ones(WIDTH, 2)})


@pytest.mark.parametrize("extra", [{"init_orth": True}, {"keep_last_dim": True}, {"use_fast": 0}])
def test_arguments_without_effect_are_taken(extra):
    made = loreft(**extra)
    assert set(made.get_config()) & set(extra) == set()


def test_sizes_may_be_tensors():
    made = pyreft.LoreftIntervention(
        embed_dim=torch.tensor(WIDTH), low_rank_dimension=torch.tensor(2)
    )
    assert (made.embed_dim, made.low_rank_dimension) == (WIDTH, 2)
    assert type(made.embed_dim) is int


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"droput": 0.1}, "no argument 'droput'. Did you mean 'dropout'"),
        ({"foo": 1}, "no argument 'foo'. Known: embed_dim, low_rank_dimension"),
        ({"init_orth": False}, "takes init_orth=True"),
        ({"source_representation": torch.ones(2)}, "source_representation=None"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(extra, message):
    with pytest.raises(TypeError, match=message):
        loreft(**extra)


def test_the_adapters_config_is_not_replaced():
    model = wrap(loreft())
    model.reft_config = model.config  # as ms-swift moves them about
    model.config = model.model.config
    with pytest.raises(AttributeError, match="reft_config"):
        model.config = model.reft_config
    with pytest.raises(AttributeError, match="add_adapter"):
        model.reft_config = pyreft.ReftConfig()


# ---- calls ---------------------------------------------------------------------------------------


def test_arguments_by_place_are_those_by_name():
    model = wrap(loreft(), loreft())
    where = at([[1], [2]], [[3], [4]])
    _, expected = model(TEXT, unit_locations=where, labels=IDS)
    _, found = model(TEXT, None, where, None, None, IDS)
    assert torch.equal(found.logits, expected.logits) and found.loss == expected.loss
    both = model(TEXT, None, where, return_dict=True, output_original_output=True)
    assert torch.equal(both.intervened_outputs.logits, expected.logits)
    assert torch.equal(both.original_outputs.logits, make_base("llama")(IDS).logits)
    assert torch.equal(model.forward(TEXT, None, where)[1].logits, expected.logits)


def test_positions_are_written_in_many_ways():
    model = wrap(loreft(), loreft())
    _, expected = model(TEXT, unit_locations=at([[1], [1]], [[1], [1]]))
    numpy = torch.tensor(1).numpy()[()]
    for same in (at([[1]], [[1]]), at([[numpy], [numpy]], [[numpy]]), at([[1]], [[1], [1]])):
        assert torch.equal(model(TEXT, unit_locations=same)[1].logits, expected.logits)


def test_rows_may_be_repeated_for_beams():
    model = wrap(loreft())
    beams = {"intervene_on_prompt": True, "num_beams": 3, "max_new_tokens": 3, "do_sample": False}
    _, expected = model.generate(TEXT, unit_locations=at([[1], [4]]), **beams)
    repeated = at([[1]] * 3 + [[4]] * 3)
    assert torch.equal(model.generate(TEXT, unit_locations=repeated, **beams)[1], expected)
    with pytest.raises(ValueError, match="for each of the 2 rows"):
        model.generate(TEXT, unit_locations=at([[1], [4]] * 3), **beams)


@pytest.mark.parametrize("call", ["forward", "generate"])
def test_without_positions_every_token_is_edited(call):
    model, told = wrap(loreft()), wrap(loreft(), positions="all")
    if call == "forward":
        assert torch.equal(model(TEXT)[1].logits, told(**TEXT).logits)
        return
    settings = {"max_new_tokens": 4, "do_sample": False}
    _, found = model.generate(TEXT, intervene_on_prompt=True, **settings)
    assert torch.equal(found, told.generate(**TEXT, **settings))
    generated = wrap(loreft(), positions="completion")
    _, found = model.generate(TEXT, **settings)
    assert torch.equal(found, generated.generate(**TEXT, **settings))


def test_the_argument_positions_is_for_what_the_config_leaves_open(caplog):
    logging.warning_once.cache_clear()  # other tests may have been warned
    model, told = wrap(loreft()), wrap(loreft(), positions="f1+l1")
    assert torch.equal(model(IDS, positions="f1+l1").logits, told(IDS).logits)
    assert "is not used" not in caplog.text
    assert torch.equal(told(IDS, positions="all").logits, told(IDS).logits)
    assert "positions='all' is not used in this call" in caplog.text
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = told.generate(IDS, **settings)
    assert torch.equal(model.generate(IDS, positions="f1+l1", **settings), expected)


def test_labels_on_the_whole_row_leave_positions_to_it():
    model = wrap(loreft())
    _, found = model(TEXT, unit_locations=at([[0, 5], [2, -1]]), labels=IDS)
    _, expected = model(TEXT, unit_locations=at([[0, 5], [2, 5]]))
    assert torch.equal(found.logits, expected.logits)
    with pytest.raises(ValueError, match=r"position 6 .* 6 tokens"):
        model(TEXT, unit_locations=at([[6], [0]]), labels=IDS)


def test_two_on_one_token_run_in_their_order():
    first, second = loreft().double(), loreft(3).double()
    model = wrap(first, second, layers=[1, 1])
    model.model.double()
    seen = {}

    def keep(module, args, output):
        seen["hidden"] = output[0] if isinstance(output, tuple) else output

    handle = model.model.model.layers[1].register_forward_hook(keep)
    model(TEXT, unit_locations=at([[2, 3]], [[3]]))
    edited = seen["hidden"]
    with model.disable_adapter():
        model(**TEXT)
    handle.remove()
    bare, expected = seen["hidden"], seen["hidden"].clone()
    expected[:, 2:4] = first(bare[:, 2:4])
    expected[:, 3:4] = second(expected[:, 3:4])
    torch.testing.assert_close(edited, expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match=r"both edit .* must be disjoint"):
        model(IDS, intervention_locations=torch.tensor([[[3], [3]]] * 2))


def test_a_dict_of_directions_goes_to_the_users_module():
    class Steered(nn.Module):
        def forward(self, hidden, subspaces=None):
            # A result of pyvene's kind.
            return SimpleNamespace(output=hidden + subspaces["strength"])

    model = wrap(Steered())
    where = at([[1], [2]])
    _, found = model(TEXT, unit_locations=where, subspaces=[{"strength": 2.0}])
    _, other = model(TEXT, unit_locations=where, subspaces=[{"strength": 0.0}])
    assert torch.equal(other.logits, make_base("llama")(IDS).logits)
    assert not torch.equal(found.logits, other.logits)


def test_a_subclass_in_bfloat16_gets_the_hidden_state_as_it_is():
    class Own(pyreft.LoreftIntervention):
        def forward(self, base, source=None, subspaces=None):
            assert base.dtype == torch.bfloat16
            rotated = self.rotate_layer(base)
            difference = self.act_fn(self.learned_source(base)) - rotated
            return (base + difference @ self.rotate_layer.weight.T).to(base.dtype)

    module = Own(embed_dim=WIDTH, low_rank_dimension=2, dtype=torch.bfloat16)
    entry = {"layer": 1, "component": "block_output", "intervention": module, "positions": "l1"}
    base = make_base("llama").to(torch.bfloat16)
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(representations=entry))
    assert model(IDS).logits.dtype == torch.bfloat16


def test_a_forward_of_ones_own_in_upstreams_form_is_called_so(tokenizer, tmp_path):
    class Own(pyreft.ReftModel):
        calls = 0

        def forward(self, base, sources=None, unit_locations=None, *others, **kwargs):
            self.calls += 1
            return super().forward(base, sources, unit_locations, *others, **kwargs)

    model = wrap(loreft(), cls=Own)
    _, expected = wrap(loreft())(TEXT, unit_locations=at([[1], [2]]), labels=IDS)
    _, found = model(TEXT, unit_locations=at([[1], [2]]), labels=IDS)
    assert torch.equal(found.loss, expected.loss)
    where = torch.tensor([[[1]], [[2]]])
    assert torch.equal(model(**TEXT, intervention_locations=where, labels=IDS).loss, found.loss)
    assert model.calls == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"unit_locations": at(None)}, ValueError, "intervention 0 are None"),
        (
            {
                "unit_locations": at([[1], [2]]),
                "intervention_locations": torch.tensor([[[1]], [[2]]]),
            },
            TypeError,
            "give positions only once",
        ),
        ({"sources": [TEXT]}, ValueError, "no sources"),
    ],
)
def test_what_can_only_be_wrong_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        wrap(loreft())(TEXT, **arguments)
    with pytest.raises(error, match=message):
        arguments = {**arguments, "intervene_on_prompt": True, "max_new_tokens": 1}
        wrap(loreft()).generate(TEXT, **arguments)


def test_a_pad_token_that_unit_locations_count_is_not_doubted(caplog):
    logging.warning_once.cache_clear()  # other tests may have been warned
    model = wrap(loreft())
    padded = {"input_ids": IDS.clone(), "attention_mask": TEXT["attention_mask"].clone()}
    padded["attention_mask"][:, 0] = 0
    _, found = model(padded, unit_locations=at([[1], [2]]))
    assert "begins with a masked token" not in caplog.text
    where = torch.tensor([[[0]], [[1]]])
    assert torch.equal(model(**padded, intervention_locations=where).logits, found.logits)
    assert "Every row of the batch begins with a masked token" in caplog.text


def test_an_intervention_is_given_once():
    entry = {"layer": 0, "intervention": loreft(), "intervention_type": pyreft.LoreftIntervention}
    with pytest.raises(ValueError, match="not both"):
        pyreft.ReftConfig(representations=entry)


def test_the_rank_of_the_module_counts(caplog):
    model = wrap(loreft(3), low_rank_dimension=8)
    assert model.reft_config.representations[0].low_rank_dimension == 3
    assert "low_rank_dimension=8, its intervention has 3" in caplog.text


# ---- files and trainers --------------------------------------------------------------------------


def test_save_goes_beside_other_files(tmp_path):
    (tmp_path / "args.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    model = wrap(loreft(), positions="l1")
    model.save(tmp_path)
    assert (tmp_path / "args.json").read_text() == "{}"
    loaded = pyreft.ReftModel.load(tmp_path / "intervenable_model", make_base("llama"))
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_in_the_form_of_older_trainers_trains(tokenizer, tmp_path, accumulated):
    class Own(pyreft.ReftTrainer):
        def compute_loss(self, intervenable, inputs, return_outputs=False):
            listed = inputs["intervention_locations"].permute(1, 0, 2).tolist()
            where = {"sources->base": (None, listed)}
            base = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            _, outputs = intervenable(base, unit_locations=where, labels=inputs["labels"])
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    prompts, outputs = ["ab", "abc"] * 2, ["x", "x"] * 2
    data = pyreft.make_last_position_supervised_data_module(tokenizer, None, prompts, outputs)
    found = []
    for cls in (Own, pyreft.ReftTrainer):
        torch.manual_seed(0)
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2 // accumulated,
            gradient_accumulation_steps=accumulated,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        model = wrap(loreft())
        cls(model=model, tokenizer=tokenizer, args=arguments, **data).train()
        found.append(model.interventions.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_a_batch_that_a_subclass_hands_on_by_name_is_upstreams_as_well():
    class Own(pyreft.ReftModel):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    _, expected = wrap(loreft())(TEXT, unit_locations=at([[1], [2]]), labels=IDS)
    _, found = wrap(loreft(), cls=Own)(TEXT, unit_locations=at([[1], [2]]), labels=IDS)
    assert torch.equal(found.loss, expected.loss)


def test_a_third_argument_without_a_name_is_refused_in_transformers_convention():
    for call in (wrap(loreft()), wrap(loreft()).forward):
        with pytest.raises(TypeError, match=r"1 to 3 positional arguments but 4"):
            call(IDS, None, IDS)


def test_an_argument_by_place_and_by_name_is_refused():
    class Own(pyreft.ReftModel):
        def forward(self, base, **kwargs):
            return super().forward(base, **kwargs)

    for model in (wrap(loreft()), wrap(loreft(), cls=Own)):
        with pytest.raises(TypeError, match="multiple values for argument 'input_ids'"):
            model(IDS, input_ids=IDS + 1)


def generated(model, batch=TEXT, **arguments):
    settings = {"max_new_tokens": 4, "do_sample": False, "intervene_on_prompt": True}
    return model.generate(batch, **settings | arguments)[1]


def test_none_is_an_argument_of_generate_as_well():
    model = wrap(loreft())
    first = int(generated(model)[0, 6])
    model.generation_config.eos_token_id = first
    model.generation_config.pad_token_id = 0
    assert generated(model, {"input_ids": IDS[:1]}).shape[1] == 7
    assert generated(model, {"input_ids": IDS[:1]}, eos_token_id=None).shape[1] == 10


def test_a_mask_of_none_takes_the_place_of_the_batchs_own():
    masked = {**TEXT, "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)}
    base = make_base("llama").eval()
    settings = {"max_new_tokens": 4, "do_sample": False}
    whole, part = base.generate(IDS, **settings), base.generate(**masked, **settings)
    assert not torch.equal(whole, part)
    model = wrap(loreft())
    with model.disable_adapter():
        assert torch.equal(generated(model, masked), part)
        assert torch.equal(generated(model, masked, attention_mask=None), whole)


def test_generate_follows_what_the_batch_says_of_edits():
    model = wrap(loreft())
    with model.disable_adapter():
        bare = generated(model)
    edited = generated(model)
    assert not torch.equal(edited, bare)
    assert torch.equal(generated(model, {**TEXT, "adapter_names": ["__base__"] * 2}), bare)
    where = torch.tensor([[[1]], [[2]]])
    by_batch = generated(model, {**TEXT, "intervention_locations": where})
    assert torch.equal(by_batch, generated(model, intervention_locations=where))


def test_generate_takes_no_argument_that_it_does_not_know():
    model, mask = wrap(loreft()), torch.ones_like(IDS)
    for extra in ({"completion_mask": mask}, {"in_order": True}):
        with pytest.raises(ValueError, match=f"not used by the model.*{next(iter(extra))}"):
            model.generate(IDS, max_new_tokens=1, positions="l1", **extra)
    with pytest.raises(TypeError, match="unit_locations belongs to upstream's convention"):
        generated(model, {**TEXT, "unit_locations": at([[1], [2]])})


def test_generate_does_not_doubt_positions_that_a_call_would(caplog):
    masked = torch.tensor([[0, 1, 1, 1, 1, 1]] * 2)
    logging.warning_once.cache_clear()
    wrap(loreft()).generate(
        IDS,
        attention_mask=masked,
        intervention_locations=torch.tensor([[[1]], [[2]]]),
        max_new_tokens=1,
    )
    assert "begins with a masked token" not in caplog.text
