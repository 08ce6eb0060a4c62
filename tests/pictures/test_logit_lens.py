"""The logit lens: its probabilities, against the norm and the head applied by hand."""

import pytest
import torch
import transformers as hf
from architectures import make
from encoder_decoder_models import make as make_encoder_decoder
from explicit_edits import edited_by_hand, formula, leaving, make_double
from unchanged import unchanged

import pyreft
from conftest import LAYERS, VOCAB, WIDTH, enlarge, make_base, randomize
from pyreft import ReftConfig, get_reft_model

TEXT = "Dogs like bones."
N = len(TEXT)


def make_masked_lm():
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    config = hf.BertConfig(**sizes, num_attention_heads=4, vocab_size=VOCAB, pad_token_id=0)
    return enlarge(hf.BertForMaskedLM(config).eval()).double()


BASES = {"bert": make_masked_lm} | {
    name: lambda name=name: make_double(name) for name in ("llama", "gpt2", "gemma3_text")
}
# What follows the last layer, by the names that each architecture gives it.
FINISH = {
    "llama": lambda base, h: base.lm_head(base.model.norm(h)),
    "gemma3_text": lambda base, h: base.lm_head(base.model.norm(h)),
    "gpt2": lambda base, h: base.lm_head(base.transformer.ln_f(h)),
    "bert": lambda base, h: base.cls(h),
}


def wrap(architecture="llama", **config):
    given = {"positions": "f2+l1", "rank": 2, "dtype": "float64"} | config
    model = get_reft_model(BASES[architecture](), ReftConfig(**given)).eval()
    return randomize(model, 0.3)


def edits_of(model):
    columns = {"f2": [0, 1], "l1": [N - 1], "f2+l1": [0, 1, N - 1]}
    pairs = zip(model.reft_config.representations, model.interventions.values(), strict=True)
    return [(c.layer, c.component, columns[str(c.positions)], formula(m)) for c, m in pairs]


@torch.no_grad()
def by_hand(architecture, inputs, edits, layers, column):
    """For each layer probabilities (V,) before and after its edits; then those of the outputs."""
    base, found = BASES[architecture](), []

    def run(some, layer=None):
        seen = {}
        with edited_by_hand(base, some):
            handle = leaving(base, LAYERS - 1 if layer is None else layer, seen)
            logits = base(**inputs).logits[0, column]
            handle.remove()
        if layer is None:
            return logits.softmax(-1)
        (hidden,) = seen.values()
        return FINISH[architecture](base, hidden[:, column : column + 1])[0, 0].softmax(-1)

    for layer in layers:
        without = [edit for edit in edits if edit[0] != layer]
        found.append((run(without, layer), run(edits, layer)))
    return [*found, (run([]), run(edits))]


