"""No decision in pyreft is made by the name of an architecture: structure and config fields say it.

Probes of facts build a Llama; tables of what other libraries renamed are about names.
"""

import ast
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

import pyreft

ROOT = Path(pyreft.__file__).parent
APART = ("installed", "compat")
MAPPINGS = (MODEL_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
MAPPINGS += (MODEL_FOR_MASKED_LM_MAPPING_NAMES,)
CLASSES = {n for m in MAPPINGS for one in m.values() for n in ([one] if type(one) is str else one)}
CLASSES -= {"ReftModel"}
NAMES = set(CONFIG_MAPPING_NAMES) | set(CONFIG_MAPPING_NAMES.values()) | CLASSES


def test_no_code_has_the_name_of_an_architecture():
    found = []
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0] in APART:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            named = node.id if isinstance(node, ast.Name) else named
            named = node.name if isinstance(node, ast.alias) else named
            if isinstance(named, str) and named in NAMES:
                found.append(f"{path.relative_to(ROOT)}: {named}")
    assert found == []


def test_the_names_are_those_of_transformers():
    assert {"llama", "LlamaConfig", "LlamaForCausalLM", "BertModel"} <= NAMES
