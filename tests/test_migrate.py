"""`pyreft migrate`: old scripts become scripts of today's libraries, and every row is a fact."""

import importlib
import importlib.metadata
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, models

from conftest import make_base
from pyreft.cli import main
from pyreft.compat.renamed import ROWS, table
from pyreft.compat.rows import Argument, Default, Method, Name, Override, Parameter, Value

ROOT = Path(__file__).parent.parent


def run(*arguments):
    """The exit code."""
    with pytest.raises(SystemExit) as exit:
        main(["migrate", *map(str, arguments)])
    return exit.value.code


@pytest.fixture
def migrated(tmp_path, capsys):
    """Writes a script, migrates it, and returns its new text and the notes."""

    def migrate(text, name="script.py"):
        path = tmp_path / name
        path.write_bytes(text.encode())
        assert run("--write", path) == 0
        said = capsys.readouterr().out.replace(f"{tmp_path}/", "")
        return path.read_bytes().decode(), said

    return migrate


# ---- the table is true ---------------------------------------------------------------------------


def rows(kind, library=None):
    return [r for r in ROWS if isinstance(r, kind) and library in (None, getattr(r, "library", 0))]


def is_gone_here(row):
    """Whether the installed transformers is a release without it."""
    installed = Version(importlib.metadata.version("transformers"))
    return not row.since or installed >= Version(row.since)


def parameters_of(library, name):
    """The arguments of a callable; None if it has any."""
    found = getattr(pytest.importorskip(library), name)
    signature = inspect.signature(found).parameters
    return None if any(p.kind is p.VAR_KEYWORD for p in signature.values()) else set(signature)


def has(dotted):
    """Whether a name can be imported."""
    module, _, name = dotted.rpartition(".")
    try:
        found = importlib.import_module(module or dotted)
        return not module or hasattr(found, name) or bool(importlib.import_module(dotted))
    except ImportError:
        return False


MOVED_SINCE = {"AdamW", "batch_encode_plus"}  # Rows of other kinds say that these are gone.


@pytest.mark.parametrize(
    ("row", "name"),
    [
        pytest.param(row, name, id=f"{row.library}.{name}-{row.old}")
        for row in rows(Argument)
        for name in row.callables
        if name not in MOVED_SINCE | {"from_pretrained", "load_dataset"}
    ],
)
def test_renamed_arguments_are_refused_and_new_ones_taken(row, name):
    library = row.library
    if library == "trl" and name.startswith(("ORPO", "CPO")):
        library = f"trl.experimental.{name[:-6].lower()}"
    pytest.importorskip(row.library)
    taken = parameters_of(library, name)
    assert taken is not None
    assert (row.old not in taken) == is_gone_here(row)
    if row.new and is_gone_here(row):
        assert row.new in taken


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    make_base("llama").save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "row",
    [row for row in rows(Argument, "transformers") if "from_pretrained" in row.callables],
    ids=lambda row: row.old,
)
def test_models_are_not_loaded_with_old_arguments(row, saved):
    load = transformers.AutoModelForCausalLM.from_pretrained
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{row.old}'"):
        load(saved, **{row.old: True})
    if row.new:
        load(saved, **{row.new: None})
    if row.of_models:
        transformers.AutoConfig.from_pretrained(saved, **{row.old: True})


@pytest.mark.parametrize("row", rows(Argument, "datasets"), ids=lambda row: row.old)
def test_data_sets_are_not_loaded_with_old_arguments(row, tmp_path):
    import datasets

    (tmp_path / "rows.json").write_text('{"a": 1}\n')
    arguments = {"data_files": str(tmp_path / "rows.json"), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        datasets.load_dataset("json", **arguments, **{row.old: True})
    if row.new:
        assert row.new in inspect.signature(datasets.load_dataset).parameters


@pytest.mark.parametrize("row", rows(Name), ids=lambda row: row.old)
def test_names_are_gone_and_new_ones_there(row):
    library = row.old.partition(".")[0]
    if library == "pyvene":
        required = importlib.metadata.requires("pyreft") or []
        assert not any(line.startswith("pyvene") for line in required)
        return
    pytest.importorskip(library)
    if row.old.endswith("*"):
        module, _, start = row.old[:-1].rpartition(".")
        names = dir(importlib.import_module(module))
        assert not [n for n in names if re.match(f"{start}[A-Z]", n) and not n.isupper()]
    else:
        assert has(row.old) != is_gone_here(row)
    if row.new and row.new != "evaluate.load":  # A package of its own.
        assert has(row.new)


def test_methods_are_gone():
    owners = {
        "tokenizer": transformers.PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        ),
        "model": make_base("llama"),
        "reft_model.config": make_base("llama").config,
    }
    for row in rows(Method):
        assert not hasattr(owners[row.owner], row.old), row.old


