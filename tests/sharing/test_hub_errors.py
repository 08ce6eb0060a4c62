"""What the Hub refuses is said with what to do, and leaves the repository as it was."""

import logging
import threading

import huggingface_hub
import pytest
import torch
from hub_answers import HubError
from hub_server import HubServer, connect
from huggingface_hub import constants
from round_trip import IDS, assert_same, wrap

from conftest import make_base
from pyreft import AdapterError, ReftModel

# What huggingface_hub does without Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that nobody is logged in to, with an adapter of alice's."""
    with HubServer() as server:
        server.tokens |= {"alices": "alice", "bobs": "bob", "readers": "alice"}
        server.read_only.add("readers")
        connect(server, monkeypatch, tmp_path / "cache")
        # Between attempts, of which there are several.
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        wrap().push_to_hub("alice/adapter", token="alices")
        yield server


def load(name, **where):
    """Load, or leave the base model as it was."""
    base = make_base("llama")
    before = base(IDS).logits
    try:
        return ReftModel.from_pretrained(base, name, **where)
    except AdapterError:
        assert torch.equal(base(IDS).logits, before)
        raise


def fail(hub, part, error):
    """Have requests fail whose "METHOD path" contains a part."""

    def before(request):
        if part in request:
            raise error

    hub.before = before


# ---- reading -------------------------------------------------------------------------------------


def test_a_log_line_says_that_the_hub_is_asked(hub, caplog):
    with caplog.at_level(logging.WARNING):
        load("alice/adapter")
    assert f"There is no directory 'alice/adapter' here: asking the Hub ({hub.url})" in caplog.text


def test_a_directory_of_that_name_comes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, asked = wrap(seed=2), len(hub.requests)
    model.save_pretrained("alice/adapter")
    assert_same(load("alice/adapter"), model)
    assert len(hub.requests) == asked
    with pytest.raises(AdapterError, match="is a directory here, which has no revisions"):
        load("alice/adapter", revision="main")
    assert_same(
        ReftModel.load("alice/adapter", make_base("llama"), from_huggingface_hub=True), wrap()
    )


@pytest.mark.parametrize("settings", [{}, {"private": True}])
def test_a_repository_that_is_not_there_or_private(settings, hub):
    if settings:
        hub.add("alice/secret", hub.files("alice/adapter"), **settings)
    both = r"there is no directory 'alice/secret' here, and reft_config\.json of alice/secret "
    both += (
        rf"cannot be downloaded from the Hub \({hub.url}\): there is no such repository, or it is "
    )
    both += r"private \({}\): check the spelling; for a private one log in .* or pass token="
    with pytest.raises(AdapterError, match=both.format(401)):
        load("alice/secret")
    with pytest.raises(AdapterError, match=both.format(404)):
        load("alice/secret", token="bobs")
    if settings:
        assert_same(load("alice/secret", token="alices"), wrap())


def test_a_token_that_is_not_valid(hub):
    with pytest.raises(AdapterError, match=r"the token is not valid or missing \(401\): log in"):
        load("alice/adapter", token="nobodys")


def test_a_gated_repository(hub):
    hub.add("alice/gated", hub.files("alice/adapter"), gated=True)
    for token, status in ((None, 401), ("bobs", 403)):
        with pytest.raises(AdapterError, match=rf"access is gated \({status}\): ask for it"):
            load("alice/gated", token=token)
    assert_same(load("alice/gated", token="alices"), wrap())


def test_a_revision_or_a_folder_that_is_not_there(hub):
    with pytest.raises(AdapterError, match=r"revision 'v9', .* no such revision \(404\)"):
        load("alice/adapter", revision="v9")
    with pytest.raises(AdapterError, match=r"no/reft_config\.json of .* no such file \(404\)"):
        load("alice/adapter", subfolder="no")
    with pytest.raises(AdapterError, match=r"cannot be downloaded"):
        load("alice/adapter", subfolder="../adapter")


