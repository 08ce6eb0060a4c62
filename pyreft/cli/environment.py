"""The output of `pyreft env`: the installed releases, the facts relied on, and the machine."""

from __future__ import annotations

import os
import platform

import pyreft
from pyreft.annotations import Json
from pyreft.installed.releases import TESTED, installed_version, untested

# Fast path -> the facts that it relies on.
_FAST_PATHS = {
    "frozen computation is reused": (
        *("cache_counts_tokens", "cache_has_layers", "modules_list_hooks"),
        *("modules_say_if_compiled", "tensors_count_writes", "dropouts_have_a_base"),
        "placed_modules_have_a_hook",
    ),
    "the output head runs on labelled tokens": (
        *("causal_loss_is_replaceable", "modules_list_hooks", "modules_say_if_compiled"),
    ),
    "a shared beginning of prompts runs once": ("cache_has_layers", "generate_takes_cache"),
    "hidden states are edited in place": ("modules_list_hooks", "functions_name_saved_outputs"),
    "windows attend without copies (CPU)": ("attention_can_be_registered",),
}


def describe_environment() -> Json:
    """The environment as JSON values."""
    import torch

    from pyreft.installed import all_facts

    facts = {fact.name: fact for fact in all_facts()}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "pyreft": pyreft.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: installed_version(package) for package in TESTED},
        "untested": untested(),
        "processor": platform.processor() or platform.machine(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "fast paths": {
            path: all(facts[name].holds for name in names) for path, names in _FAST_PATHS.items()
        },
        "facts": {
            name: {"package": fact.package, "statement": fact.statement, "problem": fact.problem}
            for name, fact in facts.items()
        },
    }


def format_environment(found: Json) -> str:
    """The environment as text."""
    lines = [f"pyreft {found['pyreft']}, Python {found['python']}, {found['platform']}", ""]
    for package, release in found["packages"].items():
        oldest, newest = TESTED[package]
        note = ", NOT TESTED" if package in found["untested"] else ""
        lines.append(
            f"{package:<14}{release or 'not installed':<16}tested {oldest} to {newest}{note}"
        )
    lines += [
        "",
        f"processor     {found['processor']}, {found['vector instructions']}",
        f"cores         {found['cores']}, {found['threads']} threads",
        f"devices       {', '.join(found['devices']) or 'CPU alone'}",
        "",
        "fast paths",
    ]
    lines += [f"  {'on ' if on else 'off'}  {path}" for path, on in found["fast paths"].items()]
    lines += ["", "relied on beyond documented interfaces"]
    for name, fact in found["facts"].items():
        lines.append(f"  {'no ' if fact['problem'] else 'yes'}  {name} ({fact['package']})")
        if fact["problem"]:
            lines.append(f"       {fact['statement']} Found: {fact['problem']}.")
    return "\n".join(lines)
