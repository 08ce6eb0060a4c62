"""Pictures and sound: tokens are counted in the hidden state, and only those are edited."""

import pytest
import torch
import transformers as hf

import pyreft
from conftest import randomize
from pyreft.base_model import trace
from pyreft.base_model.layout import flat_rows
from pyreft.base_model.outputs import hidden_of

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2}
VIT = {**SIZES, "image_size": 8, "patch_size": 2}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "image_size": 16}
SOUND = {**SIZES, "conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (8, 4)}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "vocab_size": 12}
SOUND |= {"feat_extract_norm": "layer", "num_feat_extract_layers": 2}
WHISPER = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 60}
WHISPER |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24}
WHISPER |= {"decoder_ffn_dim": 24, "max_source_positions": 10, "num_mel_bins": 8}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MELS = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0))


def make(cls, config, seed=0):
    torch.manual_seed(seed)
    model = cls(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MAKERS = {
    "vit": lambda: make(hf.ViTForImageClassification, hf.ViTConfig(**VIT)),
    "swin": lambda: make(hf.SwinForImageClassification, hf.SwinConfig(patch_size=2, **SWIN)),
    "convnext": lambda: make(
        hf.ConvNextForImageClassification,
        hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1], patch_size=2),
    ),
    "wav2vec2": lambda: make(hf.Wav2Vec2ForCTC, hf.Wav2Vec2Config(**SOUND)),
    "whisper": lambda: make(hf.WhisperForConditionalGeneration, hf.WhisperConfig(**WHISPER)),
}
INPUTS = {
    "vit": {"pixel_values": PICTURES},
    "swin": {"pixel_values": torch.randn(2, 3, 16, 16)},
    "convnext": {"pixel_values": torch.randn(2, 3, 16, 16)},
    "wav2vec2": {"input_values": torch.randn(2, 300)},
    "whisper": {"input_features": MELS, "decoder_input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])},
}


def wrap(model, positions, **fields):
    config = pyreft.ReftConfig(positions=positions, rank=2, **fields)
    return randomize(pyreft.get_reft_model(model, config).eval(), 0.5)


def changed(model, inputs, call=None):
    """The (B, T) tokens of its component that an edit changes, whatever the layout."""
    call = call or model
    (target,) = model.adapter_set["default"].targets
    outputs = []
    hook = target.component.module.register_forward_hook(
        lambda module, args, output: outputs.append(hidden_of(output))
    )
    with torch.no_grad():
        call(**inputs)
        edited = outputs.pop().clone()
        with model.disable_adapter():
            call(**inputs)
    hook.remove()
    views = target.component.layout.views
    (before,), (after,) = views(outputs.pop()), views(edited)
    return (flat_rows(before) != flat_rows(after)).any(-1)


@pytest.mark.parametrize("architecture", MAKERS)
@pytest.mark.parametrize("layer", [0, 1])
def test_only_the_first_and_last_tokens_are_edited(architecture, layer):
    found = changed(wrap(MAKERS[architecture](), "f2+l1", layers=[layer]), INPUTS[architecture])
    count = found.shape[1]
    assert found.tolist() == [[index in (0, 1, count - 1) for index in range(count)]] * 2


@pytest.mark.parametrize(("spec", "expected"), [("all", range(17)), ([0, -2], [0, 15])])
def test_specs_mean_the_same_on_patches(spec, expected):
    found = changed(wrap(MAKERS["vit"](), spec, layers=[0]), INPUTS["vit"])
    assert found[1].nonzero().flatten().tolist() == list(expected)


def test_a_function_chooses_patches_and_explicit_positions_win():
    def even(tokens):
        return tokens.prompt & (tokens.index % 2 == 0)

    model = wrap(MAKERS["vit"](), even, layers=[0])
    assert changed(model, INPUTS["vit"])[0].nonzero().flatten().tolist() == list(range(0, 17, 2))
    explicit = INPUTS["vit"] | {"intervention_locations": torch.tensor([[[3, -100]], [[-1, 0]]])}
    assert changed(model, explicit).nonzero().tolist() == [[0, 3], [1, 0], [1, 16]]


def test_frames_of_padding_are_not_counted():
    model = wrap(MAKERS["wav2vec2"](), "f1+l1", layers=[0])
    mask = torch.ones(2, 300, dtype=torch.long)
    mask[1, 160:] = 0
    found = changed(model, INPUTS["wav2vec2"] | {"attention_mask": mask})
    frames = model.model._get_feat_extract_output_lengths(torch.tensor([300, 160])).tolist()
    assert found.nonzero().tolist() == [[0, 0], [0, frames[0] - 1], [1, 0], [1, frames[1] - 1]]


@pytest.mark.parametrize("architecture", MAKERS)
def test_interventions_learn_and_reload(architecture, tmp_path):
    model, inputs = wrap(MAKERS[architecture](), "f1+l1"), INPUTS[architecture]
    outputs = model(**inputs)
    outputs["logits"].square().sum().backward()
    grads = [p.grad for p in model.interventions.parameters()]
    assert all(grad.isfinite().all() for grad in grads)
    assert all(any(p.grad.any() for p in m.parameters()) for m in model.interventions.values())
    model.save_pretrained(tmp_path)
    loaded = pyreft.ReftModel.from_pretrained(MAKERS[architecture](), tmp_path)
    assert torch.equal(loaded(**inputs)["logits"], outputs["logits"])


def test_gradient_checkpointing_gives_equal_gradients():
    found = []
    for checkpointing in (False, True):
        model = wrap(MAKERS["vit"](), "f2+l1").train()
        if checkpointing:
            # transformers 5.23 gave it another name.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)()
        model(**INPUTS["vit"]).logits.square().sum().backward()
        found.append([p.grad for p in model.interventions.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-5, atol=1e-6)


def test_generation_edits_the_encoder_of_sound():
    model = wrap(MAKERS["whisper"](), "f2+l1", layers=[0])
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = [[index in (0, 1, 9) for index in range(10)]] * 2
    assert changed(model, {"input_features": MELS, **settings}, model.generate).tolist() == expected
    assert changed(model, {"inputs": MELS, **settings}, model.generate).tolist() == expected


def test_a_tower_inside_a_model_of_text_is_edited_by_path():
    clip = hf.CLIPConfig(
        vision_config={**VIT, "projection_dim": 8},
        text_config={**SIZES, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2},
        projection_dim=8,
    )
    path = "vision_model.encoder.layers[0].output"
    model = wrap(make(hf.CLIPModel, clip), "f1", component=path)
    ids = torch.tensor([[3, 4, 5, 6, 7, 2], [8, 9, 3, 4, 5, 2]])
    found = changed(model, {"pixel_values": PICTURES, "input_ids": ids})
    assert found.tolist() == [[True] + [False] * 16] * 2


def test_the_second_model_of_a_class_and_config_needs_no_forward_pass(monkeypatch):
    wrap(MAKERS["vit"](), "f1").unwrap()
    monkeypatch.setattr(trace, "_run", lambda model: pytest.fail("a second forward pass"))
    wrap(MAKERS["vit"](), "f1")


@pytest.mark.parametrize("architecture", MAKERS)
def test_the_first_model_of_a_class_and_config_needs_one_forward_pass(architecture, monkeypatch):
    monkeypatch.setattr(trace, "_traces", {})
    base, passes = MAKERS[architecture](), []
    base.register_forward_hook(lambda module, args, output: passes.append(module))
    wrap(base, "f1")
    assert len(passes) == 1


def test_positions_that_patches_do_not_have():
    model = wrap(MAKERS["vit"](), [17], layers=[0])
    with pytest.raises(ValueError, match=r"position 17 is outside the prompt.* 17 tokens"):
        model(**INPUTS["vit"])
    with pytest.raises(ValueError, match="reads pictures or sound and no completion"):
        wrap(MAKERS["vit"](), "completion")


def test_a_module_that_does_not_run_is_refused():
    base = MAKERS["vit"]()
    base.vit.unused = torch.nn.Linear(16, 16)
    trace._traces.clear()
    with pytest.raises(ValueError, match=r"at 'vit.unused', which does not run"):
        wrap(base, "f1", component="vit.unused.output")
    trace._traces.clear()


@pytest.mark.parametrize(
    ("tower", "output"), [("vision_model", "image_embeds"), ("text_model", "text_embeds")]
)
def test_features_are_those_of_the_edited_model(tower, output):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2}
    text = sizes | {"vocab_size": 60, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    vision = sizes | {"image_size": 8, "patch_size": 4}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    base = make(hf.CLIPModel, config)
    ids = torch.tensor([[1, 5, 6, 2], [1, 7, 8, 2]])
    model = wrap(base, "f2", component=f"{tower}.encoder.layers[0].output")
    edited = model(input_ids=ids, pixel_values=PICTURES)
    features = {
        "image_embeds": model.get_image_features(PICTURES),
        "text_embeds": model.get_text_features(input_ids=ids),
    }
    for name, found in features.items():
        # Releases before 5 return the tensor itself.
        found = getattr(found, "pooler_output", found)
        torch.testing.assert_close(found / found.norm(dim=-1, keepdim=True), edited[name])
    bare = model.unwrap()(input_ids=ids, pixel_values=PICTURES)
    assert not torch.allclose(edited[output], bare[output])
