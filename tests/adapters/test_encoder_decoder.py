"""Encoder-decoder models: interventions in the encoder or the decoder, on the tokens of each."""

import pytest
import torch
from by_hand import first_output
from encoder_decoder_models import DECODER_LAYERS, LAYERS_OF, MAKERS, START, make, make_generator
from encoder_decoders import BLOCKS, Recomputation, batch, edited_tokens, ids, layers, logits, wrap
from reft import assert_same, no_dropout

import pyreft
from conftest import KINDS, WIDTH, make_base, randomize
from pyreft import ReftConfig, ReftModel, get_reft_model


@pytest.fixture(params=MAKERS)
def architecture(request):
    return request.param


@pytest.fixture(params=BLOCKS)
def stack(request):
    return request.param


def wrap_each(base, places):
    """Interventions at the first layer: component -> its positions."""
    entries = [
        {"layer": 0, "component": name, "positions": positions, "low_rank_dimension": 4}
        for name, positions in places.items()
    ]
    return randomize(get_reft_model(base, ReftConfig(representations=entries)).eval(), 0.3)


# ---- which tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_in_the_encoder_count_the_tokens_it_reads(architecture, side):
    model, inputs = wrap(make(architecture), positions="f1+l2"), batch((5, 8, 3), side=side)
    shift = (3, 0, 5) if side == "left" else (0, 0, 0)
    expected = [[0, 3, 4], [0, 6, 7], [0, 1, 2]]
    expected = [[s + c for c in row] for s, row in zip(shift, expected, strict=True)]
    assert edited_tokens(model, inputs, "encoder") == expected


def test_labels_end_nothing_in_the_encoder(architecture):
    model, inputs = wrap(make(architecture), positions="prompt"), batch((4, 6), (4, 6))
    inputs["labels"][0, :2] = -100  # labels as long as the prompt, by chance
    assert edited_tokens(model, inputs, "encoder") == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    model = wrap(make(architecture), positions="all")
    assert edited_tokens(model, inputs, "encoder") == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    "positions, expected",
    [
        ("l1", [[0], [0], [0]]),
        ("completion", [[1, 2, 3], [1], [1, 2, 3, 4, 5]]),
        ("all", [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3, 4, 5]]),
    ],
)
@pytest.mark.parametrize("with_ids", [True, False])
def test_the_prompt_of_the_decoder_is_its_start_token(architecture, positions, expected, with_ids):
    model, inputs = wrap(make(architecture), "decoder", positions=positions), batch()
    if with_ids:
        made = model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        inputs["decoder_input_ids"] = made
    assert edited_tokens(model, inputs, "decoder") == expected


def test_a_forced_prefix_belongs_to_the_prompt_of_the_decoder(architecture):
    model, inputs = wrap(make(architecture), "decoder", positions="l1"), batch()
    inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(inputs["labels"])
    inputs["labels"][0, :2] = -100
    assert edited_tokens(model, inputs, "decoder") == [[2], [0], [0]]


def test_without_labels_all_of_the_decoder_is_prompt(architecture):
    model, inputs = wrap(make(architecture), "decoder", positions="prompt"), batch()
    del inputs["labels"]
    inputs["decoder_input_ids"] = torch.tensor([[START, 5, 6], [START, 7, 0], [START, 8, 9]])
    inputs["decoder_attention_mask"] = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    assert edited_tokens(model, inputs, "decoder") == [[0, 1, 2], [0, 1], [0, 1, 2]]


def test_a_completion_mask_takes_the_place_of_labels(architecture):
    model, inputs = wrap(make(architecture), "decoder", positions="l1+completion"), batch()
    labels = inputs.pop("labels")
    inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    inputs["completion_mask"] = labels != -100
    assert edited_tokens(model, inputs, "decoder") == [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3, 4, 5]]


