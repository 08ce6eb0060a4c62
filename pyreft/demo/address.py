"""The page on an address of this machine."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pyreft.demo.playground import Playground
from pyreft.demo.runs import Runs
from pyreft.demo.uploads import MAX_BYTES
from pyreft.sharing import Adapter

logger = logging.getLogger(__name__)

_OF_THIS_MACHINE = ("127.0.0.1", "localhost", "::1")


def serve(
    model: str,
    adapters: Sequence[str],
    runs: Path,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    browser: bool = True,
    token: str | None = None,
    max_prompt: int = 2048,
) -> None:
    """Load a model and adapters, and serve the page until the process is interrupted.

    Nothing is sent anywhere, and no other machine reaches the page unless `host` says so.

    Args:
        model: Name or directory of a causal language model.
        adapters: Names or directories of adapters.
        runs: For the directories of training runs.
        host: The address to listen at.
        port: The port; by default the first free one from 7860.
        browser: Whether to open the page in a browser.
        token: Of the Hub.
        max_prompt: The most tokens of a prompt.

    Raises:
        ImportError: If gradio is not installed.
        AdapterError: If an adapter is refused.
        ValueError: If it is no causal language model.
        OSError: If the port is taken.
    """
    if find_spec("gradio") is None:
        raise ImportError("the page needs gradio: pip install 'pyreft[demo]'.")
    if host not in _OF_THIS_MACHINE:
        logger.warning(
            "Whoever reaches %s may run the model, upload adapters and train there.", host
        )
    # Read by gradio when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    playground = Playground.load(model, token, max_prompt)
    found: dict[str, Adapter] = {}
    for name in adapters:
        label = Path(name).name
        found[name if label in found else label] = playground.find(name, token)
    from pyreft.demo.page import CSS, THEME, make_page

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["GRADIO_TEMP_DIR"] = scratch
        page = make_page(Runs(playground, runs), found, Path(scratch))
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            ssr_mode=False,
            run_history=False,
            mcp_server=False,
            footer_links=[],
            max_file_size=MAX_BYTES,
            prevent_thread_lock=True,
            theme=THEME,
            css=CSS,
        )
        print(f"The page is at {address} (Ctrl-C ends).", flush=True)
        page.block_thread()
