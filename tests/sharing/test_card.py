"""The model card: what the Hub and people read of an adapter."""

import io
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from huggingface_hub import ModelCard
from round_trip import IDS, WEIGHTS, wrap

import pyreft
from conftest import make_base, randomize
from pyreft.sharing import read_adapter
from pyreft.sharing.card import CARD_NAME, IMAGE_NAME, is_own_card, write_card
from pyreft.sharing.loss_curve import draw_losses
from pyreft.sharing.training_facts import TrainingFacts

RUN = TrainingFacts(
    trainer="ReftTrainer",
    steps=60,
    epochs=3.0,
    arguments={"learning_rate": 1e-3, "seed": 42},
    examples=400,
    datasets=["nyu-mll/glue"],
    log=[{"step": step, "loss": math.exp(-step / 20)} for step in range(1, 61)],
    evaluation={"accuracy": 0.8125, "loss": 0.25},
    metadata={"license": "mit", "tags": ["demo"], "model_name": "me/adapter"},
)


def saved(directory, training=None, base=None, **config):
    """The text of the card of an adapter that is saved there, with what is said of its base."""
    model = wrap(**config)
    model.save_pretrained(directory)
    adapter = read_adapter(directory)
    write_card(directory, replace(adapter, base=adapter.base | (base or {})), training)
    return (directory / CARD_NAME).read_text()


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.S | re.M)[1]


# ---- what it says --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_the_four_lines_of_the_card_load_the_adapter(architecture, tmp_path, monkeypatch):
    make_base(architecture).save_pretrained(tmp_path / "tiny-base")
    head = {"modules_to_save": ["classifier"]} if architecture == "bert" else {}
    loader = "SequenceClassification" if head else "CausalLM"
    base = getattr(transformers, f"AutoModelFor{loader}").from_pretrained(tmp_path / "tiny-base")
    config = pyreft.ReftConfig(layers=[0], positions="l1", rank=2, **head)
    model = randomize(pyreft.get_reft_model(base, config).eval(), 0.1)
    expected = model(IDS).logits
    model.save_pretrained(tmp_path / "my adapter")
    card = (tmp_path / "my adapter" / CARD_NAME).read_text()
    lines = re.search(r"```python\n(.*?)\n```", section(card, "How to load it"), re.S)[1]
    assert len(lines.splitlines()) == 4
    monkeypatch.chdir(tmp_path)
    exec(lines, names := {})
    assert torch.equal(names["model"](IDS).logits, expected)


def test_a_base_model_of_ones_own_class_is_left_to_its_owner(tmp_path):
    card = saved(tmp_path, base={"task": None, "architecture": "MyModel"})
    assert "base = ...  # of the class MyModel\n" in section(card, "How to load it")
    assert "pipeline_tag" not in ModelCard(card).data.to_dict()


def test_the_hub_reads_what_it_is_and_what_it_was_made_of(tmp_path):
    base = {"name_or_path": "HuggingFaceTB/SmolLM2-135M", "task": "causal_lm"}
    data = ModelCard(saved(tmp_path, RUN, base)).data
    assert data.library_name == "pyreft"
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M"
    assert data["base_model_relation"] == "adapter"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["reft", "representation-finetuning", "loreft", "demo"]
    assert (data.license, data.datasets) == ("mit", ["nyu-mll/glue"])
    assert data.metrics == ["accuracy"]
    (accuracy, loss) = data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.8125)
    assert (loss.dataset_type, loss.task_type) == ("nyu-mll/glue", "text-generation")


def test_nothing_is_made_up(tmp_path):
    """Neither a licence, a task, a data set nor a run, if nobody said one."""
    card = saved(tmp_path / "adapter", base={"name_or_path": None, "task": None})
    data = ModelCard(card).data.to_dict()
    assert data == {
        "library_name": "pyreft",
        "tags": ["reft", "representation-finetuning", "loreft"],
    }
    titles = re.findall(r"^#+ (.*)$", card, re.M)
    assert titles == ["adapter", "How to load it", "What it edits", "Size", "Versions", "Citation"]
    assert not (tmp_path / "adapter" / IMAGE_NAME).exists()


def test_a_base_model_from_a_directory_is_named_without_its_path(tmp_path):
    """The Hub refuses a path, and where things lie at home is nobody's business."""
    (tmp_path / "home" / "mine").mkdir(parents=True)
    for name in (f"{tmp_path}/home/mine", "/home/mine/of/old/mine"):
        card = saved(tmp_path / "adapter", base={"name_or_path": name})
        assert "base_model" not in ModelCard(card).data.to_dict()
        assert "home" not in card
        assert 'from_pretrained("mine")' in card


def test_people_read_what_was_done_and_what_came_out(tmp_path):
    card = saved(tmp_path / "adapter", RUN, {"name_or_path": "gpt2"}, positions="f1+l1")
    assert card.startswith("---\n")
    assert "\n# me/adapter\n" in card
    assert "[gpt2](https://huggingface.co/gpt2)" in card
    assert "  prompt     first     a..\n" in section(card, "What it edits")
    training = section(card, "Training")
    assert "`ReftTrainer`, 60 steps, 3 epochs, 400 examples from `nyu-mll/glue`." in training
    assert "| `learning_rate` | `0.001` |" in training
    assert f"]({IMAGE_NAME})" in training
    assert "| `accuracy` | 0.8125 |" in section(card, "Evaluation")
    size = (tmp_path / "adapter" / WEIGHTS).stat().st_size
    assert f"| `{WEIGHTS}` | {size / 1000:.1f} kB |" in section(card, "Size")
    assert "| parameters of the interventions | 130 |" in section(card, "Size")
    assert f"torch {torch.__version__}" in section(card, "Versions")
    assert "2404.03592" in section(card, "Citation")