def assert_rows(lens, expected, top=5):
    assert len(lens.rows) == len(expected)
    for row, probabilities in zip(lens.rows, expected, strict=True):
        for guesses, wanted in zip((row.before, row.after), probabilities, strict=True):
            values, ids = wanted.topk(top)
            assert [guess.id for guess in guesses] == ids.tolist()
            found = torch.tensor([g.probability for g in guesses], dtype=torch.float64)
            torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-12)
        moved = (probabilities[0] - probabilities[1]).abs().sum() / 2
        assert row.change == pytest.approx(moved.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_rows_are_norm_and_head_of_what_leaves_the_layer(architecture, tied, tokenizer):
    model = wrap(architecture, tied=tied, layers=[0, 2])
    lens = pyreft.logit_lens(model, tokenizer, TEXT)
    assert [row.layer for row in lens.rows] == ["0", "2", "output"]
    assert (lens.token, lens.position) == (".", N - 1)
    inputs = tokenizer(TEXT, return_tensors="pt")
    assert_rows(lens, by_hand(architecture, inputs, edits_of(model), [0, 2], N - 1))
    output = model(**inputs).logits[0, -1].softmax(-1)
    assert lens.rows[-1].after[0].probability == pytest.approx(output.max().item(), rel=1e-6)


@pytest.mark.parametrize("component", ["mlp_output", "block_output"])
def test_edits_inside_of_a_layer(component, tokenizer):
    places = [(1, "mlp_output", "f2+l1"), (1, component, "l1"), (2, component, "f2")]
    names = ("layer", "component", "positions")
    listed = [dict(zip(names, p, strict=True), low_rank_dimension=2) for p in places]
    if component == "mlp_output":
        del listed[1]
    config = ReftConfig(representations=[{**one, "dtype": "float64"} for one in listed])
    model = randomize(get_reft_model(make_double("llama"), config).eval(), 0.3)
    lens = pyreft.logit_lens(model, tokenizer, TEXT)
    inputs = tokenizer(TEXT, return_tensors="pt")
    assert_rows(lens, by_hand("llama", inputs, edits_of(model), [1, 2], N - 1))


def test_a_token_that_is_not_edited_is_changed_by_others_alone(tokenizer):
    model = wrap(positions="f2", layers=[0, 1])
    for position in (5, 5 - N):
        lens = pyreft.logit_lens(model, tokenizer, TEXT, position=position, top=3)
        inputs = tokenizer(TEXT, return_tensors="pt")
        assert_rows(lens, by_hand("llama", inputs, edits_of(model), [0, 1], 5), top=3)
        assert (lens.token, lens.position) == (TEXT[5], 5)
        assert [row.change for row in lens.rows[:2]] == [0, 0]
        assert lens.rows[-1].change > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_other_rows_change_nothing(side, tokenizer):
    model = wrap("gpt2", layers=[1])
    batch = tokenizer(["A longer text than " + TEXT, TEXT], padding=True, padding_side=side)
    batch = {name: torch.tensor(value) for name, value in batch.items()}
    lens = pyreft.logit_lens(model, tokenizer, batch, row=1)
    assert lens.rows == pyreft.logit_lens(model, tokenizer, TEXT).rows


def test_labels_end_the_prompt_and_are_not_needed(tokenizer):
    model = wrap(layers=[1], positions="l1")
    batch = dict(tokenizer(TEXT, return_tensors="pt"))
    batch["labels"] = batch["input_ids"].masked_fill(torch.arange(N) < 10, -100)
    lens = pyreft.logit_lens(model, tokenizer, batch, position=9)
    assert lens.rows[0].change > 0
    assert pyreft.logit_lens(model, tokenizer, batch).rows[0].change == 0


def test_an_edit_outside_of_layers_is_in_the_output_alone(tokenizer):
    config = ReftConfig(component="lm_head.input", positions="l1", rank=2)
    model = randomize(get_reft_model(make_base("llama"), config).eval(), 0.3)
    lens = pyreft.logit_lens(model, tokenizer, TEXT)
    assert [row.layer for row in lens.rows] == ["output"]
    assert lens.rows[0].change > 0.01
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1]
    assert lens.rows[0].after[0].id == logits.argmax().item()


@pytest.mark.parametrize("architecture", ["opt", "gpt_neox", "falcon", "phi", "qwen3", "mpt"])
def test_the_last_layer_says_what_the_model_says(architecture, tokenizer):
    """Whatever follows the last layer: no architecture is asked for its parts."""
    model = get_reft_model(make(architecture), ReftConfig(layers=[LAYERS - 1], rank=2)).eval()
    rows = pyreft.logit_lens(randomize(model, 0.3), tokenizer, TEXT).rows
    for side in ("before", "after"):
        of_layer, of_model = (getattr(row, side) for row in rows)
        assert [guess.id for guess in of_layer] == [guess.id for guess in of_model]
        assert of_layer[0].probability == pytest.approx(of_model[0].probability, rel=1e-4)


def test_a_cap_on_logits_is_applied(tokenizer):
    base = make("gemma3_text")
    base.config.final_logit_softcapping = 2.0
    model = get_reft_model(base, ReftConfig(layers=[LAYERS - 1], positions="l1", rank=2)).eval()
    rows = pyreft.logit_lens(randomize(model, 0.3), tokenizer, TEXT).rows
    assert rows[0].after[0].probability == pytest.approx(rows[1].after[0].probability, rel=1e-4)


