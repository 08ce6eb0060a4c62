"""Links: inside an adapter's directory, or its repository in the Hub's cache, and nowhere else."""

import shutil

import pytest
from round_trip import CONFIG, FILES, WEIGHTS, assert_same, wrap

from conftest import make_base
from pyreft import AdapterError, ReftModel


@pytest.fixture
def cached(tmp_path):
    """A snapshot in the Hub's cache, all of whose files are links to blobs, and the model."""
    model = wrap()
    model.save_pretrained(tmp_path / "saved")
    repository = tmp_path / "hub" / "models--user--adapter"
    snapshot = repository / "snapshots" / "0123abcd" / "sub"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name in FILES:
        shutil.copy(tmp_path / "saved" / name, repository / "blobs" / f"blob-{name}")
        (snapshot / name).symlink_to(f"../../../blobs/blob-{name}")
    return snapshot, model


def load(directory):
    return ReftModel.from_pretrained(make_base("llama"), directory)


def test_a_snapshot_of_the_hubs_cache_is_read(cached, tmp_path):
    snapshot, model = cached
    assert_same(load(snapshot), model)
    (tmp_path / "mine").symlink_to(snapshot)
    assert_same(load(tmp_path / "mine"), model)


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_a_repository_of_the_cache_is_refused(name, cached, tmp_path):
    snapshot, _ = cached
    (snapshot / name).unlink()
    (snapshot / name).symlink_to(f"../../../../../saved/{name}")
    with pytest.raises(AdapterError, match=rf"{name} is a link to .*saved.*outside"):
        load(snapshot)


def test_a_blob_that_is_a_link_out_of_the_repository_is_refused(cached, tmp_path):
    snapshot, _ = cached
    blob = (snapshot / WEIGHTS).resolve()
    blob.unlink()
    blob.symlink_to(tmp_path / "saved" / WEIGHTS)
    with pytest.raises(AdapterError, match="outside"):
        load(snapshot)


def test_links_inside_a_directory_and_to_one_are_followed(tmp_path):
    model = wrap()
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "versions").mkdir()
    (tmp_path / "adapter" / WEIGHTS).rename(tmp_path / "adapter" / "versions" / "1")
    (tmp_path / "adapter" / WEIGHTS).symlink_to("versions/1")
    (tmp_path / "latest").symlink_to("adapter")
    assert_same(load(tmp_path / "latest"), model)


def test_a_save_into_the_cache_leaves_its_blobs_alone(cached):
    snapshot, _ = cached
    blob = (snapshot / CONFIG).resolve()
    before = blob.read_bytes()
    other = wrap(positions="f1")
    other.save_pretrained(snapshot)
    assert blob.read_bytes() == before
    assert_same(load(snapshot), other)