def test_overridden_methods_are_called_by_nobody():
    trl = pytest.importorskip("trl")
    for row in rows(Override):
        assert not hasattr(getattr(trl, row.base), row.method), row.method


def test_values_are_refused_and_new_ones_taken(tmp_path):
    for row in rows(Value, "transformers"):
        if "pipeline" in row.callables:
            name = "translation_en_to_fr" if row.old == "translation" else row.old
            with pytest.raises(KeyError):
                transformers.pipelines.check_task(name)
        else:
            for value, taken in ((row.old, False), (row.new, True)):
                arguments = {"output_dir": str(tmp_path), row.argument: value}
                if taken:
                    transformers.TrainingArguments(**arguments)
                else:
                    with pytest.raises(ValueError, match=value):
                        transformers.TrainingArguments(**arguments)


def test_overridden_methods_of_the_trainer_get_the_parameter():
    for row in rows(Parameter):
        assert (
            row.parameter in inspect.signature(getattr(transformers.Trainer, row.method)).parameters
        )


def test_defaults_differ():
    assert rows(Default)
    for row in rows(Default):
        signature = inspect.signature(torch.optim.AdamW)
        names = list(signature.parameters)
        assert names.index(row.argument) == row.position
        assert signature.parameters[row.argument].default != float(row.value)


def test_a_share_of_warmup_steps_is_a_ratio(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), warmup_steps=0.1)
    assert arguments.get_warmup_steps(50) == 5


def test_the_documented_table_is_the_one_that_is_applied():
    page = (ROOT / "docs" / "migration.md").read_text()
    found = re.search(r"<!-- begin: old to new -->\n(.*?)\n<!-- end: old to new -->", page, re.S)
    assert found is not None
    assert found[1].strip() == table()


# ---- scripts -------------------------------------------------------------------------------------

OLD = """\
import torch
import transformers as tf
from transformers import Trainer, TrainingArguments as TA  # the trainer

args = TA(
    "out",
    evaluation_strategy="steps",  # often
    overwrite_output_dir=True,  # as was
    # A rate.
    warmup_ratio=0.1, no_cuda=(not
                               torch.cuda.is_available()),
)
model = tf.AutoModelForCausalLM.from_pretrained(
    "é", use_auth_token=True, load_in_8bit=True)
trainer = Trainer(model, args, tokenizer=None)
"""
NEW = """\
import torch
import transformers as tf
from transformers import Trainer, TrainingArguments as TA  # the trainer

args = TA(
    "out",
    eval_strategy="steps",  # often
    # A rate.
    warmup_steps=0.1, use_cpu=(not
                               torch.cuda.is_available()),
)
model = tf.AutoModelForCausalLM.from_pretrained(
    "é", token=True, quantization_config=tf.BitsAndBytesConfig(load_in_8bit=True))
trainer = Trainer(model, args, processing_class=None)
"""


def test_edits_keep_formatting_comments_and_line_ends(migrated):
    assert migrated(OLD)[0] == NEW
    assert migrated(OLD.replace("\n", "\r\n"))[0] == NEW.replace("\n", "\r\n")


def test_a_diff_is_shown_that_patch_applies(tmp_path, capsys):
    path = tmp_path / "script.py"
    path.write_text(OLD.rstrip())
    assert run(path) == 0
    diff = capsys.readouterr().out
    assert path.read_text() == OLD.rstrip()
    assert '-    evaluation_strategy="steps",  # often\n' in diff
    subprocess.run(["patch", str(path)], input=diff, text=True, check=True, capture_output=True)
    assert path.read_text() == NEW.rstrip()


