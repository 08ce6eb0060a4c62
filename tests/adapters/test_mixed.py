"""A different adapter for every row of a batch equals each row run by its own adapter."""

import pytest
import torch
from reft import LABELS, logits, wrap
from test_named import add, alone

from conftest import KINDS, VOCAB, make_base
from pyreft import ReftConfig, get_reft_model
from pyreft.interventions import StackedInterventions
from pyreft.placement import batch

NAMES = ["default", "other", "__base__", "third", "other"]
LENGTHS = [10, 7, 9, 5, 10]


def several(base, **changes):
    """Three adapters that share neither layers, positions, ranks nor kinds."""
    model = add(wrap(base, **changes).eval())
    return add(model, "third", seed=7, layers=[1, 2], positions="f1+-2", rank=7, kind="noreft")


def padded(left=False):
    ids = torch.randint(3, VOCAB, (5, 10), generator=torch.Generator().manual_seed(3))
    columns, lengths = torch.arange(10), torch.tensor(LENGTHS)[:, None]
    mask = columns >= 10 - lengths if left else columns < lengths
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def one_by_one(model, run):
    """What each row gives by itself, with its adapter made active, or none."""
    found = []
    for row, name in enumerate(NAMES):
        if name == "__base__":
            with model.disable_adapter():
                found.append(run(row))
        else:
            model.set_adapter(name)
            found.append(run(row))
    model.set_adapter("default")
    return found


def test_logits_equal_those_of_each_row_by_itself(architecture):
    model, inputs = several(make_base(architecture)), padded()
    found = logits(model, {**inputs, "adapter_names": NAMES})

    def run(row):
        return logits(model, {n: v[row : row + 1, : LENGTHS[row]] for n, v in inputs.items()})[0]

    for row, expected in enumerate(one_by_one(model, run)):
        mine = found[row] if architecture == "bert" else found[row, : LENGTHS[row]]
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_generation_equals_that_of_each_row_by_itself(causal, options):
    model, inputs = several(make_base(causal, tie_word_embeddings=False)), padded(left=True)
    model.generation_config.eos_token_id = VOCAB
    settings = {"max_new_tokens": 5, "do_sample": False, **options}
    found = model.generate(**inputs, adapter_names=NAMES, **settings)

    def run(row):
        mine = {n: v[row : row + 1, 10 - LENGTHS[row] :] for n, v in inputs.items()}
        return model.generate(**mine, **settings)[0, LENGTHS[row] :]

    expected = torch.stack(one_by_one(model, run))
    assert torch.equal(found[:, 10:], expected)
    assert len(expected.unique(dim=0)) > 3


@pytest.mark.parametrize("positions", ["all", "completion"])
def test_generated_tokens_are_edited_by_the_adapter_of_their_row(positions):
    model = several(make_base("llama", tie_word_embeddings=False), positions=positions)
    model.generation_config.eos_token_id = VOCAB
    ids = padded()["input_ids"][:1].expand(5, -1)
    settings = {"max_new_tokens": 5, "do_sample": False}
    found = model.generate(ids, adapter_names=NAMES, **settings)
    expected = one_by_one(model, lambda row: model.generate(ids[row : row + 1], **settings)[0])
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize("act_fn", [None, "sigmoid"])
def test_every_kind_is_stacked_with_every_other_to_its_own_numbers(act_fn):
    """In float64, where one pass over all kinds and ranks must give what each gives by itself."""
    base = make_base("llama").double()
    names = []
    model = None
    for rank, kind in enumerate([*KINDS, *KINDS], start=1):
        constant = kind in ("consreft", "lobireft")
        config = {"layers": [1], "positions": "f2+l1", "rank": rank, "kind": kind}
        config |= {"act_fn": None if constant else act_fn, "dtype": "float64"}
        config |= {"add_bias": kind == "noreft" and rank > len(KINDS)}
        names.append(f"{kind}-{rank}")
        if model is None:
            model = get_reft_model(base, ReftConfig(**config), adapter_name=names[0]).eval()
        else:
            model.add_adapter(names[-1], ReftConfig(**config))
    torch.manual_seed(0)
    for parameter in model.adapters.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    ids = torch.arange(3, 11)[None].expand(len(names), -1)
    found = logits(model, {"input_ids": ids, "adapter_names": names})
    for row, name in enumerate(names):
        model.set_adapter(name)
        torch.testing.assert_close(found[row], logits(model, {"input_ids": ids[:1]})[0])
    assert len(found[:, -1].round(decimals=3).unique(dim=0)) == len(names)