def test_a_stack_without_interventions_is_bit_identical(architecture):
    inputs = batch()
    model = wrap(make(architecture), "decoder")
    assert edited_tokens(model, inputs, "encoder", layer=-1) == [[], [], []]


def test_both_stacks_are_edited_together(architecture):
    places = {"block_output": "f2", "decoder_block_output": "all"}
    model = wrap_each(make(architecture), places)
    assert edited_tokens(model, batch(), "encoder") == [[0, 1], [0, 1], [0, 1]]
    expected = [[0, 1, 2, 3], [0, 1], [0, 1, 2, 3, 4, 5]]
    assert edited_tokens(model, batch(), "decoder") == expected


@pytest.mark.parametrize("given", ["one for each", "one for all"])
def test_explicit_positions_count_on_the_side_of_each_intervention(architecture, given):
    places = dict.fromkeys(["decoder_block_output", "encoder_block_output"])
    model, inputs = wrap_each(make(architecture), places), batch()
    explicit = torch.tensor([[[0, -100], [1, -1]]] * 3)
    inputs["intervention_locations"] = explicit if given == "one for each" else explicit[:, :1]
    encoder = [[1, 4], [1, 7], [1, 2]] if given == "one for each" else [[0]] * 3
    assert edited_tokens(model, inputs, "encoder") == encoder
    assert edited_tokens(model, inputs, "decoder") == [[0], [0], [0]]
    inputs["intervention_locations"] = torch.tensor([[[1], [1]]] * 3)
    with pytest.raises(ValueError, match="outside the prompt of the decoder, which has 1 tokens"):
        model(**inputs)


def test_a_position_function_sees_the_ids_of_its_side(architecture):
    seen = {}

    def first(tokens):
        seen[tokens.prompt.shape] = tokens.input_ids
        return tokens.prompt & (tokens.index == 0)

    inputs = batch()
    for stack in BLOCKS:
        model = wrap(make(architecture), stack, positions=first)
        made = model.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        assert edited_tokens(model, {**inputs, "decoder_input_ids": made}, stack) == [[0]] * 3
    assert torch.equal(seen[3, 8], inputs["input_ids"])
    assert torch.equal(seen[3, 6], made)


# ---- guarantees --------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["f2+l1", "all"])
def test_a_padded_batch_gives_the_numbers_of_its_rows(stack, positions):
    model = wrap(make("t5"), stack, positions=positions)
    sides = [logits(model, batch(side=side)) for side in ("right", "left")]
    torch.testing.assert_close(sides[0], sides[1], rtol=1e-5, atol=1e-4)
    for row, (prompt, completion) in enumerate(zip((5, 8, 3), (4, 2, 6), strict=True)):
        alone = logits(model, batch((prompt,), (completion,)))[0]
        torch.testing.assert_close(sides[0][row, :completion], alone, rtol=1e-5, atol=1e-4)


def test_no_positions_are_the_bare_model(architecture, stack, caplog):
    model, inputs = wrap_each(make(architecture), {BLOCKS[stack]: None}), batch()
    assert torch.equal(logits(model, inputs), logits(make(architecture), inputs))


def test_a_disabled_or_removed_adapter_leaves_the_base_model_bit_identical(architecture, stack):
    base, inputs = make(architecture), batch()
    bare = logits(make(architecture), inputs)
    model = wrap(base, stack)
    edited = logits(model, inputs)
    assert not torch.allclose(edited, bare)
    with model.disable_adapter():
        assert torch.equal(logits(model, inputs), bare)
    assert torch.equal(logits(model, inputs), edited)
    assert torch.equal(logits(model.unwrap(), inputs), bare)


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_through_files_is_exact(architecture, stack, kind, tmp_path):
    model = wrap(make(architecture), stack, kind=kind, positions="l1")
    model.save_pretrained(tmp_path)
    loaded = ReftModel.from_pretrained(make(architecture), tmp_path)
    assert torch.equal(logits(loaded, batch()), logits(model, batch()))
    assert loaded.reft_config.to_dict() == model.reft_config.to_dict()


