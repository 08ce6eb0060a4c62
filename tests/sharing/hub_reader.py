"""Prints the digests of the logits of adapters that alice pushed: hub_reader.py NAME..."""

import json
import sys

import huggingface_hub
from test_hub import digest

from pyreft import ReftModel

# What conftest does for all tests, and not for this process.
huggingface_hub.constants.HF_HUB_OFFLINE = False


def load(name):
    model = ReftModel.from_pretrained(f"alice/{name}")
    if name == "several":
        model.load_adapter(f"alice/{name}", "other", subfolder="other")
        model.set_adapter("other")
    return model


print(json.dumps({name: digest(load(name)) for name in sys.argv[1:]}))
