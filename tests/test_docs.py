"""Every Python block of the README and the documentation runs, on a tiny model."""

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
import yaml
from encoder_decoder_models import make
from hub_server import HubServer, connect
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import pyreft
from conftest import make_base, make_llama
from pyreft.adapters.fitting import require_base
from pyreft.base_model.description import describe_base
from pyreft.sharing import read_adapter

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text(), re.S) for page in PAGES}


def bytes_tokenizer():
    """One token a byte, so that it reads every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<eos>": 1} | {byte: 2 + i for i, byte in enumerate(alphabet)}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template="{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )


def classifier(auto_class):
    """What an Auto class of classifiers loads: an encoder, or a decoder for the name of one."""

    def load(cls, name, num_labels=2, problem_type=None):
        config = make_base("llama" if "SmolLM" in name else "bert", vocab_size=300).config
        config.num_labels, config.problem_type = num_labels, problem_type
        return auto_class.from_config(config)

    return classmethod(load)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda p: p.stem)
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
# huggingface_hub without Xet.
@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
# TRL uses names that transformers has changed.
@pytest.mark.filterwarnings("ignore:.\\w*gradient_checkpointing")
def test_documented_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page one after the other, as a reader types them."""
    if any("from trl" in block for block in BLOCKS[page]):
        pytest.importorskip("trl")
    models_of = {"num_hidden_layers": 25, "vocab_size": 300}
    load_model = classmethod(lambda cls, name, **_: make_base("llama", **models_of))
    load_tokenizer = classmethod(lambda cls, name, **_: bytes_tokenizer())
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_model)
    load_t5 = classmethod(lambda cls, name, **_: make("t5", vocab_size=300, num_decoder_layers=2))
    monkeypatch.setattr(transformers.AutoModelForSeq2SeqLM, "from_pretrained", load_t5)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load_tokenizer)
    for auto_class in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        load = classifier(getattr(transformers, auto_class))
        monkeypatch.setattr(getattr(transformers, auto_class), "from_pretrained", load)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    with HubServer() as hub:
        hub.tokens["users"] = "user"
        connect(hub, monkeypatch, tmp_path / "cache", token="users")
        for number, block in enumerate(BLOCKS[page]):
            exec(compile(block, f"block {number} of {page.name}", "exec"), names)


def test_there_are_blocks_to_run():
    assert sum(map(len, BLOCKS.values())) >= 5


def test_the_readme_tutorial_has_at_most_thirty_lines():
    tutorial = re.search(r"```python\n(.*?)```", PAGES[0].read_text(), re.S)
    assert tutorial is not None
    assert len(tutorial[1].splitlines()) <= 30


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_architecture_page_names_every_file():
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = Path(pyreft.__file__).parent
    named = set(re.findall(r"^\| `([\w/]+\.py)`", page, re.M))
    there = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.name != "__init__.py"}
    assert named == there


def test_the_documented_checkpoint_is_one(tmp_path):
    page = (ROOT / "docs" / "checkpoint_format.md").read_text()
    block = re.search(r"```json\n(.*?)```", page, re.S)
    assert block is not None
    sizes = {name: n for name, n in json.loads(block[1])["base_model"].items() if type(n) is int}
    with torch.device("meta"):
        base = make_llama(**sizes)
        model = pyreft.get_reft_model(base, pyreft.ReftConfig(layers=[15], positions="l1", rank=4))
    tensors = {n: torch.zeros(t.shape) for n, t in model.interventions.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "reft_model.safetensors")
    (tmp_path / "reft_config.json").write_text(block[1])
    adapter = read_adapter(tmp_path)
    assert adapter.config.to_dict() == model.reft_config.to_dict()
    require_base(adapter, base)
    said = describe_base(base)
    assert adapter.base.keys() == said.keys()
    assert adapter.base["task"] == said["task"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text())
    assert citation["version"] == pyreft.__version__
    assert citation["cff-version"] == "1.2.0"