def test_trained_parts_of_the_base_model_are_named_and_counted(tmp_path):
    config = pyreft.ReftConfig(layers=[0], positions="l1", rank=2, modules_to_save=["classifier"])
    model = pyreft.get_reft_model(make_base("bert"), config)
    model.save_pretrained(tmp_path)
    card = (tmp_path / CARD_NAME).read_text()
    assert "parts of the base model: `classifier`." in card
    assert "| parameters of the base model | 99 |" in card


EVIL = 'a`|<script>*_]("\n---\n# no\n```\n\\ $&: - [x] {{y}} \u202e \udc80'


@pytest.mark.parametrize("task", ["causal_lm", EVIL])
def test_no_name_breaks_the_card(task, tmp_path):
    """Whatever a name holds, the metadata and the sections are there, and nothing else is."""
    run = replace(
        RUN,
        trainer=EVIL,
        arguments={EVIL: EVIL},
        datasets=[],
        evaluation={EVIL: 1.0},
        metadata={"license": EVIL[:-1], "tags": [EVIL[:-1]], "model_name": EVIL},
    )
    base = dict.fromkeys(["name_or_path", "model_type", "revision", "architecture"], EVIL)
    base |= {"task": task, "labels": [EVIL, EVIL]}
    card = saved(tmp_path, run, base)
    data = ModelCard(card).data
    assert data.license == EVIL[:-1]
    assert data.tags[-1] == EVIL[:-1]
    body = ModelCard(card).text
    plain = ModelCard(saved(tmp_path, RUN, {"name_or_path": "/x"})).text
    for pattern in (r"^## .*$", r"^```\w*$", r"^\|---\|---\|$", r"^---$"):
        assert re.findall(pattern, body, re.M) == re.findall(pattern, plain, re.M)
    code = re.search(r"```python\n(.*?)\n```", body, re.S)[1]
    compile(code, "card", "exec")
    outside = re.sub(r"^```\w*\n.*?^```$|`[^`\n]*`", "", body, flags=re.S | re.M)
    assert "script" not in outside
    assert "{{" not in outside


# ---- what is there stays -------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["# Mine\n", "", "---\nlicense: mit\n---\n", "\ufeff# Mine"])
def test_a_card_that_somebody_wrote_is_left_as_it_is(written, tmp_path, caplog):
    (tmp_path / CARD_NAME).write_text(written, encoding="utf-8")
    wrap().save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_text(encoding="utf-8") == written
    assert "left as it is" in caplog.text


def test_a_card_that_was_edited_is_left_as_it_is(tmp_path, caplog):
    edited = saved(tmp_path, RUN).replace("A ReFT adapter", "My best adapter")
    (tmp_path / CARD_NAME).write_text(edited)
    image = (tmp_path / IMAGE_NAME).read_bytes()
    model = wrap(positions="all")
    model.training_facts = replace(RUN, log=RUN.log[:9])
    model.save_pretrained(tmp_path)
    assert (tmp_path / CARD_NAME).read_text() == edited
    assert (tmp_path / IMAGE_NAME).read_bytes() == image
    assert "left as it is" in caplog.text


def test_a_card_of_ours_is_written_anew_with_the_adapter(tmp_path, caplog):
    old = saved(tmp_path)
    # As git checks it out on Windows.
    (tmp_path / CARD_NAME).write_bytes(old.replace("\n", "\r\n").encode())
    assert saved(tmp_path, positions="all") != old
    assert not caplog.text


def test_only_what_is_whole_and_unchanged_is_ours(tmp_path):
    card = saved(tmp_path)
    assert is_own_card(card.encode())
    mark = card[card.rfind("<!--") :]
    for other in (card + "More.\n", card.replace("loreft", "noreft"), "# Mine\n\n" + mark, mark):
        assert not is_own_card(other.encode())
    assert not is_own_card(b"\xff\xfe" + card.encode())


@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00", b"---\n: [\n---\n", b"---\na: &a [*a]\n---\n"]
)
def test_no_card_is_read_to_load_an_adapter(content, tmp_path):
    model = wrap()
    model.save_pretrained(tmp_path)
    (tmp_path / CARD_NAME).write_bytes(content)
    loaded = pyreft.ReftModel.from_pretrained(make_base("llama"), tmp_path)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


# ---- the curve of losses -------------------------------------------------------------------------


def test_the_curve_is_a_small_image_of_all_losses():
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2000, generator=generator).tolist()
    log = [{"step": step, "loss": value} for step, value in enumerate(noise)]
    plain = draw_losses(log)
    log += [{"step": 9 * i, "eval_$x_loss": 1.0 + i, "eval_loss": float("nan")} for i in range(9)]
    both = draw_losses(log)
    assert plain != both
    assert draw_losses(log) == both
    assert len(both) < 40_000
    assert image.open(io.BytesIO(both)).size == (640, 360)


def test_without_matplotlib_the_card_has_no_image(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    card = saved(tmp_path, RUN)
    assert "60 steps" in card
    assert IMAGE_NAME not in card
    assert not (tmp_path / IMAGE_NAME).exists()


def test_one_loss_is_no_curve():
    assert draw_losses(RUN.log[:1]) is None
    assert draw_losses([{"step": 1, "train_loss": 1.0}, {"step": 2, "eval_loss": 1.0}]) is None
