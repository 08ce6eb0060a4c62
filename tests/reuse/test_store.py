"""Memory holds what fits, disk the rest if it may, and nothing outlives what it was made from."""

import gc

import pytest
import torch
from reused import Rows, losses, make_model, make_trainer

from pyreft.memory import in_bytes
from pyreft.reuse.store import State, Store, store_of


def make_state(size=1):
    """Of 1000 bytes, times `size`."""
    return State(torch.randn(5 * size, 25), tuple(torch.randn(5, size, 5) for _ in range(5)))


def assert_same(one, other):
    assert one.tensors().keys() == other.tensors().keys()
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])


def test_memory_holds_the_first_that_fit():
    store, states = Store(), [make_state() for _ in range(4)]
    store.limit(2500, None)
    assert [store.put(i, state) for i, state in enumerate(states)] == [True, True, False, False]
    assert [store.get(i) is None for i in range(4)] == [False, False, True, True]
    assert store.size == 2000


def test_a_smaller_state_takes_the_room_that_is_left():
    store = Store()
    store.limit(2500, None)
    for i, size in enumerate([2, 1]):
        store.put(i, make_state(size))
    store.put(2, State(torch.randn(100), ()))
    assert store.get(2) is not None


def test_a_lower_limit_is_kept_at_once():
    store = Store()
    store.limit(10_000, None)
    for i in range(5):
        store.put(i, make_state())
    store.limit(3000, None)
    assert (len(store), store.size) == (3, 3000)


def test_the_rest_goes_to_a_directory_of_its_own_that_is_deleted(tmp_path):
    (tmp_path / "others").write_text("kept")
    store, states = Store(), [make_state() for _ in range(4)]
    store.limit(2500, str(tmp_path))
    assert all(store.put(i, state) for i, state in enumerate(states))
    assert store.on_disk == 2
    (private,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert private.stat().st_mode & 0o077 == 0
    for i, state in enumerate(states):
        assert_same(store.get(i), state)
    store.require("another model")
    assert (len(store), store.size, list(private.iterdir())) == (0, 0, [])
    store.put(5, make_state(3))
    store.limit(0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["others"]


@pytest.mark.parametrize(("given", "size"), [(5, 5), ("2GB", 2 * 10**9), ("3KiB", 3 * 2**10)])
def test_sizes_are_numbers_or_text(given, size):
    assert in_bytes(given) == size


@pytest.mark.parametrize("given", ["much", "-1GB", -1])
def test_what_is_no_size_is_refused(given, tmp_path):
    with pytest.raises(ValueError, match="2GB"):
        make_trainer(make_model(), tmp_path, reuse_memory=given)


def test_what_is_known_of_a_base_model_goes_with_it(tmp_path):
    model = make_model()
    make_trainer(model, tmp_path, max_steps=1, reuse_disk=str(tmp_path)).train()
    assert len(store_of(model.model)) == 4
    assert list(tmp_path.glob("pyreft-reuse-*"))
    del model
    gc.collect()
    assert not list(tmp_path.glob("pyreft-reuse-*"))


@pytest.mark.parametrize("memory", ["0KB", "2KB", "5KB"])
def test_losses_do_not_depend_on_the_budget(memory, tmp_path):
    runs = []
    for limit in (None, memory):
        trainer = make_trainer(make_model(), tmp_path, reuse_memory=limit)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == losses(runs[1])
    assert runs[1].reuse.report.bytes <= in_bytes(memory)
    assert runs[1].reuse.report.misses > runs[0].reuse.report.misses


def test_losses_do_not_depend_on_the_disk(tmp_path):
    runs = []
    for settings in ({}, {"reuse_memory": "5KB", "reuse_disk": tmp_path / "disk"}):
        trainer = make_trainer(make_model(), tmp_path, **settings)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == losses(runs[1])
    assert runs[1].reuse.report.misses == len(Rows())
    assert runs[1].reuse.report.on_disk > 0


def scale_in_place(base):
    with torch.no_grad():
        base.model.layers[0].mlp.down_proj.weight.mul_(2)


def scale_behind_autograds_back(base):
    base.model.layers[0].mlp.down_proj.weight.data.mul_(2)


def replace(base):
    weight = base.model.layers[0].mlp.down_proj.weight
    base.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(weight * 2, requires_grad=False)


def use_other_attention(base):
    base.set_attn_implementation("eager")


@pytest.mark.parametrize(
    "change", [scale_in_place, scale_behind_autograds_back, replace, use_other_attention]
)
def test_a_changed_base_model_makes_what_is_known_anew(change, tmp_path):
    model = make_model()
    make_trainer(model, tmp_path).train()
    change(model.model)
    trainer = make_trainer(model, tmp_path)
    trainer.train()
    assert trainer.reuse.report.misses == len(Rows())
    assert trainer.reuse.report.held == len(Rows())
