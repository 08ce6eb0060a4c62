"""A save that is killed, fails or is watched: there is the old adapter or the new one, no mixture.

Save number k has k everywhere: in the config, in each tensor, and in the LoRA that every second
save has.
"""

import gc
import itertools
import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from round_trip import CONFIG, FILES, SAVED, WEIGHTS, assert_same, wrap

from conftest import make_base
from pyreft import ReftConfig, ReftModel, get_reft_model
from pyreft.adapters.fitting import take_adapter
from pyreft.lora.peft_lora import peft_files, peft_tensors
from pyreft.sharing import read_adapter, save_adapter

# PEFT asks an old name of transformers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

KILLS = 100
PEFTS = ["adapter_config.json", "adapter_model.safetensors"]


def numbered_saves():
    """What makes the save of a number: an adapter, and files of PEFT's."""
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    config = ReftConfig(layers=[0], positions="1", rank=2)
    plain = get_reft_model(make_base("llama"), config)
    with_lora = get_reft_model(get_peft_model(make_base("llama"), lora), config)
    with_lora.model.set_adapter("default")  # which learns again
    kinds = [
        (
            take_adapter(m.model, m.adapter_set.first, {}, peft_tensors(m.model)),
            peft_files(m.model) if lora else {},
        )
        for m, lora in ((plain, False), (with_lora, True))
    ]

    def make(number):
        adapter, beside = kinds[number % 2]
        place = replace(adapter.config.representations[0], positions=str(number), intervention=None)
        tensors = {name: torch.full_like(t, number) for name, t in adapter.tensors.items()}
        lora = adapter.lora and adapter.lora | {"lora_alpha": number}
        config = ReftConfig(representations=[place])
        return replace(adapter, config=config, tensors=tensors, lora=lora), beside

    return make


def number_of(adapter):
    """The one number that an adapter has everywhere."""
    (place,) = adapter.config.representations
    found = {float(n) for tensor in adapter.tensors.values() for n in tensor.unique()}
    found |= {float(str(place.positions))}
    found |= {float(adapter.lora["lora_alpha"])} if adapter.lora is not None else set()
    (number,) = found
    assert (adapter.lora is not None) == number % 2
    return int(number)


def save_on_and_on(directory, make, number):
    """In a process of its own, until it is killed; it has begun when this returns."""
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        gc.freeze()  # or collecting garbage would copy the whole of this process
        try:
            os.write(begins, b".")
            while True:
                save_adapter(directory, make(number)[0], beside=make(number)[1])
                number += 1
        finally:
            os._exit(1)
    os.read(begun, 1)
    os.close(begun)
    os.close(begins)
    return child


def kill(child):
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_hundred_kills_leave_the_old_adapter_or_the_new_one(tmp_path):
    make, draw = numbered_saves(), random.Random(0)
    adapter, beside = make(2)
    save_adapter(tmp_path, adapter, beside=beside)
    number, while_saving = 2, 0
    base = make_base("llama")
    for index in itertools.count():
        if index >= KILLS and while_saving > KILLS / 10:
            break
        # Beside a busy neighbour many come too early.
        assert index < 20 * KILLS, "few kills came while an adapter was written"
        child = save_on_and_on(tmp_path, make, number + 1)
        time.sleep(draw.uniform(0, 0.03))
        kill(child)
        while_saving += any(name.endswith(".tmp") for name in os.listdir(tmp_path))
        found = number_of(read_adapter(tmp_path))
        assert found >= number, "an older adapter came back"
        number = found
        if index % 5 == 0:
            loaded = ReftModel.from_pretrained(base, tmp_path)
            assert str(loaded.reft_config.representations[0].positions) == str(number)
            base = loaded.unwrap().unload() if number % 2 else loaded.unwrap()
    for last in (number + 1, number + 2):  # with PEFT's files, and without
        adapter, beside = make(last)
        save_adapter(tmp_path, adapter, beside=beside)
        assert number_of(read_adapter(tmp_path)) == last
    assert set(os.listdir(tmp_path)) == {*FILES, *PEFTS}


def test_a_reader_beside_a_writer_sees_no_mixture(tmp_path):
    make = numbered_saves()
    adapter, beside = make(2)
    save_adapter(tmp_path, adapter, beside=beside)
    child, seen = save_on_and_on(tmp_path, make, 3), [2]
    try:
        while len(set(seen)) < 20:
            seen.append(number_of(read_adapter(tmp_path)))
    finally:
        kill(child)
    assert seen == sorted(seen)


def test_a_first_save_that_was_killed_can_be_saved_again(tmp_path):
    make = numbered_saves()
    for number in (2, 3):
        adapter, beside = make(number)
        directory = tmp_path / str(number)
        save_adapter(directory, adapter, beside=beside)
        (directory / CONFIG).unlink()  # which comes last
        (directory / f".{CONFIG}.123.tmp").write_text("{")
        save_adapter(directory, adapter, beside=beside)
        assert number_of(read_adapter(directory)) == number
        assert not list(directory.glob("*.tmp"))


# ---- what is on the disk, and when ---------------------------------------------------------------


def test_all_files_are_on_the_disk_before_the_first_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append("sync") or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *a: events.append(a[1].name) or rename(*a))
    adapter, beside = numbered_saves()(3)
    save_adapter(tmp_path, adapter, beside=beside)
    assert events == [*["sync"] * 4, WEIGHTS, *PEFTS, CONFIG, "sync"]


@pytest.mark.parametrize("full_at", [1, 2, 3, 4])
def test_a_full_disk_leaves_the_old_adapter(full_at, tmp_path, monkeypatch):
    make, calls = numbered_saves(), []
    adapter, beside = make(2)
    save_adapter(tmp_path, adapter)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(file):
        calls.append(file)
        if len(calls) == full_at:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    adapter, beside = make(3)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(tmp_path, adapter, beside=beside)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert number_of(read_adapter(tmp_path)) == 2


def test_what_killed_saves_left_is_never_read_and_is_taken_away(tmp_path):
    model = wrap()
    model.save_pretrained(tmp_path)
    left = [f".{name}.{process}.tmp" for name in (*FILES, *PEFTS) for process in (1, os.getpid())]
    for name in left:
        (tmp_path / name).write_bytes(b"half of a")
    assert_same(ReftModel.from_pretrained(make_base("llama"), tmp_path), model)
    (tmp_path / "notes.tmp").write_text("mine")
    model.save_pretrained(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([*SAVED, "notes.tmp"])


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / f".{WEIGHTS}.{os.getpid()}.tmp").symlink_to(tmp_path / "mine")
    wrap().save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "mine").read_text() == "mine"


def test_threads_that_save_to_one_directory_wait_for_each_other(tmp_path):
    make, errors = numbered_saves(), []

    def save(numbers):
        try:
            for number in numbers:
                adapter, beside = make(number)
                save_adapter(tmp_path, adapter, beside=beside)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=save, args=[range(i, 12, 2)]) for i in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert number_of(read_adapter(tmp_path)) in (10, 11)
    assert not list(tmp_path.glob("*.tmp"))
