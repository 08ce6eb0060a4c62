"""Which tokens are edited and how strongly: the numbers, and what people see of them."""

import math
import sys
import threading

import pytest
import torch
from encoder_decoder_models import make as make_encoder_decoder
from explicit_edits import edited_by_hand, formula, make_double
from transformers import AlbertConfig, AlbertForMaskedLM
from unchanged import unchanged

import pyreft
from conftest import KINDS, LAYERS, make_base, randomize
from pyreft import ReftConfig, get_reft_model

TEXT = "Dogs like bones."
N = len(TEXT)


def wrap(architecture="llama", **config):
    """An adapter that edits strongly, on a model in float64."""
    given = {"positions": "f2+l1", "rank": 2, "dtype": "float64"} | config
    model = get_reft_model(make_double(architecture), ReftConfig(**given)).eval()
    return randomize(model, 0.3)


def columns_of(spec):
    return {"f2": [0, 1], "l1": [N - 1], "f2+l1": [0, 1, N - 1], "all": list(range(N))}[spec]


def edits_of(model, name="default", weight=1.0):
    adapter = model.adapters[name]
    pairs = zip(adapter.config.representations, adapter.interventions.values(), strict=True)
    return [
        (c.layer, c.component, columns_of(str(c.positions)), formula(module, weight))
        for c, module in pairs
    ]


@torch.no_grad()
def by_hand(model, tokenizer, edits):
    """(T, L) strengths, from a bare model that is edited by explicit matrices."""
    base = make_double(model.config.model_type)
    with edited_by_hand(base, edits) as seen:
        base(**tokenizer(TEXT, return_tensors="pt"))
    strengths = []
    for place in sorted(seen):
        before, after = (hidden[0] for hidden in seen[place])
        strength = (after - before).norm(dim=-1) / before.norm(dim=-1)
        edited = sorted({c for *where, cs, _ in edits if tuple(where) == place for c in cs})
        there = torch.full((N,), math.nan, dtype=torch.float64)
        there[edited] = strength[edited]
        strengths.append(there)
    return torch.stack(strengths, dim=1)


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True)


# ---- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text", "bert"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_strengths_are_those_of_the_formula_in_float64(architecture, tied, tokenizer):
    model = wrap(architecture, tied=tied)
    found = pyreft.edit_strengths(model, tokenizer, TEXT)
    assert found.tokens == tuple(TEXT)
    assert found.sites == tuple(map(str, range(LAYERS)))
    assert found.edited.sum() == 3 * LAYERS
    assert_equal(found.strength, by_hand(model, tokenizer, edits_of(model)))


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_of_every_kind(kind, tokenizer):
    model = wrap(kind=kind, positions="all", layers=[0, 2])
    found = pyreft.edit_strengths(model, tokenizer, TEXT)
    assert_equal(found.strength, by_hand(model, tokenizer, edits_of(model)))


def test_edits_of_active_adapters_are_added_up_with_their_weights(tokenizer):
    model = wrap(layers=[0, 1])
    config = ReftConfig(layers=[1, 2], positions="l1", rank=3, kind="nodireft", dtype="float64")
    model.add_adapter("other", config)
    both = [*edits_of(model, weight=0.5), *edits_of(model, "other", -2.0)]
    model.set_adapter(["default", "other"], weights=[0.5, -2.0])
    found = pyreft.edit_strengths(model, tokenizer, TEXT)
    assert found.sites == ("0", "1", "2")
    assert_equal(found.strength, by_hand(model, tokenizer, both))
    for active in (["default", "other"], ["other"]):
        model.set_adapter(active, weights=[3.0] * len(active))
        alone = pyreft.edit_strengths(model, tokenizer, TEXT, adapter="other")
        assert alone.sites == ("1", "2")
        assert_equal(alone.strength, by_hand(model, tokenizer, edits_of(model, "other")))


def test_an_inactive_adapter_edits_alone(tokenizer):
    model = wrap(layers=[0])
    model.add_adapter("other", ReftConfig(layers=[2], positions="l1", rank=2, dtype="float64"))
    found = pyreft.edit_strengths(model, tokenizer, TEXT, adapter="other")
    assert found.sites == ("2",) and model.active_adapters == ["default"]
    assert_equal(found.strength, by_hand(model, tokenizer, edits_of(model, "other")))


