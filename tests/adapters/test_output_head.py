"""Edits in the output head, which runs on the columns of `logits_to_keep` alone."""

import pytest
import torch
import transformers as hf
from recomputation import NEW, POSITIONS, bare, left_padded, prompt
from test_generation import SETTINGS, settings

from conftest import VOCAB, WIDTH, make_base, randomize
from pyreft import ReftConfig, get_reft_model

SIDES = ["lm_head.input", "lm_head.output"]
ROWS = torch.randint(3, VOCAB, (2, 8), generator=torch.Generator().manual_seed(0))


def wrap(base, component="lm_head.input", **config):
    torch.manual_seed(0)
    width = WIDTH if component.endswith("input") else VOCAB
    config["arguments"] = {"low_rank_dimension": 16, "embed_dim": width}
    model = get_reft_model(base, ReftConfig(component=component, **config)).eval()
    model.generation_config.eos_token_id = VOCAB
    return randomize(model, 3.0)


class Recomputation:
    """A bare copy whose head is edited by hand, run on whole texts without a cache."""

    def __init__(self, architecture, model, component, columns):
        self.base, self.columns, self.edited = bare(architecture), columns, None
        (self.intervention,) = model.interventions.values()
        head = self.base.lm_head
        if component.endswith("input"):
            head.register_forward_pre_hook(lambda module, args: (self.edit(args[0]),))
        else:
            head.register_forward_hook(lambda module, args, output: self.edit(output))

    def edit(self, hidden):
        hidden = hidden.clone()
        hidden[:, self.edited] = self.intervention(hidden[:, self.edited])
        return hidden

    @torch.no_grad()
    def greedy(self, row):
        ids = row[None]
        for _ in range(NEW):
            self.edited = self.columns(len(row), ids.shape[1])
            last = self.base(ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
        return ids[0, len(row) :].tolist()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("positions", POSITIONS)
def test_generation_with_an_edited_head_is_the_recomputation(causal, positions, setting):
    model = wrap(bare(causal), positions=positions)
    recomputation = Recomputation(causal, model, "lm_head.input", POSITIONS[positions])
    row = torch.cat([prompt(4), prompt(4)])  # it repeats, so that prompt lookup finds something
    given = {"input_ids": row[None], "max_new_tokens": NEW, "do_sample": False}
    found = model.generate(**given, **settings(setting))
    assert found[0, -NEW:].tolist() == recomputation.greedy(row)
    with model.disable_adapter():
        assert not torch.equal(found, model.generate(**given))


@pytest.mark.parametrize("component", SIDES)
def test_a_padded_batch_with_an_edited_head_is_its_rows_one_by_one(causal, component):
    model = wrap(bare(causal), component, positions="l1+completion")
    columns = lambda n, t: range(n - 1, t)  # noqa: E731
    recomputation = Recomputation(causal, model, component, columns)
    rows = [prompt(length, seed=length) for length in (3, 9, 6)]
    found = model.generate(**left_padded(rows), max_new_tokens=NEW, do_sample=False)
    assert found[:, -NEW:].tolist() == [recomputation.greedy(row) for row in rows]


@pytest.mark.parametrize("kept", [0, 1, 3, 8, 20, torch.tensor([6, 1]), [6, 1], slice(2, 7)])
@pytest.mark.parametrize("positions", ["l2", "f2", "all", [0, 6]])
@pytest.mark.parametrize("component", SIDES)
@torch.no_grad()
def test_a_call_computes_the_logits_that_it_keeps_as_with_all(component, positions, kept):
    model = wrap(make_base("llama"), component, positions=positions)
    whole, bare_logits = model(ROWS).logits, model.model(ROWS).logits
    assert not torch.equal(whole, bare_logits)
    columns = slice(-kept, None) if isinstance(kept, int) else kept
    found = model(ROWS, logits_to_keep=kept).logits
    torch.testing.assert_close(found, whole[:, columns], rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_of_a_call_that_keeps_logits_have_adapters_of_their_own():
    model = wrap(make_base("llama"), positions="l1")
    named = {"adapter_names": ["default", "__base__"]}
    found = model(ROWS, logits_to_keep=2, **named).logits
    torch.testing.assert_close(found, model(ROWS, **named).logits[:, -2:], rtol=0, atol=1e-5)
    assert not torch.equal(found, model.model(ROWS, logits_to_keep=2).logits)


@torch.no_grad()
def test_layers_are_edited_on_all_columns_whatever_logits_are_kept():
    model = get_reft_model(make_base("llama"), ReftConfig(positions="f2", rank=2)).eval()
    randomize(model, 0.5)
    found, whole = model(ROWS, logits_to_keep=1).logits, model(ROWS).logits
    torch.testing.assert_close(found, whole[:, -1:], rtol=0, atol=1e-5)
    assert not torch.equal(found, model.model(ROWS, logits_to_keep=1).logits)


@torch.no_grad()
def test_generation_with_an_edited_head_of_a_decoder_beside_an_encoder():
    sizes = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "head_dim": 8}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    config = hf.T5GemmaConfig(encoder=sizes, decoder=sizes, vocab_size=VOCAB)
    base = hf.T5GemmaForConditionalGeneration(config).eval()
    model = wrap(base, "lm_head.out_proj.output", positions="all")
    start = torch.tensor([[2, 5, 7]])
    given = {"input_ids": ROWS[:1], "decoder_input_ids": start}
    found = model.generate(**given, max_new_tokens=3, do_sample=False, decoder_start_token_id=2)
    expected = start
    for _ in range(3):
        last = model(input_ids=ROWS[:1], decoder_input_ids=expected, use_cache=False).logits[:, -1]
        expected = torch.cat([expected, last.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, expected)
