"""The model card: `README.md` beside an adapter, written from what is known of it.

Nothing is guessed, and no user's text is lost: a card ends with a mark, a hash of its content. A
card without a mark, or with a mark that does not match, is not changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pyreft.config import InterventionConfig
from pyreft.config.picture import draw
from pyreft.sharing.checkpoint import (
    CONFIG_NAME,
    LORA_FILES,
    OF_BASE,
    OF_LORA,
    WEIGHTS_NAME,
    Adapter,
)
from pyreft.sharing.loss_curve import draw_losses
from pyreft.sharing.metadata import hub_metadata, hub_name
from pyreft.sharing.training_facts import TrainingFacts
from pyreft.sharing.writing import write_files
from pyreft.tables import printable

CARD_NAME = "README.md"
IMAGE_NAME = "reft_loss.png"

_MARK = "<!-- pyreft wrote this, {}, and writes it anew with the adapter until it is edited. -->\n"
_CITATION = """\
@inproceedings{wu2024reft,
  title     = {{ReFT}: Representation Finetuning for Language Models},
  author    = {Wu, Zhengxuan and Arora, Aryaman and Wang, Zheng and Geiger, Atticus and
               Jurafsky, Dan and Manning, Christopher D. and Potts, Christopher},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  url       = {https://arxiv.org/abs/2404.03592}
}"""

# Task of the base model -> the class of transformers that loads it.
_LOADERS: dict[str | None, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "multiple_choice": "AutoModelForMultipleChoice",
    "masked_lm": "AutoModelForMaskedLM",
    "image_text_to_text": "AutoModelForImageTextToText",
    "features": "AutoModel",
}

logger = logging.getLogger(__name__)


def write_card(
    directory: str | os.PathLike[str],
    adapter: Adapter,
    training: TrainingFacts | None = None,
    name: str | None = None,
) -> None:
    """Write the card of a saved adapter, and the image of its losses if a trainer saved it.

    A `README.md` that differs from what pyreft wrote is not changed, and a warning is logged.

    Args:
        directory: The directory of the adapter.
        adapter: The adapter.
        training: The facts of its training, if a trainer saved it.
        name: The name to load it by, such as its name on the Hub; the directory's by default.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(directory)
    card = path / CARD_NAME
    if card.exists() and not is_own_card(card.read_bytes()):
        logger.warning(
            f"{card} was not written by pyreft, or was edited since: it is left as it is. Move it "
            "away to get a new one."
        )
        return
    image = None if training is None else draw_losses(training.log)
    given = {} if training is None else training.metadata
    name = name or given.get("model_name") or path.resolve().name
    on_hub = hub_name(adapter.base)
    sections = [
        f"---\n{hub_metadata(adapter, training, name)}\n---",
        _head(adapter, name, on_hub),
        _loading(adapter, name, on_hub),
        _edits(adapter),
        _size(adapter, path),
        _training(training, image is not None) if training is not None else "",
        _evaluation(training) if training is not None else "",
        _versions(adapter),
        f"## Citation\n\n```bibtex\n{_CITATION}\n```",
    ]
    text = "\n\n".join(section for section in sections if section) + "\n\n"
    content = (text + _MARK.format(_digest(text))).encode(errors="replace")
    write_files(path, ({} if image is None else {IMAGE_NAME: image}) | {CARD_NAME: content})


def is_own_card(content: bytes) -> bool:
    """Whether a card is as pyreft wrote it: it has a mark, which matches its content."""
    text = content.decode(errors="replace").replace("\r\n", "\n")
    body, mark = text[: text.rfind("<!--")], text[text.rfind("<!--") :]
    return mark.strip() == _MARK.format(_digest(body)).strip()


def rename_card(content: bytes, name: str) -> bytes:
    """A card that pyreft wrote, with another name for the adapter."""
    text = content.decode().replace("\r\n", "\n")
    body = text[: text.rfind("<!--")]
    # A function, because re.sub would parse backslashes in a name.
    body = re.sub(r"^# .*$", lambda _: f"# {_plain(name)}", body, count=1, flags=re.M)
    body = re.sub(
        r"^model = ReftModel\.from_pretrained\(base, .*$",
        lambda _: _load(name),
        body,
        count=1,
        flags=re.M,
    )
    return (body + _MARK.format(_digest(body))).encode()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


# ---- for people --------------------------------------------------------------------------------


def _head(adapter: Adapter, name: str, on_hub: str | None) -> str:
    about = f"A ReFT adapter: learned edits of hidden states of {_base_name(adapter, on_hub)}."
    return f"# {_plain(name)}\n\n{about}"


def _plain(name: str) -> str:
    return name if re.fullmatch(r"[\w./ -]+", name) else code(name)


def _base_name(adapter: Adapter, on_hub: str | None) -> str:
    if on_hub is not None:
        return f"[{on_hub}](https://huggingface.co/{on_hub})"
    said = adapter.base.get("name_or_path")
    # Only the last part of a path, because the rest is private.
    return code(Path(said).name) if said else f"a {code(str(adapter.base.get('model_type')))} model"


def _loading(adapter: Adapter, name: str, on_hub: str | None) -> str:
    said, task = adapter.base.get("name_or_path"), adapter.base.get("task")
    arguments = [json.dumps(on_hub or (Path(said).name if said else "the base model"))]
    if on_hub and adapter.base.get("revision"):
        arguments.append(f"revision={json.dumps(adapter.base['revision'])}")
    if adapter.base.get("labels"):
        arguments.append(f"num_labels={len(adapter.base['labels'])}")
    loader = _LOADERS.get(task)
    imported = [f"from transformers import {loader}"]
    base = f"{loader}.from_pretrained({', '.join(arguments)})"
    if loader is None:
        # The user's own class, or one without an auto class in transformers.
        imported = []
        base = f"...  # of the class {printable(str(adapter.base.get('architecture')))}"
    lines = [*imported, "from pyreft import ReftModel", f"base = {base}"]
    lines.append(_load(name))
    return "## How to load it\n\n```python\n" + "\n".join(lines) + "\n```"


def _load(name: str) -> str:
    return f"model = ReftModel.from_pretrained(base, {json.dumps(name)})"


def _edits(adapter: Adapter) -> str:
    layers, decoder = (adapter.base.get(f"num_{part}_layers") for part in ("hidden", "decoder"))
    listed: Sequence[InterventionConfig] = adapter.config.representations
    said = f"## What it edits\n\n```text\n{draw(listed, layers, decoder)}\n```"
    if adapter.config.modules_to_save:
        names = ", ".join(code(name) for name in adapter.config.modules_to_save)
        said += f"\n\nTrained with it, parts of the base model: {names}."
    if adapter.lora is not None:
        said += "\n\nTrained with it, PEFT's LoRA, whose files lie beside it."
    return said


def _size(adapter: Adapter, path: Path) -> str:
    counts = count_parameters(adapter)
    rows = [(f"parameters of the {part}", f"{count:,}") for part, count in counts.items()]
    names = [WEIGHTS_NAME, CONFIG_NAME, *(LORA_FILES if adapter.lora is not None else ())]
    there = [path / name for name in names if (path / name).is_file()]
    rows += [(code(file.name), readable_size(file.stat().st_size)) for file in there]
    return "## Size\n\n" + _table("what", "size", rows)


def count_parameters(adapter: Adapter) -> dict[str, int]:
    """The number of trained parameters of an adapter, by part of the model."""
    parts = {OF_BASE: "base model", OF_LORA: "LoRA", "": "interventions"}
    counts = dict.fromkeys(reversed(parts.values()), 0)
    for name, tensor in adapter.tensors.items():
        if name.endswith(".turn") and f"{name.removesuffix('turn')}original" in adapter.tensors:
            continue  # `original`, of the same size, is counted, because every file has it
        counts[next(parts[prefix] for prefix in parts if name.startswith(prefix))] += tensor.numel()
    return {part: count for part, count in counts.items() if count}


def _training(training: TrainingFacts, with_image: bool) -> str:
    if training.steps == 0:
        return ""
    said = f"{code(training.trainer)}, {training.steps:,} steps"
    said += "" if training.epochs is None else f", {training.epochs:.4g} epochs"
    said += "" if training.examples is None else f", {training.examples:,} examples"
    if training.datasets:
        said += f" from {', '.join(code(name) for name in training.datasets)}"
    rows = [(code(name), code(str(value))) for name, value in training.arguments.items()]
    parts = ["## Training", f"{said}.", _table("argument", "value", rows) if rows else ""]
    parts.append(f"![Losses over steps]({IMAGE_NAME})" if with_image else "")
    return "\n\n".join(part for part in parts if part)


def _evaluation(training: TrainingFacts) -> str:
    rows = [(code(name), f"{value:.4g}") for name, value in training.evaluation.items()]
    return "## Evaluation\n\n" + _table("metric", "value", rows) if rows else ""


def _versions(adapter: Adapter) -> str:
    names = ["pyreft", "torch", "transformers"]
    names += ["peft"] if adapter.lora is not None else []
    return "## Versions\n\n" + ", ".join(f"{name} {version(name)}" for name in names) + "."


def _table(left: str, right: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {left} | {right} |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines)


def code(text: str) -> str:
    """A text as a code span, also for tables, without effect as Markdown or HTML."""
    return f"`{printable(text) or ' '}`".replace("|", r"\|")


def readable_size(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / 1000:,.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:,.1f} MB"