def test_several_components_of_a_layer_are_columns_of_their_own(tokenizer):
    places = [(1, "mlp_output", "f2"), (1, "block_output", "l1"), (0, "block_output", "all")]
    names = ("layer", "component", "positions")
    listed = [dict(zip(names, p, strict=True), low_rank_dimension=2) for p in places]
    listed = [{**one, "dtype": "float64"} for one in listed]
    config = ReftConfig(representations=listed)
    model = randomize(get_reft_model(make_double("llama"), config).eval(), 0.3)
    found = pyreft.edit_strengths(model, tokenizer, TEXT)
    assert found.sites == ("0 block_output", "1 mlp_output", "1 block_output")
    expected = by_hand(model, tokenizer, edits_of(model))  # sorted by name within the layer
    assert_equal(found.strength, expected[:, [0, 2, 1]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_rows_change_nothing(side, tokenizer):
    model = wrap()
    batch = tokenizer(
        ["Hi", TEXT, "A text that is longer."], padding=True, padding_side=side, return_tensors="pt"
    )
    found = pyreft.edit_strengths(model, tokenizer, batch, row=1)
    assert found.tokens == tuple(TEXT)
    assert_equal(found.strength, pyreft.edit_strengths(model, tokenizer, TEXT).strength)
    assert pyreft.edit_strengths(model, tokenizer, batch, row=-3).tokens == ("H", "i")


def test_arguments_for_edits_go_with_the_prompt(tokenizer):
    model = wrap()
    batch = dict(tokenizer(TEXT, return_tensors="pt"))
    batch["completion_mask"] = (torch.arange(N) >= 10).long()[None]
    found = pyreft.edit_strengths(model, tokenizer, batch)
    assert found.edited[:, 0].nonzero().flatten().tolist() == [0, 1, 9]
    batch = dict(tokenizer(TEXT, return_tensors="pt"))
    batch["intervention_locations"] = torch.tensor([[[3]]])
    assert pyreft.edit_strengths(model, tokenizer, batch).edited[:, 0].nonzero().tolist() == [[3]]


def test_an_edit_of_nothing_has_no_strength_but_is_edited(tokenizer):
    model = get_reft_model(make_base("llama"), ReftConfig(kind="direft", positions="l1", rank=2))
    for module in model.interventions.values():
        module.edit_nothing()
    found = pyreft.edit_strengths(model.eval(), tokenizer, TEXT)
    assert found.edited[-1].all() and not found.strength[-1].any()
    assert found._repr_html_() and found.plot()


# ---- the model -----------------------------------------------------------------------------------


def test_the_model_stays_as_it_is(tokenizer):
    model = get_reft_model(make_base("bert"), ReftConfig(rank=2, dropout=0.5)).train()
    model.model.bert.eval()
    model.add_adapter("other", ReftConfig(positions="l1", rank=2))
    with unchanged(model):
        first = pyreft.edit_strengths(model, tokenizer, TEXT)
        again = pyreft.edit_strengths(model, tokenizer, TEXT)
        pyreft.edit_strengths(model, tokenizer, TEXT, adapter="other")
    assert_equal(first.strength, again.strength)  # no dropout
    with unchanged(model), pytest.raises(IndexError):
        pyreft.edit_strengths(model, tokenizer, {"input_ids": torch.full((1, 4), 10**6)})


def test_calls_of_other_threads_are_not_seen(tokenizer):
    model = wrap(layers=[1])
    expected = pyreft.edit_strengths(model, tokenizer, TEXT).strength
    other, inside = [], model.model.model.layers[2]

    def elsewhere():
        with torch.no_grad():
            other.append(model(**tokenizer("Another", return_tensors="pt")))

    def call(*args):
        if not other and threading.current_thread() is threading.main_thread():
            other.append(None)
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    handle = inside.register_forward_pre_hook(call)
    assert_equal(pyreft.edit_strengths(model, tokenizer, TEXT).strength, expected)
    handle.remove()
    assert len(other) == 2


# ---- bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused(tokenizer):
    model = wrap()

    def measure(prompt=TEXT, model=model, **options):
        pyreft.edit_strengths(model, tokenizer, prompt, **options)

    with pytest.raises(ValueError, match="no adapter 'other'; there are default"):
        measure(adapter="other")
    with pytest.raises(ValueError, match="has no tokens"):
        measure("")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    with pytest.raises(ValueError, match="has no tokens"):
        measure({"input_ids": ids, "attention_mask": torch.zeros_like(ids)})
    with pytest.raises(ValueError, match="rows, tokens"):
        measure({"input_ids": ids[:, :0]})
    with pytest.raises(ValueError, match=r"attention_mask .* \(1, 16\), got \(1, 1, 16, 16\)"):
        measure({"input_ids": ids, "attention_mask": torch.ones(1, 1, N, N)})
    for wrong in (3, [TEXT], {"input_ids": ids.tolist()}):
        with pytest.raises(TypeError, match="a prompt is a text"):
            measure(wrong)
    with pytest.raises(ValueError, match=r"no row 1: the batch has 1 rows"):
        measure(row=1)
    with pytest.raises(TypeError, match="of a ReftModel, got LlamaForCausalLM"):
        measure(model=model.model)
    with model.disable_adapter(), pytest.raises(ValueError, match=r"disable_adapter\(\) is on"):
        measure()
    t5 = get_reft_model(make_encoder_decoder("t5"), ReftConfig(positions="l1", rank=2))
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        measure(model=t5)
    listed = [{"layer": 1, "component": "block_output", "low_rank_dimension": 2}]
    left = get_reft_model(make_base("llama"), ReftConfig(representations=listed))
    with pytest.raises(ValueError, match="no token of this prompt is edited"):
        measure(model=left)


# ---- what people see -----------------------------------------------------------------------------


def texts_of(figure):
    return [text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text"))]


def test_the_text_is_escaped_and_edited_tokens_are_coloured(tokenizer):
    model = wrap(positions="f2+l1")
    html = pyreft.edit_strengths(model, tokenizer, '<script>alert("x")</script>')._repr_html_()
    assert "<script" not in html and "&lt;" in html
    assert html.count('title="token ') == 3
    assert 'title="token 1\nlayer 0: ' in html


def test_a_long_prompt_is_cut(tokenizer, monkeypatch):
    monkeypatch.setattr("pyreft.pictures.strengths._MAX_CHARACTERS", 900)
    found = pyreft.edit_strengths(wrap(positions="all", layers=[1]), tokenizer, "word " * 200)
    assert "and 100 more tokens" in found._repr_html_()
    labels = [label.get_text() for label in found.plot().axes[0].get_yticklabels()]
    assert len(labels) == 61 and labels[-1] == "… 940 more"


def test_tokens_between_edited_ones_are_one_row(tokenizer):
    found = pyreft.edit_strengths(wrap(), tokenizer, "Cats like many fish.")
    labels = [label.get_text() for label in found.plot().axes[0].get_yticklabels()]
    assert labels == [
        *("C  0", "a  1", "t  2", "s  3", "… 13 more", "s  17", "h  18", ".  19"),
    ]
    assert repr(found).splitlines()[1].split()[:2] == ["0", "C"]


def test_a_figure_shows_texts_as_they_are(tokenizer):
    found = pyreft.edit_strengths(wrap(positions="all"), tokenizer, "$x$ \\frac_^")
    figure = found.plot()
    assert type(figure).__mro__[1].__name__ == "Figure"
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert "$  0" in texts_of(figure)


def test_characters_without_a_glyph_are_named():
    from pyreft.pictures.figures import drawable

    assert drawable("a\nb ␣↵…·") == "a\nb ␣↵…·"
    assert drawable("dog 🐕") == "dog U+1F415"


def test_pyplot_is_not_touched(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert pyreft.edit_strengths(wrap(), tokenizer, TEXT).plot()._repr_png_()


def test_without_matplotlib_there_are_numbers_and_html(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [n for n in sys.modules if n.startswith(("matplotlib.", "pyreft.pictures.fig"))]:
        monkeypatch.delitem(sys.modules, name)
    found = pyreft.edit_strengths(wrap(), tokenizer, TEXT)
    assert found._repr_html_() and repr(found)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        found.plot()


def test_layers_that_run_several_times_are_refused(tokenizer):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "vocab_size": 300, "embedding_size": 16}
    base = AlbertForMaskedLM(AlbertConfig(**sizes)).eval()
    model = get_reft_model(base, ReftConfig(positions="f1", rank=2)).eval()
    with pytest.raises(ValueError, match="modules that run once"):
        pyreft.edit_strengths(model, tokenizer, TEXT)
