"""What a `HubServer` answers: the part of the Hub's HTTP interface that adapters use.

Large files go through LFS as on the Hub; it offers no Xet, for which the client must set
HF_HUB_DISABLE_XET.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

# What the Hub's own .gitattributes puts into LFS.
LARGE = (".safetensors", ".bin", ".pt", ".pth")


class HubError(Exception):
    """An answer that is an error, with the headers by which the client tells errors apart."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Repository:
    """Commits by hash, branches and pull requests by name, and messages of what was pushed."""

    owner: str
    private: bool = False
    gated: bool = False
    commits: dict = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict = field(default_factory=lambda: {"main": "0" * 40})
    messages: list = field(default_factory=list)

    def resolve(self, revision):
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, ref, files):
        commit = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[commit], self.refs[ref] = files, commit
        return commit


class Handler(BaseHTTPRequestHandler):
    """Answers for the server that is its `hub`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Say nothing."""

    def _answer(self):
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), url.path
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = f"{self.command} {unquote(path)}"
        try:
            self.hub.requests.append(request)
            self.hub.before(request)
            with self.hub.lock:
                self._route(path)
        except HubError as error:
            names = {"X-Error-Message": error.message, "X-Error-Code": error.code}
            self._send(
                {"error": error.message}, error.status, **{k: v for k, v in names.items() if v}
            )
        except Exception:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815 - as http.server calls them

    def _route(self, path):
        for method, pattern, handle in _ROUTES:
            if method == self.command.replace("HEAD", "GET") and (
                found := re.fullmatch(pattern, path)
            ):
                return handle(self, *map(unquote, found.groups(default="")))
        raise HubError(404, f"no such page: {self.command} {path}")

    def _send(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # ---- who may do what ----------------------------------------------------------------------

    def _token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _user(self):
        token = self._token()
        if token is not None and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return None if token is None else self.hub.tokens[token]

    def _readable(self, repo_id):
        user, repo = self._user(), self.hub.repos.get(repo_id)
        if repo is None or (repo.private and user != repo.owner):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repo

    def _content(self, repo_id):
        repo = self._readable(repo_id)
        if repo.gated and self._user() != repo.owner:
            raise HubError(403 if self._user() else 401, "Access is restricted", "GatedRepo")
        return repo

    def _writable(self, repo_id):
        repo = self._readable(repo_id)
        self._require_writer(repo.owner)
        return repo

    def _require_writer(self, owner):
        user = self._user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user != owner or self._token() in self.hub.read_only:
            raise HubError(403, f"You don't have the rights to write to {owner}")

    # ---- the interface ------------------------------------------------------------------------

    def whoami(self):
        if (user := self._user()) is None:
            raise HubError(401, "Invalid username or password.")
        self._send({"type": "user", "name": user, "auth": {}, "orgs": []})

    def create(self):
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self._user()
        self._require_writer(owner)
        repo_id = f"{owner}/{wanted['name']}"
        there = repo_id in self.hub.repos
        if not there:
            private = wanted.get("private") or wanted.get("visibility") == "private"
            self.hub.repos[repo_id] = Repository(owner, private=bool(private))
        error = {"error": "You already created this model repo"} if there else {}
        self._send({"url": f"{self.hub.url}/{repo_id}", **error}, 409 if there else 200)

    def info(self, repo_id, revision="main"):
        repo = self._readable(repo_id)
        commit = repo.resolve(revision)
        siblings = [{"rfilename": path} for path in sorted(repo.commits[commit])]
        self._send({"id": repo_id, "sha": commit, "private": repo.private, "siblings": siblings})

    def tree(self, repo_id, revision, folder=""):
        repo = self._content(repo_id)
        files = repo.commits[repo.resolve(revision)]
        inside = {path: data for path, data in files.items() if path.startswith(folder)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
            for path, data in sorted(inside.items())
        ]
        self._send(entries)

    def refs(self, repo_id):
        refs = self._readable(repo_id).refs
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in refs.items()]
        self._send({"branches": listed, "converts": [], "tags": [], "pullRequests": []})

    def branch(self, repo_id, name):
        repo = self._writable(repo_id)
        if name in repo.refs:
            raise HubError(409, f"Reference {name} already exists")
        repo.refs[name] = repo.resolve(json.loads(self.body or b"{}").get("startingPoint", "main"))
        self._send({})

    def preupload(self, repo_id, revision):
        repo = self._readable(repo_id) if self._proposes() else self._writable(repo_id)
        there = repo.commits[repo.resolve(revision)]
        files = [
            {
                "path": wanted["path"],
                "uploadMode": "lfs" if wanted["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": _remote_oid(wanted["path"], there),
            }
            for wanted in json.loads(self.body)["files"]
        ]
        self._send({"files": files})

    def _proposes(self):
        return self.query.get("create_pr") == ["1"]

    def batch(self, repo_id):
        self._readable(repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            one = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/upload/{wanted['oid']}"}
                verify = {"href": f"{self.hub.url}/verify/{repo_id}"}
                one["actions"] = {"upload": upload, "verify": verify}
            objects.append(one)
        self._send({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "the content does not have this hash")
        self.hub.objects[oid] = self.body
        self._send({})

    def verify(self, repo_id):
        wanted = json.loads(self.body)
        if len(self.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(400, "the object was not uploaded")
        self._send({})

    def commit(self, repo_id, revision):
        repo = self._readable(repo_id) if self._proposes() else self._writable(repo_id)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        head = repo.resolve(revision)
        if header["value"].get("parentCommit", head) != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[head])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                del files[value["path"]]
        ref = f"refs/pr/{len(repo.refs)}" if self._proposes() else revision
        commit = repo.commit(ref, files)
        repo.messages.append(header["value"]["summary"])
        answer = {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit}
        if self._proposes():
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{ref[8:]}"
        self._send({"success": True, **answer})

    def validate(self):
        self._send({"errors": [], "warnings": []})

    def resolve(self, repo_id, revision, path):
        repo = self._content(repo_id)
        commit = repo.resolve(revision)
        data = repo.commits[commit].get(path)
        about = {"X-Repo-Commit": commit}
        if data is None:
            code = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send({"error": "Entry not found"}, 404, **code, **about)
        elif path.endswith(LARGE):
            oid = hashlib.sha256(data).hexdigest()
            self.hub.objects[oid] = data
            about |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": len(data)}
            self._send(b"", 302, Location=f"{self.hub.cdn}/cdn/{oid}", **about)
        else:
            self._send(data, ETag=f'"{_git_oid(data)}"', **about)

    def large(self, oid):
        assert "Authorization" not in self.headers, "a token went to another host"
        self._send(self.hub.objects[oid], ETag=f'"{oid}"')


def _git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _remote_oid(path, files):
    if path not in files:
        return None
    return (
        hashlib.sha256(files[path]).hexdigest() if path.endswith(LARGE) else _git_oid(files[path])
    )


_REPO = "([^/]+/[^/]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("GET", f"/api/models/{_REPO}", Handler.info),
    ("GET", f"/api/models/{_REPO}/revision/([^/]+)", Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    ("GET", f"/api/models/{_REPO}/refs", Handler.refs),
    ("POST", f"/api/models/{_REPO}/branch/([^/]+)", Handler.branch),
    ("POST", f"/api/models/{_REPO}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/api/models/{_REPO}/commit/([^/]+)", Handler.commit),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/upload/([0-9a-f]+)", Handler.upload),
    ("POST", f"/verify/{_REPO}", Handler.verify),
    ("GET", f"/{_REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", "/cdn/([0-9a-f]+)", Handler.large),
]