def test_an_adapter_for_a_decoder_of_another_depth_is_refused(tmp_path):
    wrap(make("t5"), "decoder", layers=[0]).save_pretrained(tmp_path)
    other = make("t5", num_decoder_layers=DECODER_LAYERS + 1)
    with pytest.raises(pyreft.AdapterError, match=r"num_decoder_layers 3; this model has .* 4"):
        ReftModel.from_pretrained(other, tmp_path)


def gradients(model, inputs):
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.interventions.named_parameters()}


def test_gradients_reach_the_interventions_alone(architecture, stack):
    base = make(architecture)
    found = gradients(wrap(base, stack), batch())
    assert all(grad.abs().sum() > 0 for grad in found.values())
    assert all(p.grad is None for p in base.parameters())


def test_gradient_checkpointing_gives_equal_gradients(architecture, stack):
    base = no_dropout(make(architecture))
    for module in base.modules():
        # BART keeps rates as numbers.
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model = wrap(base, stack, positions="all")
    model.train()
    expected = gradients(model, batch())
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    assert_same(gradients(model, batch()), expected)


def test_training_sees_what_generation_will_see(architecture, stack):
    """The logits under labels are those of a recomputation of what is generated."""
    columns = {"encoder": lambda n, t: [n - 1], "decoder": lambda n, t: list(range(t))}
    positions = {"encoder": "l1", "decoder": "all"}
    model = wrap(make_generator(architecture), stack, positions=positions[stack])
    recomputation = Recomputation(architecture, model, {stack: columns[stack]})
    prompt = ids(6)
    completion = recomputation.greedy(prompt, 5)
    decoded = torch.tensor([[START, *completion[:-1]]])
    found = logits(model, {"input_ids": prompt[None], "labels": completion[None]})
    expected = recomputation.logits(prompt, decoded)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    generated = model.generate(prompt[None], max_new_tokens=5, do_sample=False)
    assert generated[0, 1:].tolist() == completion.tolist()


def test_output_hidden_states_shows_the_edit(architecture, stack):
    model, inputs, seen = wrap(make(architecture), stack, layers=[0]), batch(), []
    layers(model.model, stack)[0].register_forward_hook(
        lambda module, args, output: seen.append(first_output(output).clone())
    )
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    assert torch.equal(outputs[f"{stack}_hidden_states"][1], seen[0])


# ---- names and layers --------------------------------------------------------------------------


def test_all_layers_are_those_of_the_stack(architecture, stack):
    model = wrap(make(architecture), stack)
    assert len(model.interventions) == LAYERS_OF[stack]


def test_a_plain_name_is_the_encoder(architecture):
    plain, full = (
        wrap(make(architecture), component=name).reft_config
        for name in ("mlp_output", "encoder_mlp_output")
    )
    assert plain.to_dict() == full.to_dict()
    with pytest.raises(ValueError, match="two interventions edit one token: mlp_output of layer 0"):
        wrap_each(make(architecture), {"mlp_output": "l1", "encoder_mlp_output": "l1"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"component": "decoder_block_output", "layers": [3]}, "the model's decoder has 3 layers"),
        ({"component": "block_output", "layers": [2]}, "the model's encoder has 2 layers"),
        ({"component": "cross_attention_output"}, "unknown component 'cross_attention_output'"),
        ({"component": "decoder_mlp"}, "unknown component 'decoder_mlp'.*with \"decoder_\""),
        ({"positions": "completion"}, "in the encoder, which reads the prompt and no completion"),
        ({"positions": "l1+completion"}, "selects no token"),
        ({"component": "shared.output"}, "shared by the encoder and the decoder"),
    ],
)
def test_what_is_not_there_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        wrap(make("t5"), **config)


