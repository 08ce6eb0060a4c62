"""What `repr`, `_repr_html_` and `summary` say of configs, adapters and models."""

import re
from html.parser import HTMLParser

import pytest
import torch
from encoder_decoder_models import make as make_encoder_decoder

from conftest import KINDS, make_base
from pyreft import InterventionConfig, ReftConfig, get_reft_model
from pyreft.config.groups import name_layers
from pyreft.sharing import read_adapter
from pyreft.tables import Table

EVIL = "<script>alert('x')</script>"


class Seen(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.opened, self.words = set(), [], []
        self.feed(html)
        self.close()
        assert not self.opened

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def html_of(shown):
    return Seen(shown._repr_html_())


@pytest.fixture
def model():
    config = ReftConfig(layers=[0, 2], positions="f2+l1", rank=2, tied=False)
    model = get_reft_model(make_base("llama"), config)
    model.add_adapter("other", ReftConfig(kind="nodireft", positions="all", rank=3))
    return model


# ---- tables --------------------------------------------------------------------------------------


def test_a_table_has_one_width_for_each_column():
    table = Table(["name", "n"], [["a", "1"], ["bcdefg", "20"]], ["n"])
    assert str(table) == "name     n\na        1\nbcdefg  20"
    assert "<b>" not in Table(["<b>"], [["<b>"]])._repr_html_()


@pytest.mark.parametrize(
    ("layers", "expected"),
    [([], ""), ([3], "3"), ([4, 2, 3, 9], "2-4, 9"), (range(30), "0-29"), ([0, 2], "0, 2")],
)
def test_runs_of_layers_are_named_by_their_ends(layers, expected):
    assert name_layers(layers) == expected


# ---- configs -------------------------------------------------------------------------------------


def test_equal_layers_of_a_config_are_one_line():
    listed = ReftConfig(positions="f2+l2", tied=False, rank=4).resolve(30)
    lines = repr(ReftConfig(representations=listed)).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("    layers 0-29: InterventionConfig(component='block_output'")
    assert "layer=" not in lines[1]


def test_paths_that_differ_in_their_layer_are_one_line():
    paths = [{"component": f"model.layers[{n}].mlp.output", "positions": "l1"} for n in (1, 3, 4)]
    config = ReftConfig(representations=paths)
    assert "layers 1, 3-4: InterventionConfig(component='model.layers[layer].mlp.output'" in repr(
        config
    )
    assert "model.layers[layer].mlp.output" in html_of(config).words


@pytest.mark.parametrize(
    "config",
    [
        ReftConfig(),
        ReftConfig(layers=[3, 1], positions="l1"),
        ReftConfig(layers=-1, positions="l1"),
        ReftConfig(layers=[2, -1], component="decoder_block_output", tied=False),
        ReftConfig(component="model.layers[3].mlp.output", positions="l1"),
        ReftConfig(representations=[{"layer": -1, "component": "mlp_output"}]),
        ReftConfig(layers=[1, 1]),
    ],
    ids=str,
)
def test_a_config_shows_itself_without_a_model(config):
    seen = html_of(config)
    assert {"table", "pre"} <= seen.tags
    assert any("loreft" in text for text in seen.words)


def test_the_picture_of_a_config_has_its_layers_where_they_are_known():
    def picture(**config):
        return html_of(ReftConfig(positions="l1", rank=4, **config)).words[-1]

    assert "last      .a.a\n" in picture(layers=[1, 3])
    assert "last      a\n" in picture(layers=[1, -1])
    assert "last      a\n" in picture()
    assert "must be different" in picture(layers=[1, 1])


def test_text_of_a_config_is_escaped():
    evil = InterventionConfig(None, f"{EVIL}.output", kind=EVIL, arguments={})
    config = ReftConfig(representations=[evil], modules_to_save=[EVIL])
    seen = html_of(config)
    assert "script" not in seen.tags and any("<script>" in text for text in seen.words)


# ---- adapters and models -------------------------------------------------------------------------


def test_an_adapter_shows_its_table_and_its_picture(model, tmp_path):
    model.save_pretrained(tmp_path)
    for shown in (model.adapters["default"], read_adapter(tmp_path)):
        seen = html_of(shown)
        assert "f2" in seen.words and "0, 2" in seen.words
        assert "first 2   a.a" in seen.words[-1]
        assert len(repr(shown).splitlines()) <= 4
    assert str(tmp_path) in repr(read_adapter(tmp_path))
    assert repr(model.adapters).count("AttachedAdapter(") == 2


def test_a_model_shows_every_adapter(model):
    seen = html_of(model)
    assert {"default", "other"} <= set(seen.words)
    assert sum("block_output\n" in text for text in seen.words) == 2


def test_encoder_decoder_models_show_both_stacks():
    places = [(1, "block_output", "l1"), (0, "decoder_block_output", "all")]
    names = ("layer", "component", "positions")
    listed = [dict(zip(names, p, strict=True), low_rank_dimension=2) for p in places]
    model = get_reft_model(make_encoder_decoder("t5"), ReftConfig(representations=listed))
    assert "decoder_block_output" in html_of(model).words[-1]
    assert [row.component for row in model.summary().rows] == [p[1] for p in places]


def test_the_summary_counts_what_each_adapter_has(model):
    summary = model.summary()
    rows = summary.rows
    names = ("adapter", "weight", "kind", "component", "layers", "positions", "rank")
    assert [tuple(getattr(row, name) for name in names) for row in rows] == [
        ("default", 1.0, "loreft", "block_output", "0, 2", "f2", 2),
        ("default", 1.0, "loreft", "block_output", "0, 2", "l1", 2),
        ("other", None, "nodireft", "block_output", "0-2", "all", 3),
    ]
    # R and W of two layers are 2 x 32 each, b is 2; P and W of three layers 3 x 32, b 3.
    assert [row.parameters for row in rows] == [260, 260, 3 * (2 * 3 * 32 + 3)]
    assert summary.parameters("default") == model.count_parameters()
    assert summary.base_parameters == sum(p.numel() for p in model.model.parameters())
    with pytest.raises(ValueError, match=r"no adapter 'third'; there are default, other"):
        summary.parameters("third")


def test_the_summary_is_a_table(model):
    model.set_adapter(["default", "other"], weights=[1.0, 0.5])
    text = str(model.summary())
    row = r"^default +yes +loreft +block_output +0, 2 +f2 +2 +260 +0\.8784 %$"
    assert text.startswith("LlamaForCausalLM, 29,600 parameters\n\nadapter  active")
    assert re.search(row, text, re.M)
    assert re.search(r"^other +yes, weight 0\.5 +nodireft", text, re.M)
    assert "nodireft" in html_of(model.summary()).words


def test_shared_weights_and_heads_are_counted_once():
    listed = ReftConfig(layers=[0, 1], positions="l1", rank=2).resolve(3)
    module = get_reft_model(make_base("bert"), ReftConfig(representations=listed[:1]))
    shared = next(iter(module.interventions.values()))
    module.unwrap()
    entries = [
        {"layer": n, "component": "block_output", "positions": "l1", "intervention": shared}
        for n in (0, 1)
    ]
    config = ReftConfig(representations=entries, modules_to_save=["classifier"])
    model = get_reft_model(make_base("bert"), config)
    summary = model.summary()
    head = sum(p.numel() for p in model.model.classifier.parameters())
    assert [row.parameters for row in summary.rows] == [130, 0, head]
    assert summary.rows[-1].kind == "trained part" and summary.rows[-1].component == "classifier"
    assert "trained with the base model: classifier" in html_of(model.adapters["default"]).words


@pytest.mark.parametrize("kind", KINDS)
def test_showing_changes_nothing(kind):
    model = get_reft_model(make_base("gpt2"), ReftConfig(kind=kind, rank=2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    for shown in (model, model.reft_config, model.adapters["default"], model.summary()):
        assert repr(shown) and shown._repr_html_()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