def test_a_base_model_of_lower_precision_is_measured_in_its_own(tokenizer):
    config = ReftConfig(layers=[LAYERS - 1], positions="l1", rank=2)
    model = randomize(get_reft_model(make_base("llama").bfloat16(), config).eval(), 0.3)
    of_layer, of_model = pyreft.logit_lens(model, tokenizer, TEXT).rows
    assert of_layer.after[0].probability == pytest.approx(of_model.after[0].probability, rel=0.02)
    strengths = pyreft.edit_strengths(model, tokenizer, TEXT)
    exact = get_reft_model(model.unwrap().double(), model.reft_config).eval()
    again = pyreft.edit_strengths(exact, tokenizer, TEXT)
    torch.testing.assert_close(
        strengths.strength, again.strength, rtol=0.03, atol=0, equal_nan=True
    )


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
def test_a_base_model_inside_of_peft(tokenizer):
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    base = peft.get_peft_model(make_base("llama"), lora)
    config = ReftConfig(layers=[1, LAYERS - 1], positions="l1", rank=2)
    model = randomize(get_reft_model(base, config).eval(), 0.3)
    with unchanged(model):
        _, of_layer, of_model = pyreft.logit_lens(model, tokenizer, TEXT).rows
        assert pyreft.edit_strengths(model, tokenizer, TEXT).edited.sum() == 2
    assert [guess.id for guess in of_layer.after] == [guess.id for guess in of_model.after]
    assert of_layer.change > 0


def test_the_model_stays_as_it_is(tokenizer):
    model = wrap(component="mlp_output", dropout=0.5).train()
    model.add_adapter("other", ReftConfig(positions="l1", rank=2))
    with unchanged(model):
        lens = pyreft.logit_lens(model, tokenizer, TEXT)
        assert pyreft.logit_lens(model, tokenizer, TEXT).rows == lens.rows  # no dropout
        other = pyreft.logit_lens(model, tokenizer, TEXT, adapter="other")
    assert other.rows != lens.rows
    # An error in the middle of a pass.
    broken = model.model.model.norm.register_forward_pre_hook(lambda *args: 1 / 0)
    with unchanged(model), pytest.raises(ZeroDivisionError):
        pyreft.logit_lens(model, tokenizer, TEXT)
    broken.remove()


def test_what_cannot_be_read_is_refused(tokenizer):
    model = wrap()

    def read(model=model, prompt=TEXT, **options):
        pyreft.logit_lens(model, tokenizer, prompt, **options)

    for position in (N, -N - 1):
        with pytest.raises(ValueError, match=f"position {position} is outside the prompt of 16 to"):
            read(position=position)
    for top in (0, True, 2.0):
        with pytest.raises(ValueError, match="at least 1; got"):
            read(top=top)
    with pytest.raises(ValueError, match=f"at most {VOCAB}, the size of the vocabulary; got 100"):
        read(top=VOCAB + 1)
    with pytest.raises(TypeError, match="position is the index"):
        read(position=1.0)
    with pytest.raises(ValueError, match="no adapter 'other'; there are default"):
        read(adapter="other")
    with pytest.raises(ValueError, match="has no tokens"):
        read(prompt="")
    classifier = get_reft_model(make_base("bert"), ReftConfig(rank=2))
    with pytest.raises(ValueError, match="BertForSequenceClassification has no output embedding"):
        read(classifier)
    t5 = get_reft_model(make_encoder_decoder("t5"), ReftConfig(positions="l1", rank=2))
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        read(t5)


def test_people_see_tokens_and_percents(tokenizer):
    lens = pyreft.logit_lens(wrap(layers=[0]), tokenizer, "<script>$x$</script>", top=6)
    html = lens._repr_html_()
    assert "<script" not in html and "&lt;" in html
    figure = lens.plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    first = lens.rows[0].before[0]
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert f"{first.token.strip() or '␣'}\n{100 * first.probability:.1f} %" in shown
    assert repr(lens).splitlines()[0] == "What comes after “>”, token 19 of the prompt"