@pytest.mark.parametrize("name", ["decoder_block_output", "encoder_mlp_output"])
def test_other_models_have_no_encoder_and_decoder(name):
    config = ReftConfig(component=name, layers=[0])
    with pytest.raises(ValueError, match=f"'{name}' is for models with an encoder and a decoder"):
        get_reft_model(make_base("llama"), config)


def test_positions_of_a_data_module_are_checked_as_well():
    model = wrap_each(make("t5"), {"block_output": None})
    with pytest.raises(ValueError, match="reads the prompt and no completion"):
        model.record_positions([pyreft.PositionSpec.parse("completion")])


# A layer of each stack: attention, cross-attention, map up, activation, map down.
PARTS = {
    "t5": (
        "layer.0.SelfAttention layer.1.EncDecAttention layer.{ff}.DenseReluDense "
        "layer.{ff}.DenseReluDense.act.output layer.{ff}.DenseReluDense o"
    ),
    "bart": "self_attn encoder_attn fc1 fc2.input fc2 out_proj",
}


def place(architecture, stack, name):
    """(path, side) of a component, written down by hand."""
    attention, cross, up, activation, down, out = PARTS[architecture].split()
    activation, _, side = activation.rpartition(".")
    path, side = {
        "block_input": ("", "input"),
        "block_output": ("", "output"),
        "attention_input": (attention, "input"),
        "attention_output": (attention, "output"),
        "attention_value_output": (f"{attention}.{out}", "input"),
        "cross_attention_input": (cross, "input"),
        "cross_attention_output": (cross, "output"),
        "cross_attention_value_output": (f"{cross}.{out}", "input"),
        "mlp_input": (up, "input"),
        "mlp_activation": (activation, side),
        "mlp_output": (down, "output"),
    }[name]
    layer = {"t5": f"{stack}.block.1", "bart": f"model.{stack}.layers.1"}[architecture]
    path = path.format(ff=1 if stack == "encoder" else 2)
    return f"{layer}.{path}".rstrip("."), side


PLAIN = ["block_input", "block_output", "attention_input", "attention_output", "mlp_input"]
PLAIN += ["attention_value_output", "mlp_activation", "mlp_output"]
CROSS = ["cross_attention_input", "cross_attention_output", "cross_attention_value_output"]
NAMED = [("encoder", name) for name in PLAIN] + [("decoder", name) for name in PLAIN + CROSS]


@pytest.mark.parametrize(("stack", "name"), NAMED)
def test_a_name_is_the_place_it_says(architecture, stack, name):
    """Named and by its path it is one place, in the stack that the path lies in."""
    path, side = place(architecture, stack, name)
    component = name if stack == "encoder" else f"decoder_{name}"
    width = 48 if name == "mlp_activation" else WIDTH
    arguments = {"arguments": {"low_rank_dimension": 4, "embed_dim": width}}
    arguments["rank"] = ReftConfig.rank
    named = wrap(make(architecture), layers=[1], component=component, **arguments)
    by_path = wrap(make(architecture), component=f"{path}.{side}", **arguments)
    found, base = logits(named, batch()), logits(make(architecture), batch())
    assert torch.equal(found, logits(by_path, batch()))
    assert not torch.allclose(found, base)
    module = named.model.get_submodule(path)
    assert module._forward_hooks or module._forward_pre_hooks


def test_heads_of_cross_attention_are_edited_apart(architecture):
    name = "decoder_head_cross_attention_value_output"
    model = wrap(make(architecture), layers=[1], component=name, heads=[2])
    (one,) = model.reft_config.representations
    assert one.intervention.embed_dim == WIDTH // 4
    assert not torch.allclose(logits(model, batch()), logits(make(architecture), batch()))


def test_the_head_runs_on_the_tokens_of_the_decoder(architecture):
    model = wrap(make(architecture), component="lm_head.input", positions="l1")
    found, base = logits(model, batch()), logits(make(architecture), batch())
    assert not torch.allclose(found[:, 0], base[:, 0])
    assert torch.equal(found[:, 1:], base[:, 1:])
