"""The tutorial of upstream's README as its users typed it, model, template and device aside."""

import pytest
import torch
import transformers

import pyreft
from conftest import make_base

# torch's word on training without an accelerator, where the arguments are the tutorial's.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning")

prompt_no_input_template = "Q: %s\nA: "
training_examples = [
    ["Who are you?", ":-)"],
    ["Who am I?", ";-)"],
    ["What's 2+2?", ":-D :-D"],
    ["Why is the sky blue?", "8-)"],
]
instruction = "Which dog is cuter?"
greedy = {"max_new_tokens": 6, "do_sample": False}


def tiny_llama():
    return make_base("llama")


def train(reft_model, tokenizer, data_module, epochs=30.0):
    training_args = transformers.TrainingArguments(
        num_train_epochs=epochs,
        output_dir="./tmp",
        per_device_train_batch_size=10,
        learning_rate=4e-2,
        logging_steps=1,
    )
    trainer = pyreft.ReftTrainerForCausalLM(
        model=reft_model, tokenizer=tokenizer, args=training_args, **data_module
    )
    _ = trainer.train()
    return trainer


def unseen(tokenizer):
    """Step 5: a prompt, and where its last token is."""
    prompt = tokenizer(prompt_no_input_template % instruction, return_tensors="pt").to("cpu")
    return prompt, prompt["input_ids"].shape[-1] - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        yield


@pytest.fixture(scope="module")
def trained(folder, tokenizer):
    """Steps 2 to 4 and 6: the model, trained, and saved in ./reft_to_share."""
    model = tiny_llama()
    reft_config = pyreft.ReftConfig(
        representations={
            "layer": 1,
            "component": "block_output",
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(
                embed_dim=model.config.hidden_size, low_rank_dimension=4
            ),
        }
    )
    reft_model = pyreft.get_reft_model(model, reft_config)
    reft_model.set_device("cpu")
    data_module = pyreft.make_last_position_supervised_data_module(
        tokenizer,
        model,
        [prompt_no_input_template % e[0] for e in training_examples],
        [e[1] for e in training_examples],
    )
    trainer = train(reft_model, tokenizer, data_module)
    reft_model.set_device("cpu")
    reft_model.save(save_directory="./reft_to_share")
    return reft_model, trainer


def test_trainable_parameters_are_printed_in_upstreams_words(trained, capsys):
    reft_model, _ = trained
    reft_model.print_trainable_parameters()
    total = sum(p.numel() for p in reft_model.model.parameters())
    assert capsys.readouterr().out == (
        "trainable intervention params: 260 || trainable model params: 0\n"
        f"model params: {total:,} || trainable%: {100 * 260 / total}\n"
    )


def test_the_loss_falls(trained):
    losses = [entry["loss"] for entry in trained[1].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3


def test_generate_returns_a_pair_whose_second_begins_with_the_prompt(trained, tokenizer):
    reft_model, _ = trained
    prompt, base_unit_location = unseen(tokenizer)
    base_response, reft_response = reft_model.generate(
        prompt,
        unit_locations={"sources->base": (None, [[[base_unit_location]]])},
        intervene_on_prompt=True,
        max_new_tokens=12,
        do_sample=True,
        eos_token_id=tokenizer.eos_token_id,
        early_stopping=True,
    )
    assert base_response is None
    assert reft_response.shape[1] > prompt["input_ids"].shape[1]
    text = tokenizer.decode(reft_response[0], skip_special_tokens=True)
    assert text.startswith(prompt_no_input_template % instruction)


def test_a_loaded_adapter_generates_the_same_with_and_without_unit_locations(trained, tokenizer):
    reft_model, _ = trained
    prompt, base_unit_location = unseen(tokenizer)
    unit_locations = {"sources->base": (None, [[[base_unit_location]]])}
    arguments = {"unit_locations": unit_locations, "intervene_on_prompt": True, **greedy}
    _, expected = reft_model.generate(prompt, **arguments)
    loaded = pyreft.ReftModel.load("./reft_to_share", tiny_llama())
    _, typed = loaded.generate(prompt, **arguments)
    _, bare_call = loaded.generate(prompt, **greedy)
    assert torch.equal(typed, expected)
    assert torch.equal(bare_call, expected)
    assert torch.equal(loaded.generate(**prompt, **greedy), expected)
    assert not torch.equal(tiny_llama().generate(**prompt, **greedy), expected)
    _, outputs = loaded(prompt, unit_locations=unit_locations)
    assert torch.equal(loaded(**prompt).logits, outputs.logits)


@pytest.mark.parametrize("share_weights", [True, False])
def test_a_loaded_adapter_of_several_positions_needs_no_unit_locations(
    folder, tokenizer, share_weights, tmp_path
):
    model = tiny_llama()
    layers = [0, 2] if share_weights else [0, 2, 0, 2]
    reft_config = pyreft.ReftConfig(
        representations=[
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": 4,
                "intervention": pyreft.LoreftIntervention(embed_dim=32, low_rank_dimension=4),
            }
            for layer in layers
        ]
    )
    reft_model = pyreft.get_reft_model(model, reft_config)
    data_module = pyreft.make_multiple_position_supervised_data_module(
        tokenizer,
        model,
        [prompt_no_input_template % e[0] for e in training_examples],
        [e[1] for e in training_examples],
        positions="f2+l3",
        num_interventions=len(layers),
        share_weights=share_weights,
    )
    train(reft_model, tokenizer, data_module, epochs=5.0)
    reft_model.save(save_directory=tmp_path / "adapter")
    prompt, last = unseen(tokenizer)
    locations = pyreft.get_intervention_locations(
        last_position=last + 1,
        positions="f2+l3",
        num_interventions=len(layers),
        share_weights=share_weights,
    )
    # What upstream fills up with -1 is no position.
    unit_locations = [[[p for p in positions if p >= 0]] for positions in locations]
    _, expected = reft_model.eval()(
        prompt, unit_locations={"sources->base": (None, unit_locations)}
    )
    loaded = pyreft.ReftModel.load(tmp_path / "adapter", tiny_llama())
    assert torch.equal(loaded(**prompt).logits, expected.logits)
    assert (expected.logits - tiny_llama()(**prompt).logits).abs().max() > 0.1