@pytest.mark.parametrize("name", ["reft_config.json", "reft_model.safetensors"])
def test_a_repository_without_one_of_the_files_is_no_adapter(name, hub):
    files = {path: data for path, data in hub.files("alice/adapter").items() if path != name}
    hub.add("alice/half", files)
    with pytest.raises(AdapterError, match=rf"{name} of alice/half.* no such file \(404\)"):
        load("alice/half")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (HubError(403, "no"), r"the token may not do that \(403\)"),
        (HubError(403, "Access to this resource is disabled."), r"is disabled \(403\)"),
        (HubError(500, "on fire"), "500"),
        (ConnectionResetError(), "disconnected"),
    ],
)
def test_a_hub_that_fails(error, message, hub):
    fail(hub, "/resolve/", error)
    with pytest.raises(AdapterError, match=message):
        load("alice/adapter")


def test_a_hub_that_is_not_there(hub, monkeypatch):
    huggingface_hub.close_session()
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    # huggingface_hub 1.3 tries again with what it has closed.
    with pytest.raises(AdapterError, match=r"there is no directory .*(ConnectError|closed)"):
        load("alice/adapter")
    with pytest.raises(AdapterError, match=r"cannot be pushed.*(ConnectError|closed)"):
        wrap().push_to_hub("alice/adapter")


def test_what_lies_in_a_repository_is_checked_as_ever(hub):
    hub.add("alice/bad", hub.files("alice/adapter") | {"reft_config.json": b"\xff[[[["})
    with pytest.raises(AdapterError, match="cannot read"):
        load("alice/bad")
    with pytest.raises(AdapterError, match="is an adapter for"):
        ReftModel.from_pretrained(make_base("gpt2"), "alice/adapter")


# ---- pushing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, r"the token is not valid or missing \(401\): log in"),
        ("nobodys", r"the token is not valid or missing \(401\)"),
        ("bobs", r"the token may not do that \(403\): log in .* of a user who may"),
        ("readers", r"the token may not do that \(403\)"),
    ],
)
@pytest.mark.parametrize("name", ["alice/adapter", "alice/new"])
def test_who_may_not_push_is_told(name, token, message, hub):
    before = hub.files("alice/adapter")
    with pytest.raises(AdapterError, match=rf"'{name}' cannot be pushed to the Hub .*{message}"):
        wrap(seed=2).push_to_hub(name, token=token)
    assert hub.files("alice/adapter") == before
    assert "alice/new" not in hub.repos


@pytest.mark.parametrize("name", ["a/b/c", "../x", "name with spaces", ""])
def test_a_name_that_is_none_is_refused(name, hub):
    with pytest.raises(AdapterError, match="cannot be pushed"):
        wrap().push_to_hub(name, token="alices")


@pytest.mark.parametrize("status", [409, 412])
def test_a_push_that_another_one_came_before_is_refused(status, hub):
    before = hub.files("alice/adapter")
    fail(hub, "/commit/", HubError(status, "A commit has happened since."))
    with pytest.raises(AdapterError, match=rf"changed the repository meanwhile \({status}\)"):
        wrap(seed=2).push_to_hub("alice/adapter", token="alices")
    assert hub.files("alice/adapter") == before


@pytest.mark.parametrize("part", ["/preupload/", "/objects/batch", "PUT /upload", "/commit/"])
@pytest.mark.parametrize("error", [HubError(500, "on fire"), ConnectionResetError()])
def test_a_push_that_is_cut_short_leaves_the_old_adapter(part, error, hub):
    fail(hub, part, error)
    with pytest.raises(AdapterError, match=r"cannot be pushed.*(500|disconnected)"):
        wrap(seed=2).push_to_hub("alice/adapter", token="alices")
    hub.before = lambda request: None
    assert_same(load("alice/adapter"), wrap())


def test_of_two_pushes_at_once_one_is_there_whole(hub):
    models = [wrap(layers=[0], seed=2), wrap(kind="noreft", layers=[1, 2])]
    together = threading.Barrier(2)

    def before(request):
        if "/commit/" in request:
            together.wait()

    def push(model):
        model.push_to_hub("alice/adapter", token="alices")

    hub.before = before
    threads = [threading.Thread(target=push, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load("alice/adapter")
    assert_same(found, models[len(found.interventions) - 1])
