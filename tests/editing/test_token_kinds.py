"""Tokens by what they are: image tokens among text, class and register tokens, boxes of patches."""

import pytest
import torch
import transformers as hf
from architectures import make as make_tiny
from test_towers import PICTURES, VIT, changed, make, wrap

import pyreft
from conftest import VOCAB

IMAGE = VOCAB - 1
DINO = {**VIT, "num_register_tokens": 3}


def dino():
    config = hf.Dinov2WithRegistersConfig(**DINO)
    return make(hf.Dinov2WithRegistersForImageClassification, config)


def vit():
    return make(hf.ViTForImageClassification, hf.ViTConfig(**VIT))


def convnext():
    config = hf.ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1], patch_size=2)
    return make(hf.ConvNextForImageClassification, config)


def edited(model, spec, pixels, **more):
    rows = changed(wrap(model, spec, layers=[0]), {"pixel_values": pixels, **more})
    assert torch.equal(rows[0], rows[1])
    return rows[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("class", [0]),
        ("register", [1, 2, 3]),
        ("patch:0+patch:-1", [4, 19]),
        ("rows1", range(8, 12)),
    ],
)
def test_tokens_that_a_model_adds_are_no_patches(spec, expected):
    assert edited(dino(), spec, PICTURES) == list(expected)


def test_class_tokens_are_found_however_many_there_are():
    distilled = make(hf.DeiTForImageClassification, hf.DeiTConfig(**VIT))
    assert edited(distilled, "class+rows0", PICTURES) == [0, 1, 2, 3, 4, 5]
    # Five tokens, as many as the tiny text of a decoder has.
    small = hf.ViTForImageClassification(hf.ViTConfig(**{**VIT, "patch_size": 4}))
    assert edited(small.eval(), "class", PICTURES) == [0]


def test_the_grid_is_that_of_the_picture_of_the_call():
    wide = torch.randn(2, 3, 4, 12)
    # 2 lines of 6 patches, after the class token.
    box = edited(vit(), "rows1xcolumns4-5", wide, interpolate_pos_encoding=True)
    assert box == [1 + 6 + 4, 1 + 6 + 5]
    assert edited(convnext(), "columns0", torch.randn(2, 3, 8, 24)) == [0, 12, 24, 36]


def test_positions_that_a_picture_does_not_have():
    with pytest.raises(ValueError, match=r"no register tokens for .*, but class, patch tokens"):
        wrap(vit(), "register")
    with pytest.raises(ValueError, match=r"has no image tokens .*, but text tokens"):
        wrap(make_tiny("llama"), "image")
    with pytest.raises(ValueError, match="has no patch tokens"):
        wrap(make_tiny("llava"), "rows0")
    with pytest.raises(ValueError, match="outside the grid of patches, which has 4 rows"):
        edited(vit(), "rows4", PICTURES)


@pytest.fixture
def question():
    """Two rows, the second padded at its left: words, four image tokens, words."""
    ids = torch.tensor([[3, *[IMAGE] * 4, 4, 5, 6], [0, 7, *[IMAGE] * 4, 8, 9]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": PICTURES}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("image", [range(1, 5), range(2, 6)]),
        ("text", [[0, 5, 6, 7], [1, 6, 7]]),
        ("image:l1+text:f1", [[0, 4], [1, 5]]),
    ],
)
def test_image_tokens_among_text(spec, expected, question):
    model = make_tiny("llava")
    size = model.config.vision_config.image_size
    question["pixel_values"] = torch.randn(2, 3, size, size)
    model = wrap(model, spec, layers=[0])
    found = changed(model, question)
    assert [row.nonzero().flatten().tolist() for row in found] == [list(row) for row in expected]
    prefill = question | {"max_new_tokens": 1, "do_sample": False}
    assert torch.equal(changed(model, prefill, model.generate), found)


def test_image_tokens_are_trained_on_and_reloaded(question, tmp_path):
    size = make_tiny("llava").config.vision_config.image_size
    question["pixel_values"] = torch.randn(2, 3, size, size)
    labels = question["input_ids"].clone()
    labels[:, :6] = -100
    # In the last layer no other token reads those of the image.
    config = pyreft.ReftConfig(positions="image:f2+text:l1", tied=False, layers=[0, 1], rank=2)
    model = pyreft.get_reft_model(make_tiny("llava"), config)
    assert len(model.interventions) == 4
    loss = model(**question, labels=labels).loss
    loss.backward()
    assert all(any(p.grad.any() for p in m.parameters()) for m in model.interventions.values())
    torch.optim.SGD(model.interventions.parameters(), 0.1).step()
    model.save_pretrained(tmp_path)
    loaded = pyreft.ReftModel.from_pretrained(make_tiny("llava"), tmp_path)
    ours, theirs = (one.eval()(**question).logits for one in (model, loaded))
    assert torch.equal(ours, theirs)
