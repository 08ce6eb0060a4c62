"""The JSON of `reft_config.json`: its fields, their checks, and their values.

Adapters are untrusted. Ambiguous JSON is refused, and every field is checked before it is used.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from importlib.metadata import version
from typing import NamedTuple

from pyreft.annotations import Json
from pyreft.config import ReftConfig
from pyreft.sharing.checkpoint import FORMAT_VERSION, MAX_CONFIG, Adapter

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})")
_FIELDS = {"format_version", "library_versions", "base_model", "interventions"}
_FIELDS |= {"modules_to_save", "lora", "fingerprint"}
_OF_INTERVENTION = {"layer", "component", "positions", "kind", "arguments", "heads", "tied_to"}
# The fields of base_model, by the type of their values.
_PATHS = ("name_or_path", "revision")
_NAMES = (*_PATHS, "task", "problem_type")
# A name or a path without ".."; the name of a class or a task.
_PATH = re.compile(r"(?!(.*[/\\])?\.\.([/\\]|$))[^\x00-\x1f\x7f]+")
_WORD = re.compile(r"[\w.-]+", re.ASCII)
_SIZES = {"hidden_size", "num_hidden_layers", "num_decoder_layers", "vocab_size"}
_SIZES |= {"num_attention_heads", "num_key_value_heads", "intermediate_size"}
_BASE_FIELDS = {*_NAMES, "labels", "architecture", "model_type", *_SIZES}
_NEEDED = ("model_type", "hidden_size", "num_hidden_layers")
# Enough to edit each head of a large model, and enough on one component of one layer. The second
# is lower because those are compared with each other.
_MAX_LISTED, _MAX_AT_ONE_SITE = 10_000, 500


class Entry(NamedTuple):
    """The content of a config file."""

    config: ReftConfig
    base: Json
    lora: Json | None


def make_entry(adapter: Adapter) -> Json:
    """The JSON of an adapter, without its fingerprint."""
    entry: Json = {
        "format_version": FORMAT_VERSION,
        "library_versions": {name: version(name) for name in ("pyreft", "torch", "transformers")},
        "base_model": adapter.base,
        **adapter.config.to_dict(),
    }
    return entry if adapter.lora is None else entry | {"lora": adapter.lora}


def parse_json(data: bytes | str) -> Json:
    """Parse an untrusted JSON text that holds an object.

    Raises:
        ValueError: If it is not a JSON object, is too large, names a field twice, or has a number
            or a string that is not JSON.
        RecursionError: If it is nested too deeply.
    """
    if len(data) > MAX_CONFIG:
        raise ValueError(f"it is larger than {MAX_CONFIG:,} bytes")
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    found = json.loads(
        text, object_pairs_hook=_once, parse_constant=_refuse_constant, parse_float=_finite
    )
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    # Half of a surrogate pair can be escaped in JSON, and is not text.
    json.dumps(found, ensure_ascii=False).encode("utf-8")
    return found


def read_entry(entry: Json) -> Entry:
    """Check and read a config.

    Unknown fields are an error. In the config of a later minor version they are left out, with one
    warning: such a version adds only fields that may be ignored.

    Raises:
        ValueError: If a field is unknown, missing or of another type, or the version is not
            supported.
        TypeError: As for a config that a user writes.
    """
    entry = _known(entry, _is_later(entry.get("format_version")))
    _require(entry, "interventions", list)
    _require(entry, "base_model", dict)
    versions = entry.setdefault("library_versions", {})
    if not isinstance(versions, dict) or not all(isinstance(v, str) for v in versions.values()):
        raise ValueError("the field 'library_versions' must be an object of strings")
    _check_base(entry["base_model"])
    names = entry.get("modules_to_save")
    for name, listed in (("interventions", entry["interventions"]), ("modules_to_save", names)):
        if isinstance(listed, list) and len(listed) > _MAX_LISTED:
            raise ValueError(f"it has {len(listed)} {name}, more than {_MAX_LISTED}")
    for one in entry["interventions"]:
        if isinstance(one, dict) and isinstance(one.get("layer"), int) and one["layer"] < 0:
            raise ValueError(f"the layer {one['layer']} must be counted from the first, which is 0")
    sites = Counter(
        (str(one.get("layer")), str(one.get("component")))
        for one in entry["interventions"]
        if isinstance(one, dict)
    )
    if sites and max(sites.values()) > _MAX_AT_ONE_SITE:
        raise ValueError(f"it has more than {_MAX_AT_ONE_SITE} interventions at one place")
    if (lora := entry.get("lora")) is not None:
        _require(entry, "lora", dict)
    if isinstance(names, list) and len(set(map(str, names))) < len(names):
        raise ValueError("modules_to_save has a name twice")
    trained = {n: v for n, v in entry.items() if n in ("interventions", "modules_to_save")}
    return Entry(ReftConfig.from_dict(trained), entry["base_model"], lora)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names a field twice")
    return found


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it has {constant}, which is not JSON")


def _finite(number: str) -> float:
    if not math.isfinite(found := float(number)):
        raise ValueError(f"it has a number that is too large, {number[:20]}")
    return found


def _is_later(found: object) -> bool:
    """Whether a version is a later minor version than ours.

    Raises:
        ValueError: If it is another major version, or not a version.
    """
    match = _VERSION.fullmatch(found) if isinstance(found, str) else None
    if match is None:
        raise ValueError(f"its format_version is {found!r}, which is not a version")
    major, minor = map(int, match.groups())
    our_major, our_minor = map(int, FORMAT_VERSION.split("."))
    if not 1 <= major <= our_major:
        raise ValueError(
            f"its format is {found}, this pyreft reads 1.x to {our_major}.x: "
            + ("upgrade pyreft" if major > our_major else "install a pyreft that reads it")
        )
    return (major, minor) > (our_major, our_minor)


def _known(entry: Json, later: bool) -> Json:
    """The config without the fields that only a later version has."""
    unknown: list[str] = []

    def keep(found: Json, known: set[str], where: str) -> Json:
        unknown.extend(f"{where}{name}" for name in found if name not in known)
        return {name: value for name, value in found.items() if name in known}

    kept = keep(entry, _FIELDS, "")
    if isinstance(base := kept.get("base_model"), dict):
        kept["base_model"] = keep(base, _BASE_FIELDS, "base_model.")
    if later and isinstance(kept.get("interventions"), list):
        listed = enumerate(kept["interventions"])
        kept["interventions"] = [
            keep(one, _OF_INTERVENTION, f"interventions[{index}].")
            if isinstance(one, dict)
            else one
            for index, one in listed
        ]
    if unknown and not later:
        raise ValueError(f"unknown field {', '.join(sorted(unknown)[:5])}")
    if unknown:
        logger.warning(
            f"the format of the adapter is {entry['format_version']}, this pyreft knows "
            f"{FORMAT_VERSION} and leaves out {', '.join(sorted(unknown)[:20])}."
        )
    return kept


def _require(entry: Json, name: str, kind: type) -> None:
    if not isinstance(entry.get(name), kind):
        what = "a list of objects" if kind is list else "an object"
        raise ValueError(f"the field {name!r} must be {what}")


def _check_base(base: Json) -> None:
    """Raise ValueError unless every field of base_model is of its type."""
    for name, value in base.items():
        if name == "labels":
            fits = isinstance(value, list) and all(isinstance(label, str) for label in value)
        elif name in _SIZES:
            fits = type(value) is int and value >= 0
        else:
            fits = isinstance(value, str) or (value is None and name in _NAMES)
        if not fits:
            raise ValueError(f"the field {name!r} of base_model cannot be {value!r}")
    for name, value in base.items():
        if isinstance(value, str) and not (_PATH if name in _PATHS else _WORD).fullmatch(value):
            raise ValueError(f"the field {name!r} of base_model cannot be {value!r}")
    if missing := [name for name in _NEEDED if name not in base]:
        raise ValueError(f"base_model lacks the field {', '.join(missing)}")
