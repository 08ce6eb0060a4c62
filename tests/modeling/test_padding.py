"""Where an edit lands: exactly its positions, however a batch is padded and cut into rows."""

import copy

import pytest
import torch

from conftest import VOCAB, make_base
from pyreft import ReftConfig, get_reft_model

LAYER = 1
PATHS = {
    "llama": {
        "block_output": "model.layers.1",
        "attention_output": "model.layers.1.self_attn",
        "mlp_output": "model.layers.1.mlp",
    },
    "gpt2": {
        "block_output": "transformer.h.1",
        "attention_output": "transformer.h.1.attn",
        "mlp_output": "transformer.h.1.mlp",
    },
    "bert": {
        "block_output": "bert.encoder.layer.1",
        "attention_output": "bert.encoder.layer.1.attention",
        "mlp_output": "bert.encoder.layer.1.output",
    },
}


def wrap(base, **config):
    """A fresh adapter, at one layer by default, that edits strongly whatever its kind."""
    model = get_reft_model(base, ReftConfig(**{"layers": [LAYER], "rank": 4} | config)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.interventions.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def texts(*lengths):
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in lengths]


def collate(rows, side="right", extra=0, prompts=None):
    """Rows padded to one length, with `completion_mask` if the lengths of prompts are given."""
    width = max(len(row) for row in rows) + extra
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, row in enumerate(rows):
        start = {"right": 0, "left": width - len(row), "both": extra // 2}[side]
        ids[index, start : start + len(row)] = row
        mask[index, start : start + len(row)] = 1
        if prompts is not None:
            completion[index, start + prompts[index] : start + len(row)] = 1
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return batch if prompts is None else batch | {"completion_mask": completion}


def by_row(tensor, batch):
    return [row[mask.bool()] for row, mask in zip(tensor, batch["attention_mask"], strict=True)]


@torch.no_grad()
def last_hidden(model, batch):
    return by_row(model(**batch, output_hidden_states=True).hidden_states[-1], batch)


def first_output(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def component(model, name):
    return model.model.get_submodule(PATHS[model.config.model_type][name])


@torch.no_grad()
def edited_tokens(model, batch, name="block_output"):
    """For each row, the tokens whose hidden state is not bit-identical to the base model's."""
    seen = []
    handle = component(model, name).register_forward_hook(
        lambda module, args, output: seen.append(first_output(output).clone())
    )
    model(**batch)
    with model.disable_adapter():
        model(**{key: value for key, value in batch.items() if key in BASE_INPUTS})
    handle.remove()
    edited, bare = (by_row(hidden, batch) for hidden in seen)
    return [
        (one != other).any(-1).nonzero().flatten().tolist()
        for one, other in zip(edited, bare, strict=True)
    ]


BASE_INPUTS = ("input_ids", "attention_mask", "position_ids", "inputs_embeds")


def by_the_rule(n, p, s):
    """Wu et al. 2024, section 4: the first p and last s of n prompt tokens, fewer if n is small."""
    if n < p + s:
        p, s = min(p, n // 2), min(s, (n + 1) // 2)
    return [*range(p), *range(n - s, n)]


def assert_close(ones, others, tolerance=1e-5):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


# ---- the edit itself ---------------------------------------------------------------------------


def test_the_model_is_the_base_model_with_its_hidden_states_replaced(architecture, kind):
    """Against a hook of two lines on a bare copy of the base model."""
    base = make_base(architecture)
    model = wrap(copy.deepcopy(base), kind=kind, positions="f2+l1")
    batch = collate(texts(5, 8), side="left")
    (intervention,) = model.interventions.values()
    rows, columns = torch.tensor([[0], [1]]), torch.tensor([[3, 4, 7], [0, 1, 7]])

    def replace(module, args, output):
        hidden = first_output(output).clone()
        hidden[rows, columns] = intervention(hidden[rows, columns])
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    bare = last_hidden(base, batch)
    base.get_submodule(PATHS[architecture]["block_output"]).register_forward_hook(replace)
    assert_close(last_hidden(model, batch), last_hidden(base, batch), 1e-6)
    assert all(
        (a - b).abs().max() > 1e-2 for a, b in zip(bare, last_hidden(model, batch), strict=True)
    )


@pytest.mark.parametrize("name", PATHS["llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_untouched_positions_are_bit_identical(architecture, name, side):
    model = wrap(make_base(architecture), component=name, positions="f1+l2")
    batch = collate(texts(6, 9, 4), side)
    assert edited_tokens(model, batch, name) == [[0, n - 2, n - 1] for n in (6, 9, 4)]


def test_untouched_positions_are_bit_identical_for_every_kind(architecture, kind):
    model = wrap(make_base(architecture), kind=kind, positions="l1")
    assert edited_tokens(model, collate(texts(6, 9))) == [[5], [8]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_untouched_positions_are_bit_identical_below_float32(architecture, dtype):
    model = wrap(make_base(architecture).to(dtype), positions="l1")
    assert edited_tokens(model, collate(texts(6, 9))) == [[5], [8]]


# ---- padding -------------------------------------------------------------------------------------


def check_padding(model, lengths, prompts=None):
    rows = texts(*lengths)
    per_row = [None] * len(rows) if prompts is None else [[n] for n in prompts]
    single = [
        last_hidden(model, collate([row], prompts=n))[0]
        for row, n in zip(rows, per_row, strict=True)
    ]
    for side, extra in [("right", 0), ("left", 0), ("left", 3), ("right", 2), ("both", 2)]:
        assert_close(last_hidden(model, collate(rows, side, extra, prompts)), single)


def test_padding_and_batching_change_no_number_for_any_kind(architecture, kind):
    check_padding(wrap(make_base(architecture), kind=kind, layers="all"), (4, 9, 17))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "positions", ["l1", "f3+l2", "prompt", "completion", "all", "f1+2+-1", "l1+completion"]
)
def test_padding_and_batching_change_no_number_for_any_positions(architecture, positions, tied):
    model = wrap(make_base(architecture), layers="all", positions=positions, tied=tied)
    check_padding(model, (6, 10, 17), prompts=(4, 9, 12))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_embeddings_give_the_numbers_of_their_tokens(architecture, side):
    model = wrap(make_base(architecture), layers="all")
    batch = collate(texts(4, 9), side)
    embedded = dict(batch)
    embedded["inputs_embeds"] = model.get_input_embeddings()(embedded.pop("input_ids")).detach()
    assert_close(last_hidden(model, embedded), last_hidden(model, batch), 1e-6)


# ---- where the prompt ends -----------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_first_label_ends_the_prompt(causal, side):
    model = wrap(make_base(causal), positions="l1+completion")
    batch = collate(texts(6, 9), side, prompts=[4, 5])
    completion = batch.pop("completion_mask").bool()
    batch["labels"] = batch["input_ids"].masked_fill(~completion, -100)
    assert edited_tokens(model, batch) == [[3, 4, 5], [4, 5, 6, 7, 8]]


def test_a_gap_in_the_labels_ends_no_completion(causal):
    model = wrap(make_base(causal), positions="prompt")
    batch = collate(texts(8))
    batch["labels"] = torch.tensor([[-100, -100, 5, -100, -100, 5, 5, -100]])
    assert edited_tokens(model, batch) == [[0, 1]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_completion_mask_ends_the_prompt(architecture, side):
    model = wrap(make_base(architecture), positions="f1+l2")
    batch = collate(texts(6, 9), side, prompts=[4, 5])
    assert edited_tokens(model, batch) == [[0, 2, 3], [0, 3, 4]]
    batch["completion_mask"] = batch["completion_mask"].bool()
    assert edited_tokens(model, batch) == [[0, 2, 3], [0, 3, 4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_without_labels_the_attention_mask_is_the_prompt(architecture, side):
    model = wrap(make_base(architecture), positions="prompt")
    assert edited_tokens(model, collate(texts(3, 5), side)) == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_without_an_attention_mask_every_token_is_the_prompt(architecture):
    model = wrap(make_base(architecture), positions="l1")
    (row,) = texts(5)
    expected = last_hidden(model, collate([row]))[0]
    with torch.no_grad():
        found = model(row[None], output_hidden_states=True).hidden_states[-1][0]
    assert_close([found], [expected], 1e-6)


@pytest.mark.parametrize(
    "problem, labels",
    [
        ("single_label_classification", torch.tensor([0, 2])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    ],
)
def test_labels_of_a_whole_text_end_no_prompt(problem, labels):
    """As many tokens as classes, so that a multi-label row has the shape of its text."""
    base = make_base("bert")
    base.config.problem_type = problem
    model = wrap(base, positions="l1")
    assert edited_tokens(model, collate(texts(3, 3)) | {"labels": labels}) == [[2], [2]]


# ---- short prompts -------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_short_prompts_follow_the_paper_and_edit_no_token_twice(architecture, tied, side):
    model = wrap(make_base(architecture), positions="f3+l2", tied=tied)
    lengths = list(range(1, 9))
    batch = collate(texts(*lengths), side)
    assert edited_tokens(model, batch) == [by_the_rule(n, 3, 2) for n in lengths]


def test_a_short_prompt_has_the_same_tokens_in_training_and_alone(causal):
    model = wrap(make_base(causal), positions="f7+l7")
    batch = collate(texts(8, 30), prompts=[5, 20])
    assert edited_tokens(model, batch) == [by_the_rule(5, 7, 7), by_the_rule(20, 7, 7)]
    assert edited_tokens(model, collate(texts(5))) == [by_the_rule(5, 7, 7)]


def test_weights_that_are_not_shared_edit_the_prefix_and_the_suffix(architecture):
    model = wrap(make_base(architecture), positions="f3+l2", tied=False)
    first, last = model.interventions.values()
    batch = collate(texts(4, 8), "left")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(2)
    explicit = torch.tensor([[[0, 1, -100], [2, 3, -100]], [[0, 1, 2], [6, 7, -100]]])
    expected = last_hidden(model, batch | {"intervention_locations": explicit})
    assert_close(last_hidden(model, batch), expected, 1e-6)
    swapped = last_hidden(model, batch | {"intervention_locations": explicit.flip(1)})
    assert all((a - b).abs().max() > 1e-2 for a, b in zip(swapped, expected, strict=True))
    assert first.learned_source.weight.data_ptr() != last.learned_source.weight.data_ptr()


# ---- no positions --------------------------------------------------------------------------------

NOWHERE = {
    "no completion": ({"positions": "completion"}, None),
    "no position in the batch": ({"positions": "f7+l7"}, torch.full((2, 3, 2), -100)),
    "a batch with room for none": ({"positions": "f7+l7"}, torch.zeros(2, 3, 0).long()),
    "positions left to the batch": ({"representations": [{"layer": 1, "rank": 4}]}, None),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_without_positions_it_is_exactly_the_base_model(architecture, kind, case):
    config, explicit = copy.deepcopy(NOWHERE[case])
    if "representations" in config:
        config = {"representations": [{"layer": 1, "low_rank_dimension": 4, "intervention": kind}]}
    else:
        config |= {"kind": kind, "layers": "all", "rank": 4}
    model = get_reft_model(make_base(architecture), ReftConfig(**config)).eval()
    batch = collate(texts(4, 7), "left")
    with torch.no_grad():
        expected = make_base(architecture)(**batch, output_hidden_states=True)
        found = model(**batch, output_hidden_states=True, intervention_locations=explicit)
    assert torch.equal(found.logits, expected.logits)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(one, other)


# ---- explicit positions --------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_explicit_positions_win_over_those_of_the_adapter(architecture, side):
    model = wrap(make_base(architecture), positions="f1+l1")
    explicit = torch.tensor([[[1, -1]], [[4, -100]], [[-2, 0]]])
    batch = collate(texts(5, 8, 6), side, prompts=[3, 7, 5])
    batch["intervention_locations"] = explicit
    assert edited_tokens(model, batch) == [[1, 2], [4], [0, 3]]


def packed(first, second):
    ids = torch.cat([first, second])[None]
    positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
    return {"input_ids": ids, "position_ids": positions, "use_cache": False}


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_packed_row_with_positions_gives_the_numbers_of_its_texts(with_labels):
    model = wrap(make_base("llama"), positions="l1")
    first, second = texts(5, 7)
    batch = packed(first, second) | {"intervention_locations": torch.tensor([[[2, 5 + 3]]])}
    if with_labels:
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][0, [0, 1, 2, 5, 6, 7, 8]] = -100
    with torch.no_grad():
        found = model(**batch).logits[0]
        alone = [
            model(row[None], intervention_locations=torch.tensor([[[last]]])).logits[0]
            for row, last in ((first, 2), (second, 3))
        ]
    assert_close([found], [torch.cat(alone)])


def test_a_mask_of_four_dimensions_needs_explicit_positions():
    model = wrap(make_base("llama"), positions="l1")
    (row,) = texts(5)
    mask = torch.ones(1, 1, 5, 5).tril().bool()
    with pytest.raises(ValueError, match="2-D mask, or explicit intervention_locations"):
        model(row[None], mask)
    with torch.no_grad():
        found = model(row[None], mask, intervention_locations=torch.tensor([[[-1]]])).logits
        assert_close([found], [model(row[None]).logits])