def test_what_is_migrated_needs_nothing_more(migrated):
    text, _ = migrated(OLD)
    assert migrated(text) == (text, "nothing to change\n")


@pytest.mark.parametrize(
    "text",
    [
        # A function of the user's own.
        "import transformers\ndef train(evaluation_strategy): pass\ntrain(evaluation_strategy=1)\n",
        # A class of that name, not transformers'.
        "from mine import TrainingArguments\nTrainingArguments(evaluation_strategy='no')\n",
        # It may be either.
        "try:\n    from transformers import AdamW\nexcept ImportError:\n"
        "    from torch.optim import AdamW\nAdamW([])\n",
        # A field that a subclass declares.
        "import transformers\nclass A(transformers.TrainingArguments):\n"
        "    logging_dir: str = 'x'\nA(logging_dir='y')\n",
        # A constructor of its own.
        "import transformers\nclass T(transformers.Trainer):\n"
        "    def __init__(self, tokenizer): pass\nT(tokenizer=1)\n",
        # pyreft's own trainers take both names.
        "import pyreft\npyreft.ReftTrainerForCausalLM(tokenizer=1)\n",
        # A config ignores it.
        "import transformers\ntransformers.AutoConfig.from_pretrained('x', load_in_8bit=True)\n",
        # A method of the user's own.
        "import transformers\nclass A:\n    def batch_encode_plus(self, x): pass\n"
        "A().batch_encode_plus(batch_text_or_text_pairs=1)\n",
        "import transformers\nclass A(B): pass\nclass B(A): pass\nA(tokenizer=1)\n",
        "",
    ],
)
def test_what_is_not_of_the_libraries_is_left_alone(migrated, text):
    assert migrated(text) == (text, "nothing to change\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("T(a=1, past_index=2)", "T(a=1)"),
        ("T(past_index=2, a=1)", "T(a=1)"),
        ("T(past_index=2)", "T()"),
        ("T(a=1, past_index=2, ray_scope='x')", "T(a=1)"),
        ("T(a=1,  # one\n  past_index=2)", "T(a=1,  # one\n  )"),
        ("T(\n  a=1,\n  past_index=f(',', [2]),\n)", "T(\n  a=1,\n)"),
        ("T(adafactor=False, a=1)", "T(a=1)"),
        ("T(adafactor=x)", 'T(optim="adafactor" if x else "adamw_torch")'),
        (
            "T(group_by_length=True if x else False)",
            'T(train_sampling_strategy="group_by_length" if x else "random")',
        ),
        (
            "T(group_by_length=a if x else b)",
            'T(train_sampling_strategy="group_by_length" if (a if x else b) else "random")',
        ),
        ("T(optim='adamw_hf')", 'T(optim="adamw_torch")'),
        ("t = T(no_cuda=1)\nprint(t.no_cuda)", "t = T(use_cpu=1)\nprint(t.use_cpu)"),
    ],
)
def test_arguments_are_renamed_and_removed(migrated, old, new):
    start = "from transformers import TrainingArguments as T\n"
    text, notes = migrated(start + old)
    assert text == start + new
    assert notes == "script.py is written.\n"