def test_one_layer_with_many_adapters_is_edited_by_one_gather_and_one_scatter(monkeypatch):
    model = several(make_base("llama"), layers=[2], positions="l2")
    seen = []
    for name in ("index_select", "index_copy_"):
        true = getattr(torch.Tensor, name)

        def counted(tensor, *args, name=name, true=true):
            seen.append((name, tensor.shape[-1]))
            return true(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    ids = padded()["input_ids"]
    logits(model, {"input_ids": ids[[0, 1, 3, 4]], "adapter_names": ["default", "other"] * 2})
    # Layer 0 has "other" alone; layer 2 has both.
    assert [name for name, _ in seen] == ["index_select", "index_copy_"] * 2


def test_gradients_reach_the_adapter_of_each_row():
    model = several(make_base("llama"))
    model.set_adapter(["default", "other", "third"])
    ids = LABELS.clamp(min=3).expand(3, -1)
    names = ["default", "other", "third"]
    model(ids, labels=LABELS.expand(3, -1), adapter_names=names).loss.backward()
    found = {n: p.grad.clone() / (1 / 3) for n, p in model.adapters.named_parameters()}
    for name in names:
        model.set_adapter(name)
        model.zero_grad()
        model(ids[:1], labels=LABELS).loss.backward()
        for key, parameter in model.adapters[name].named_parameters():
            expected = parameter.grad
            scale = expected.abs().max().item()
            torch.testing.assert_close(
                found[f"{name}.{key}"], expected, rtol=1e-4, atol=1e-5 * scale + 1e-7
            )


def test_prefix_and_suffix_interventions_of_a_layer_run_in_one_pass(monkeypatch):
    model = wrap(make_base("llama"), tied=False, layers=[1], positions="f2+l1")
    passes = []
    true = StackedInterventions.__call__

    def counted(stack, hidden, index):
        passes.append(tuple(hidden.shape[:2]))
        return true(stack, hidden, index)

    monkeypatch.setattr(StackedInterventions, "__call__", counted)
    logits(model, {"input_ids": LABELS.clamp(min=3)})
    # Two groups, of two tokens and of one.
    assert passes == [(2, 2)]


def test_a_batch_of_bare_rows_is_that_of_the_bare_model(caplog):
    model, inputs = several(make_base("llama")), padded(left=True)
    batch.logger.warning_once.cache_clear()
    found = logits(model, {**inputs, "adapter_names": ["__base__"] * 5})
    model.generate(**inputs, adapter_names=["__base__"] * 5, max_new_tokens=1)
    assert not caplog.text
    assert torch.equal(found, logits(model.unwrap(), inputs))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("default", "a list of one name for each row"),
        (["default"], r"has 1 names, the batch has 5 rows"),
        (
            ["default", "other", "third", "none", "other"],
            r"adapter_names\[3\] is 'none'; there are",
        ),
        (None, "a list of one name"),
    ],
)
def test_names_that_do_not_fit_the_batch_are_refused(names, message):
    model = several(make_base("llama"))
    if names is None:
        names = 5
    with pytest.raises((ValueError, TypeError), match=message):
        model(**padded(), adapter_names=names)
    with pytest.raises((ValueError, TypeError), match=message):
        model.generate(**padded(), adapter_names=names, max_new_tokens=1)


def test_rows_cannot_share_a_head_that_one_adapter_trained():
    base = make_base("bert")
    model = add(wrap(base, modules_to_save=["classifier"]).eval())
    ids = padded()["input_ids"]
    for names in (["default", "other"], ["other", "other"], ["default", "__base__"]):
        with pytest.raises(ValueError, match=r"trained classifier .*all rows of a batch share"):
            model(input_ids=ids[:2], adapter_names=names)
    expected = logits(model, {"input_ids": ids[:2]})
    found = logits(model, {"input_ids": ids[:2], "adapter_names": ["default"] * 2})
    torch.testing.assert_close(found, expected)


def test_an_unhooked_copy_gives_the_same():
    model = several(make_base("llama"))
    inputs = {"input_ids": padded()["input_ids"][:1]}
    for name in model.adapters:
        found = logits(model, {**inputs, "adapter_names": [name]})
        torch.testing.assert_close(found, logits(alone(name, model), inputs))
