"""The output of `pyreft inspect`: values for programs, and text for people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pyreft.annotations import Json
from pyreft.compat.formats import read_any
from pyreft.compat.upstream_files import is_upstream
from pyreft.config.picture import draw
from pyreft.sharing import Adapter, AdapterError
from pyreft.sharing.card import count_parameters, readable_size
from pyreft.sharing.checkpoint import CONFIG_NAME
from pyreft.tables import printable


@dataclass(frozen=True)
class Report:
    """A description of an adapter.

    Args:
        values: JSON values.
        picture: Which layers and positions it edits, drawn as text.
    """

    values: Json
    picture: str

    def __str__(self) -> str:
        rows = [(name, printable(text)) for name, text in _rows(self.values) if text]
        table = "\n".join(f"{name:<15}{text}" for name, text in rows)
        return f"{table}\n\n{self.picture}"


def read_report(name: str, directory: Path) -> Report:
    """Read all of an adapter, and describe it.

    Args:
        name: The name or path that the user gave.
        directory: The directory of the adapter.

    Raises:
        AdapterError: If it cannot be read: it is not an adapter, or not intact.
    """
    adapter = read_any(directory)
    for tensor_name, tensor in adapter.tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AdapterError(f"{name} is not intact: {tensor_name} is not finite.")
    layers, decoder = (adapter.base.get(f"num_{part}_layers") for part in ("hidden", "decoder"))
    listed = adapter.config.representations
    return Report(_values(name, directory, adapter), draw(listed, layers, decoder))


def _values(name: str, directory: Path, adapter: Adapter) -> Json:
    format_name = name_format(directory)
    ours = format_name == "pyreft"
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return {
        "adapter": name,
        "intact": True,
        "format": format_name,
        "library_versions": _library_versions(directory) if ours else {},
        "base_model": adapter.base,
        "parameters": count_parameters(adapter),
        "lora": adapter.lora is not None,
        "files": {path.name: path.stat().st_size for path in files},
        **adapter.config.to_dict(),
    }


def name_format(directory: Path) -> str:
    """The format of a readable adapter: pyreft, upstream or adapter-hub."""
    if (directory / CONFIG_NAME).is_file():
        return "pyreft"
    return "upstream" if is_upstream(directory) else "adapter-hub"


def _library_versions(directory: Path) -> dict[str, str]:
    """The versions of the libraries that wrote the adapter, from its config."""
    said = json.loads((directory / CONFIG_NAME).read_text(encoding="utf-8"))
    versions = said.get("library_versions")
    return versions if isinstance(versions, dict) else {}


def _rows(values: Json) -> list[tuple[str, str]]:
    """The lines of the text: names and values."""
    base = values["base_model"]
    sizes = {"layers": "num_hidden_layers", "decoder layers": "num_decoder_layers"}
    sizes |= {"hidden size": "hidden_size", "labels": "labels"}
    shape = [str(base[name]) for name in ("architecture", "model_type") if base.get(name)][:1]
    shape += [f"{what} {base[name]}" for what, name in sizes.items() if base.get(name)]
    written = ", ".join(f"{name} {found}" for name, found in values["library_versions"].items())
    others = {"upstream": "stanfordnlp/pyreft's", "adapter-hub": "adapter-hub's"}
    foreign = f"{others.get(values['format'])}; 'pyreft convert' makes it one of ours"
    revision = f", revision {base['revision']}" if base.get("revision") else ""
    return [
        ("adapter", values["adapter"]),
        ("format", f"pyreft's, {written}" if values["format"] == "pyreft" else foreign),
        ("base model", f"{base.get('name_or_path') or 'not said'}{revision}"),
        ("", ", ".join(shape)),
        *(("parameters", f"{n:,} of the {part}") for part, n in values["parameters"].items()),
        ("trained parts", ", ".join(values.get("modules_to_save", []))),
        *(("file", f"{name}, {readable_size(size)}") for name, size in values["files"].items()),
        ("intact", "yes"),
    ]
