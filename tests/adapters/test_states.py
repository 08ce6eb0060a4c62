"""Models that keep other states than keys and values generate with them as without."""

import pytest
import torch
import transformers as hf
from reft import wrap

from conftest import enlarge

SETTINGS = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
IDS = torch.arange(3, 15).view(2, 6)


def make_xlnet():
    config = hf.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=24, vocab_size=64)
    return hf.XLNetLMHeadModel(config)


def make_mamba():
    config = hf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    return hf.MambaForCausalLM(config)


@pytest.mark.parametrize("positions", ["f1+l1", "all"])
@pytest.mark.parametrize("make", [make_xlnet, make_mamba])
def test_generation_with_and_without_the_state_is_the_same(make, positions):
    torch.manual_seed(0)
    model = wrap(enlarge(make().eval()), positions=positions)
    found = [
        model.generate(input_ids=IDS, max_new_tokens=4, use_cache=use_cache, **SETTINGS).logits
        for use_cache in (True, False)
    ]
    torch.testing.assert_close(*map(torch.stack, found), rtol=1e-3, atol=1e-3)


def test_hidden_states_of_earlier_tokens_are_counted():
    torch.manual_seed(0)
    model = wrap(enlarge(make_xlnet().eval()), positions="l1")
    with torch.no_grad():
        before = model(input_ids=IDS[:, :3], use_mems=True).mems
        edited = model(input_ids=IDS[:, 3:], mems=before).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS[:, 3:], mems=before).logits, edited)
