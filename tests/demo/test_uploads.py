"""Uploaded directories: read by the loader, or refused as it refuses them."""

import os
import shutil

import pytest
from hostile import CASES, TRACE
from playground_of import ask, make_playground, save_adapter

from pyreft import AdapterError
from pyreft.demo import uploads
from pyreft.demo.choice import Choice
from pyreft.demo.uploads import read_upload

PROMPT = "what do dogs like?"


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    return make_playground(tmp_path_factory.mktemp("playground"))


@pytest.fixture(scope="module")
def saved(playground, tmp_path_factory):
    given = {"layers": [0], "positions": "l1", "rank": 2}
    return save_adapter(playground.base, tmp_path_factory.mktemp("adapter") / "good", **given)


def files(directory):
    return [str(path) for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]


def test_an_uploaded_adapter_is_the_one_in_the_directory(playground, saved):
    uploaded = read_upload(playground, files(saved))
    expected = ask(playground, PROMPT, Choice(playground.read(saved))).adapter
    assert ask(playground, PROMPT, Choice(uploaded)).adapter == expected


@pytest.mark.parametrize("name", list(CASES["plain"])[::8])
def test_hostile_files_are_refused_as_the_loader_refuses_them(playground, saved, tmp_path, name):
    directory = tmp_path / "upload"
    shutil.copytree(saved, directory)
    CASES["plain"][name](directory)
    try:
        playground.read(directory)
        refused = None
    except AdapterError as error:
        refused = type(error)
    if refused is None:
        read_upload(playground, files(directory))
    else:
        with pytest.raises(refused):
            read_upload(playground, files(directory))
    assert os.environ.get(TRACE) is None
    assert ask(playground, PROMPT).base


def test_errors_do_not_say_where_the_server_keeps_files(playground, saved, tmp_path):
    for path in files(saved):
        shutil.copy(path, tmp_path)
    (tmp_path / "reft_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"the upload/reft_config\.json") as caught:
        read_upload(playground, files(tmp_path))
    assert "/tmp" not in str(caught.value)


def test_a_directory_without_an_adapter_is_refused(playground, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "evil.py").write_text("import os")
    with pytest.raises(AdapterError, match=r"it needs reft_config.json"):
        read_upload(playground, files(tmp_path))


def test_a_directory_of_several_adapters_is_refused(playground, saved, tmp_path):
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(saved, tmp_path / name)
    with pytest.raises(AdapterError, match="several times"):
        read_upload(playground, files(tmp_path))


def test_an_adapter_that_is_too_large_is_refused(playground, saved, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_BYTES", 100)
    with pytest.raises(AdapterError, match="name its directory in the command"):
        read_upload(playground, files(saved))
