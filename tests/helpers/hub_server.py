"""A Hub on localhost: the part of the Hugging Face Hub's HTTP interface that adapters use.

    with HubServer() as hub:        # hub.url goes into HF_ENDPOINT
        hub.tokens["secret"] = "alice"

Repositories are commits in memory: {path: content}. Nothing of a push is seen before its commit.
"""

import re
import threading
from http.server import ThreadingHTTPServer

import huggingface_hub
import transformers.utils.hub
from hub_answers import Handler, Repository
from huggingface_hub import constants


class HubServer:
    """The server, in threads of this process.

    Attributes:
        tokens: The user of each token.
        read_only: Tokens that may not write.
        repos: Repositories by "owner/name".
        requests: "METHOD path" of every request so far.
        before: Called with "METHOD path" before each request; may raise HubError, or anything else
            to drop the connection without an answer.
    """

    def __init__(self):
        self.tokens, self.read_only, self.repos, self.objects = {}, set(), {}, {}
        self.requests, self.before, self.lock = [], lambda request: None, threading.Lock()
        # Large files come from another host, as on the Hub.
        handler = type("Handler", (Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        hub, cdn = self._servers
        self.url = f"http://127.0.0.1:{hub.server_port}"
        self.cdn = f"http://localhost:{cdn.server_port}"

    def __enter__(self):
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        huggingface_hub.close_session()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def files(self, repo_id, revision="main"):
        """The files of a repository, {path: content}."""
        repo = self.repos[repo_id]
        return repo.commits[repo.resolve(revision)]

    def add(self, repo_id, files, revision="main", **settings):
        """Commit files directly, into a new repository if there is none."""
        repo = self.repos.setdefault(repo_id, Repository(repo_id.split("/")[0], **settings))
        before = repo.commits[repo.refs.get(revision, repo.refs["main"])]
        return repo.commit(revision, before | files)

    def downloads(self, repo_id):
        """Paths that were asked for inside a repository."""
        pattern = rf"\w+ /{repo_id}/resolve/[^/]+/(.+)"
        return {m[1] for r in self.requests if (m := re.fullmatch(pattern, r))}


def connect(hub, monkeypatch, cache, token=None):
    """Make `huggingface_hub` in this process, which was told at import to be offline, ask it.

    A process of its own has HF_ENDPOINT for it.
    """
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # What functions outside a class of huggingface_hub's and older transformers use.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