def test_subclasses_are_what_they_extend(migrated):
    text, _ = migrated(
        "from transformers import Trainer\n"
        "from pyreft import ReftTrainer\n"
        "class Mine(Trainer):\n"
        "    def compute_loss(self, model, inputs, return_outputs=False):\n"
        "        return self.tokenizer\n"
        "class Ours(ReftTrainer):\n"
        "    def compute_loss(self, model, inputs,\n"
        "                     return_outputs=False):\n"
        "        pass\n"
        "    def log(self, logs, **kwargs): pass\n"
        "Mine(tokenizer=1)\n"
    )
    assert text == (
        "from transformers import Trainer\n"
        "from pyreft import ReftTrainer\n"
        "class Mine(Trainer):\n"
        "    def compute_loss(self, model, inputs, return_outputs=False, "
        "num_items_in_batch=None):\n"
        "        return self.processing_class\n"
        "class Ours(ReftTrainer):\n"
        "    def compute_loss(self, model, inputs,\n"
        "                     return_outputs=False,\n"
        "                     num_items_in_batch=None):\n"
        "        pass\n"
        "    def log(self, logs, **kwargs): pass\n"
        "Mine(processing_class=1)\n"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "from transformers import AdamW\nAdamW(p, lr=1, correct_bias=True)",
            "from torch.optim import AdamW\nAdamW(p, lr=1, eps=1e-6, weight_decay=0.0)",
        ),
        (
            "from transformers import (\n    AdamW,\n    Trainer,\n)\n"
            "AdamW(p, weight_decay=1, eps=2)",
            "from torch.optim import AdamW\nfrom transformers import (\n    Trainer,\n)\n"
            "AdamW(p, weight_decay=1, eps=2)",
        ),
        (
            "import torch, transformers\nx = transformers.AdamW",
            "import torch, transformers\nx = torch.optim.AdamW",
        ),
        (
            "from transformers import AutoModelForVision2Seq\nAutoModelForVision2Seq.x",
            "from transformers import AutoModelForImageTextToText\nAutoModelForImageTextToText.x",
        ),
        (
            "from transformers.deepspeed import HfDeepSpeedConfig",
            "from transformers.integrations.deepspeed import HfDeepSpeedConfig",
        ),
        (
            "from datasets import load_metric\nload_metric('f1')",
            "from evaluate import load\nload('f1')",
        ),
        (
            "from datasets import load_metric\nload = load_metric('f1')",
            "from evaluate import load as load_metric\nload = load_metric('f1')",
        ),
        (
            "import transformers\nt.batch_encode_plus(x, padding=True)",
            "import transformers\nt(x, padding=True)",
        ),
        (
            "from transformers import AutoModel\nAutoModel.from_pretrained(x, load_in_4bit=True)",
            "from transformers import BitsAndBytesConfig\nfrom transformers import AutoModel\n"
            "AutoModel.from_pretrained("
            "x, quantization_config=BitsAndBytesConfig(load_in_4bit=True))",
        ),
    ],
)
def test_names_are_replaced_with_their_imports(migrated, old, new):
    assert migrated(old)[0] == new


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("T(**{'no_cuda': 1})", "T has no no_cuda any more: write use_cpu"),
        ("d = {'no_cuda': 1}\nT(**d)", "T has no no_cuda any more: write use_cpu"),
        ("d = dict(no_cuda=1)\nT(**d)", "T has no no_cuda any more: write use_cpu"),
        ("T(use_cpu=1, no_cuda=1)", "T has no no_cuda any more: write use_cpu"),
        (
            "import trl\ntrl.SFTTrainer(max_seq_length=9)",
            "trl.SFTTrainer has no max_seq_length any more: remove it, and write max_length=9 "
            "in the SFTConfig(...) that is passed as args",
        ),
        (
            "from transformers import pipeline\npipeline('translation_en_to_fr')",
            'pipeline has no "translation_en_to_fr" any more: load the model with its Auto class '
            "and call generate()",
        ),
        (
            "import accelerate\naccelerate.Accelerator(even_batches=False)",
            "write dataloader_config=DataLoaderConfiguration(even_batches=False)",
        ),
        (
            "import trl\nclass D(trl.DPOTrainer):\n    def concatenated_forward(self): pass",
            "DPOTrainer has no concatenated_forward: see docs/trainers.md",
        ),
        ('print(a, f"""\n{T(past_index=1)}""")', "what this f-string needs is not edited"),
        ("from transformers import TFAutoModel", "transformers.TF*: write the class of torch"),
    ],
)
def test_what_is_for_the_user_to_decide_is_said_with_its_line(migrated, text, note):
    script = "from transformers import TrainingArguments as T\n" + text
    found, said = migrated(script)
    assert found in (script, script.replace("even_batches=False", ""))
    assert re.search(r"^script\.py:[2-4]: ", said, re.M)
    assert note in said


