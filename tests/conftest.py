"""Tiny models of three architectures, with random weights, and a tokenizer made on the spot."""

import os
import random
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Of the random cases in tests/oracle: others in each run, the same in all of its processes.
os.environ.setdefault("PYREFT_ORACLE_SEED", str(random.SystemRandom().randrange(10**9)))

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pyreft.interventions import LowRankIntervention, built_in_kinds
from pyreft.interventions.bases import OrthonormalBasis

torch.set_num_threads(1)
# So that what these assert is shown as in a test.
pytest.register_assert_rewrite("reft", "round_trip", "runs")

VOCAB, WIDTH, LAYERS = 99, 32, 3
# The low-rank kinds, those of them that edit along orthonormal directions, that learn a constant.
LOW_RANK = {k: c for k, c in built_in_kinds().items() if issubclass(c, LowRankIntervention)}
KINDS = list(LOW_RANK)
ORTHONORMAL = [kind for kind, cls in LOW_RANK.items() if issubclass(cls, OrthonormalBasis)]
CONSTANT = [kind for kind, cls in LOW_RANK.items() if cls.constant_source]


# What these test is pyreft's own or torch's, and no matter of the releases of others.
ONCE = (
    *("interventions/", "placement/", "pictures/", "oracle/", "loreft/", "serving/", "demo/"),
    *("test_picture.py", "test_shown.py"),
    *("test_positions.py", "test_config.py", "test_combination.py"),
    *("sharing/test_atomic.py", "sharing/test_bad_checkpoint.py"),
    *("sharing/test_hostile.py", "sharing/test_format.py", "sharing/test_links.py"),
    *("training/test_killed.py", "compat/test_own_kinds.py", "editing/test_compile"),
    *("base_model/test_quantized.py", "base_model/test_no_names.py"),
    *("test_migrate.py", "test_releases.py", "test_api_reference.py", "test_words.py"),
    *("test_notebooks.py", "test_gallery.py", "test_external_links.py"),
)


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        name = item.path.relative_to(here).as_posix()
        benchmark = name == "test_examples.py" and "benchmarks/" in item.name
        if benchmark or name.startswith(ONCE):
            item.add_marker("once")


def pytest_report_header():
    return f"PYREFT_ORACLE_SEED={os.environ['PYREFT_ORACLE_SEED']}"


def make_llama(**changes):
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB} | changes
    return LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=2))


def make_gpt2(**changes):
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB} | changes
    config = GPT2Config(**sizes, n_positions=64, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    return GPT2LMHeadModel(config)


def make_bert(**changes):
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": 4, "vocab_size": VOCAB, "num_labels": 3} | changes
    return BertForSequenceClassification(BertConfig(**sizes, pad_token_id=0))


MAKERS = {"llama": make_llama, "gpt2": make_gpt2, "bert": make_bert}


def make_base(architecture: str, seed: int = 0, **changes):
    """A model in evaluation mode, the same one for the same seed."""
    torch.manual_seed(seed)
    return enlarge(MAKERS[architecture](**changes).eval())


@torch.no_grad()
def enlarge(model):
    """Make the weights large enough that an edit shows in every logit."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(5)
    return model


@torch.no_grad()
def randomize(model, scale: float, seed: int = 1):
    """Make every parameter of a fresh adapter random, so that it edits whatever its kind."""
    torch.manual_seed(seed)
    for parameter in model.interventions.parameters():
        parameter.add_(scale * torch.randn_like(parameter))
    return model


def by_the_rule(n, p, s):
    """Wu et al. 2024, section 4: the first p and last s of n prompt tokens, fewer if n is small."""
    if n < p + s:
        p, s = min(p, n // 2), min(s, (n + 1) // 2)
    edited = [*range(p), *range(n - s, n)]
    assert len(set(edited)) == len(edited), "a token is edited twice"
    return edited


@pytest.fixture(params=sorted(MAKERS))
def architecture(request):
    return request.param


@pytest.fixture(params=["llama", "gpt2"])
def causal(request):
    """An architecture that generates."""
    return request.param


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def make_tokenizer():
    """A byte-per-token tokenizer: 97 printable ASCII characters, <pad>, <eos>, and a template."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    vocabulary |= {character: 3 + index for index, character in enumerate(characters)}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        chat_template=template,
        model_max_length=64,
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()
