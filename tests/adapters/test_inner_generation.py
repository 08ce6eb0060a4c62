"""Models that generate by a model inside them are edited, or refuse what they cannot."""

import pytest
import torch
import transformers as hf
from reft import wrap

import pyreft
from conftest import enlarge

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
SIZES |= {"num_hidden_layers": 2}
PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SETTINGS = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
SETTINGS |= {"return_dict_in_generate": True}


def make_blip2():
    """Two queries are the tokens of a picture; its language model is given their embeddings."""
    text = {"vocab_size": 64, "hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 2}
    text |= {"num_hidden_layers": 2, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
    config = hf.Blip2Config(
        vision_config={**SIZES, "image_size": 8, "patch_size": 4},
        qformer_config={**SIZES, "encoder_hidden_size": 16, "vocab_size": 64},
        text_config={"model_type": "opt", **text, "pad_token_id": 1, "eos_token_id": 2},
        num_query_tokens=2,
        image_token_index=50,
    )
    torch.manual_seed(0)
    return enlarge(hf.Blip2ForConditionalGeneration(config).eval())


def make_blip():
    """Its decoder is given the prompt without its last token."""
    config = hf.BlipConfig(
        vision_config={**SIZES, "image_size": 8, "patch_size": 4},
        text_config={**SIZES, "encoder_hidden_size": 16, "vocab_size": 64, "projection_dim": 16},
        projection_dim=16,
    )
    config.text_config.bos_token_id, config.text_config.sep_token_id = 3, 4
    return hf.BlipForConditionalGeneration(config).eval()


IDS = torch.tensor([[50, 50, 7, 8, 9, 10], [50, 50, 11, 12, 13, 14]])
INPUTS = {"pixel_values": PICTURES, "input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def test_the_model_inside_is_edited_as_in_a_forward_pass():
    model = wrap(make_blip2())
    made = model.generate(**INPUTS, **SETTINGS)
    with torch.no_grad():
        expected = model(**INPUTS).logits[:, -1]
        bare = model.unwrap()(**INPUTS).logits[:, -1]
    torch.testing.assert_close(made.logits[0], expected)
    assert (expected - bare).abs().max() > 1e-2


def test_with_and_without_a_cache_is_the_same():
    model = wrap(make_blip2())
    found = [
        torch.stack(model.generate(**INPUTS, **SETTINGS, num_beams=2, use_cache=cached).logits)
        for cached in (True, False)
    ]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("component", ["vision_model.encoder.layers[0].output", None])
def test_what_runs_before_the_model_inside_is_refused(component):
    # A part of the prompt that is edited before the first step would be left unedited.
    component = component or "language_projection.output"
    config = pyreft.ReftConfig(component=component, positions="l1", rank=2)
    model = pyreft.get_reft_model(make_blip2(), config)
    with pytest.raises(ValueError, match="wrap that module"):
        model.generate(**INPUTS, **SETTINGS)


def test_another_prompt_than_the_model_was_given_is_refused():
    model = wrap(make_blip())
    with pytest.raises(ValueError, match="another prompt"):
        model.generate(pixel_values=PICTURES, input_ids=IDS[:, 2:], max_new_tokens=3)