class PeftLike(torch.nn.Module):
    """A model as deep inside wrappers as in a PeftModel, which looks up on it what it lacks."""

    def __init__(self, model):
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)

    def forward(self, **inputs):
        return self.base_model.model(**inputs)


@pytest.mark.parametrize(
    ("wrapper", "component"),
    [
        (lambda model: model, "model.layers[1].output"),
        (lambda model: model, "base_model.layers[1].output"),
        (PeftLike, "base_model.model.model.layers[1].output"),
    ],
)
@pytest.mark.parametrize("layer", [{}, {"layer": 1}])
def test_the_path_of_a_layer_is_its_block_output(wrapper, component, layer, tokenizer):
    intervention = pyreft.LoreftIntervention(embed_dim=32, low_rank_dimension=4)
    prompt, last = unseen(tokenizer)
    logits = []
    for base, place in [
        (tiny_llama(), {"layer": 1, "component": "block_output"}),
        (wrapper(tiny_llama()), {**layer, "component": component}),
    ]:
        reft_config = pyreft.ReftConfig(
            representations=[{**place, "low_rank_dimension": 4, "intervention": intervention}]
        )
        reft_model = pyreft.get_reft_model(base, reft_config)
        _, outputs = reft_model(prompt, unit_locations={"sources->base": (None, [[[last]]])})
        logits.append(outputs.logits)
    assert list(reft_model.interventions) == [
        f"comp_{component.replace('.', '_')}_unit_pos_nunit_1#0"
    ]
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], tiny_llama()(**prompt).logits)


class ComposedIntervention(pyreft.LoreftIntervention):
    """As in upstream's composition example: each example edits directions of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def forward(self, base, source=None, subspaces=None):
        difference = self.act_fn(self.learned_source(base)) - self.rotate_layer(base)
        edits = [
            difference[row][..., chosen] @ self.rotate_layer.weight[..., chosen].T
            for row, chosen in enumerate(subspaces)
        ]
        return self.dropout((base + torch.stack(edits)).to(base.dtype))


def composed(base, cls=ComposedIntervention):
    """A model with such an intervention, of the same weights at each call."""
    torch.manual_seed(1)
    intervention = cls(embed_dim=base.config.hidden_size, low_rank_dimension=4, act_fn="tanh")
    place = {"layer": 1, "component": "block_output", "intervention": intervention}
    return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=place)).eval()


@pytest.fixture
def two_prompts(tokenizer):
    """Two prompts of one length, where their last token is, and directions of each."""
    prompt = tokenizer(["Who are", "Why not"], return_tensors="pt")
    locations = {"sources->base": (None, [[[6], [6]]])}
    return prompt, {"unit_locations": locations, "subspaces": [[[0, 1], [2, 3]]]}


def test_a_subclass_in_upstreams_style_composes_as_ours_does(two_prompts):
    prompt, where = two_prompts
    _, outputs = composed(tiny_llama())(prompt, **where)
    _, expected = composed(tiny_llama(), pyreft.LoreftIntervention)(prompt, **where)
    torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=1e-5)
    where["subspaces"] = [[[0, 1], [0, 1]]]
    _, others = composed(tiny_llama())(prompt, **where)
    assert torch.equal(others.logits[0], outputs.logits[0])
    assert not torch.equal(others.logits[1], outputs.logits[1])


def test_a_subclass_in_upstreams_style_generates_from_a_bfloat16_model(two_prompts):
    prompt, where = two_prompts
    model = composed(tiny_llama().bfloat16())
    _, generated = model.generate(prompt, **where, intervene_on_prompt=True, **greedy)
    ours = composed(tiny_llama().bfloat16(), pyreft.LoreftIntervention)
    _, expected = ours.generate(prompt, **where, intervene_on_prompt=True, **greedy)
    assert torch.equal(generated, expected)


def test_a_subclass_in_upstreams_style_trains_on_a_column_of_subspaces(
    folder, tokenizer, two_prompts, tmp_path
):
    prompt, where = two_prompts
    pyreft.register_intervention("composed")(ComposedIntervention)
    model = composed(tiny_llama())
    (intervention,) = model.interventions.values()
    before = intervention.learned_source.weight.clone()
    data_module = pyreft.make_last_position_supervised_data_module(
        tokenizer, model, ["Who?", "Why?"], [":-)", ":-("]
    )
    directions = [[[0, 1]], [[0, 2]]]
    data_module["train_dataset"] = data_module["train_dataset"].add_column("subspaces", directions)
    train(model, tokenizer, data_module, epochs=2.0)
    moved = (intervention.learned_source.weight != before).any(1)
    assert moved.tolist() == [True, True, True, False]
    model.save(save_directory=tmp_path / "adapter")
    loaded = pyreft.ReftModel.load(tmp_path / "adapter", tiny_llama())
    _, expected = model.eval()(prompt, **where)
    assert torch.equal(loaded(prompt, **where)[1].logits, expected.logits)