def test_notes_name_the_lines_of_the_file_that_was_written(migrated):
    text, said = migrated(
        "from transformers import TrainingArguments as T\nT(\n  past_index=1,\n  logging_dir='x',\n"
        "  a=1)\nT(**{'no_cuda': 1})\n"
    )
    assert "script.py:4: T has no no_cuda any more" in said
    assert text.splitlines()[3] == "T(**{'no_cuda': 1})"
    assert "set the environment variable TENSORBOARD_LOGGING_DIR to 'x'" in said


# ---- notebooks -----------------------------------------------------------------------------------


def notebook(*cells):
    return {
        "cells": [
            {
                "cell_type": "code",
                "metadata": {},
                "outputs": [{"text": ["é\n"]}],
                "source": cell.splitlines(keepends=True),
            }
            for cell in cells
        ],
        "metadata": {"kernelspec": {"name": "python3"}},
        "nbformat": 4,
    }


@pytest.mark.parametrize("layout", [{"indent": 1, "ensure_ascii": False}, {"indent": 2}, {}])
def test_only_the_edited_lines_of_a_notebook_change(migrated, layout):
    old = notebook(
        "!pip install x \\\n  y\nimport transformers\n",
        "%%bash\necho evaluation_strategy=(\n",
        "%%time\nfiles = !ls\ntransformers.TrainingArguments?\n"
        "transformers.TrainingArguments('x', evaluation_strategy='no')\n%matplotlib inline",
    )
    text = json.dumps(old, **layout) + "\n"
    assert migrated(text, "n.ipynb")[0] == text.replace("evaluation_strategy='", "eval_strategy='")


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.py", b"x = 1\ny = (\n", "a.py:2: '(' was never closed"),
        ("a.py", b"x = 1\n\xff\xfe", "a.py:2: not a text in utf-8."),
        ("a.py", b"\n\0", "a.py:2: a binary file, not a script."),
        ("a.py", b"# coding: none\n", "a.py:1: not Python: unknown encoding"),
        ("a.ipynb", b"{\n]", "a.ipynb:2: not a notebook: "),
        ("a.ipynb", b"[]", "a.ipynb:1: not a notebook of version 4: it has no list of cells."),
        (
            "a.ipynb",
            json.dumps(notebook("pass", "x\n)")).encode(),
            "a.ipynb, cell 2:2: unmatched ')'",
        ),
        ("b.py", None, "there is no file "),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, capsys, name, content, said):
    good = tmp_path / "good.py"
    good.write_text(OLD)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run("--write", good, tmp_path / name) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyreft: ")
    assert said in err.replace(f"{tmp_path}/", "")
    assert good.read_text() == OLD


def test_a_script_keeps_its_encoding_permissions_and_link(tmp_path):
    path, link = tmp_path / "script.py", tmp_path / "link.py"
    text = "# coding: latin-1\n" + OLD
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o750)
    link.symlink_to(path)
    assert run("--write", link) == 0
    assert link.is_symlink()
    assert path.read_bytes() == ("# coding: latin-1\n" + NEW).encode("latin-1")
    assert path.stat().st_mode & 0o777 == 0o750
    assert sorted(os.listdir(tmp_path)) == ["link.py", "script.py"]


def test_scripts_are_not_run_and_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "script.py").write_text("import transformers\nraise SystemExit(9)\n")
    code = (
        "import sys; from pyreft.cli import main\n"
        f"try: main(['migrate', {str(tmp_path / 'script.py')!r}])\n"
        "except SystemExit as done: print('code', done.code)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "nothing to change\ncode 0\n[]\n"


def test_the_config_of_the_adapter_is_found_where_it_is_read(migrated):
    script = (
        "import pyreft\n"
        'reft_config = pyreft.ReftConfig(representations={"layer": 1})\n'
        "reft_model = pyreft.get_reft_model(model, reft_config)\n"
        "print(reft_model.config.representations, reft_config.representations)\n"
    )
    text, said = migrated(script)
    assert text == script
    assert said.count("representations is gone") == 1
    assert "script.py:4: representations is gone: write reft_model.reft_config" in said
