"""Prints the digests of the logits of adapters that alice pushed: hub_reader.py NAME..."""

import json
import sys

import huggingface_hub
from test_hub import digest

from pyreft import ReftModel

# What conftest does for all tests, and not for this process.
huggingface_hub.constants.HF_HUB_OFFLINE = False

print(
    json.dumps({name: digest(ReftModel.from_pretrained(f"alice/{name}")) for name in sys.argv[1:]})
)
