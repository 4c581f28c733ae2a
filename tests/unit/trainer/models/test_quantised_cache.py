"""Quantised copies on the volume: whole or not there, bounded, and never trusted when they differ."""

import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_trainer.models import copies_on_volume, quantised_cache
from lora_trainer.models.bases import BaseModels
from lora_trainer.models.copies_on_volume import Entry, choose_evictions, free_disk
from lora_trainer.models.quantised_cache import NoRoomError, QuantisedCache, key_of

pytestmark = pytest.mark.gpu_stack

FACTS = {"base": "org/model", "revision": "a" * 40}
LARGE = 10**12


def tensors(size=1000):
    return {"a": torch.arange(size, dtype=torch.uint8), "b": torch.ones(3)}


def fill(volume, facts=FACTS, *, used=0.0):
    QuantisedCache(volume, LARGE).write(facts, tensors())
    folder = volume / "quantised-models" / key_of(facts)
    os.utime(folder / "manifest.json", (used, used))
    return folder


def names(volume):
    return sorted(path.name for path in (volume / "quantised-models").iterdir())


@pytest.fixture
def free_disk_bytes(monkeypatch):
    """The bytes that the disk reports as free."""
    reported = SimpleNamespace(free=LARGE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: reported)
    return reported


HOUR = 3600
NOW = 100 * HOUR


@pytest.mark.parametrize(
    ("needed", "most", "free", "expected"),
    [
        (10, 100, 50, ""),
        (10, 65, 50, "a"),
        (31, 65, 50, "ab"),
        (10, 100, 9, "a"),
        (10, 100, -5, "a"),
        (20, 100, -10, "ab"),
        (36, 65, 50, None),
        (66, 65, 500, None),
        (10, 100, -100, None),
    ],
)
def test_room_is_made_from_the_longest_unused_but_never_from_those_in_use(needed, most, free, expected):
    entries = [
        Entry(Path("c"), 30, NOW - HOUR / 2),
        Entry(Path("b"), 10, NOW - 2 * HOUR),
        Entry(Path("a"), 20, NOW - 9 * HOUR),
    ]
    chosen = choose_evictions(entries, needed, most_bytes=most, free_bytes=free, now=NOW)
    assert (None if chosen is None else "".join(entry.folder.name for entry in chosen)) == expected


def test_copy_is_found_by_what_it_was_made_from_and_notes_its_use(tmp_path):
    folder = fill(tmp_path)
    cache = QuantisedCache(tmp_path, LARGE)
    assert cache.find({**FACTS, "revision": "b" * 40}) is None
    assert set(cache.find(FACTS).spans) == {"a", "b"}
    assert (folder / "manifest.json").stat().st_mtime > time.time() - 60


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_checksums(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"checksums":{"a":', '"checksums":{"c":'))


def exchange_facts(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("org/model", "org/other"))


DAMAGES = [
    cut_weights,
    lose_checksums,
    exchange_facts,
    lambda folder: (folder / "manifest.json").write_text("{"),
    lambda folder: (folder / "manifest.json").write_bytes(b" " * 2000),
    lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * (folder / "model.safetensors").stat().st_size),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_foreign_copy_is_removed_with_a_line_in_the_log(tmp_path, caplog, monkeypatch, damage):
    monkeypatch.setattr(quantised_cache, "_MOST_MANIFEST_BYTES", 1900)
    folder = fill(tmp_path)
    damage(folder)
    assert QuantisedCache(tmp_path, LARGE).find(FACTS) is None
    assert not folder.exists()
    assert "org/model is damaged or foreign" in caplog.text


def test_copy_that_the_disk_fails_to_read_is_left_alone(tmp_path, caplog):
    folder = fill(tmp_path)
    (folder / "model.safetensors").unlink()
    assert QuantisedCache(tmp_path, LARGE).find(FACTS) is None
    assert folder.exists()
    assert "can't be read" in caplog.text


def test_two_executions_at_once_write_one_copy(tmp_path):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(QuantisedCache):
        def _write_files(self, *arguments):
            begun.set()
            go_on.wait()
            return super()._write_files(*arguments)

    sizes = []
    thread = threading.Thread(target=lambda: sizes.append(Slow(tmp_path, LARGE).write(FACTS, tensors())))
    thread.start()
    begun.wait()
    assert QuantisedCache(tmp_path, LARGE).write(FACTS, tensors()) == 0
    assert QuantisedCache(tmp_path, LARGE).find(FACTS) is None, "half a copy is none"
    go_on.set()
    thread.join()
    assert sizes[0] > 1000
    assert QuantisedCache(tmp_path, LARGE).write(FACTS, tensors()) == 0
    assert names(tmp_path) == [key_of(FACTS)]


def test_slow_writer_whose_claim_was_cleared_damages_no_other_copy(tmp_path):
    class Slow(QuantisedCache):
        def _write_files(self, folder, *arguments):
            size = super()._write_files(folder, *arguments)
            # Meanwhile another execution clears the claim and makes its own.
            shutil.rmtree(folder.parent)
            folder.parent.mkdir()
            (folder.parent / "of another").mkdir()
            return size

    with pytest.raises(FileNotFoundError):
        Slow(tmp_path, LARGE).write(FACTS, tensors())
    assert names(tmp_path) == [f"{key_of(FACTS)}.writing"]


def test_leftovers_of_killed_writers_are_cleared_and_written_anew(tmp_path):
    claim = tmp_path / "quantised-models" / f"{key_of(FACTS)}.writing"
    (claim / "x").mkdir(parents=True)
    assert QuantisedCache(tmp_path, LARGE).write(FACTS, tensors()) == 0, "it may be alive"
    for path in (claim / "x", claim):
        os.utime(path, (1, 1))
    assert QuantisedCache(tmp_path, LARGE).write(FACTS, tensors()) > 0
    assert names(tmp_path) == [key_of(FACTS)]


def test_training_that_ends_first_leaves_nothing_half_written(tmp_path):
    cache = QuantisedCache(tmp_path, LARGE)
    cache._stop.set()
    assert cache.write(FACTS, tensors()) == 0
    assert names(tmp_path) == []


def test_volume_without_room_gets_no_copy_and_keeps_its_models(tmp_path, free_disk_bytes):
    free_disk_bytes.free = quantised_cache.SPARE_BYTES + 500
    with pytest.raises(NoRoomError, match="too little"):
        QuantisedCache(tmp_path, LARGE).write(FACTS, tensors())
    free_disk_bytes.free = LARGE
    with pytest.raises(NoRoomError, match="too little"):
        QuantisedCache(tmp_path, 500).write(FACTS, tensors())
    assert names(tmp_path) == []


def test_volume_that_fills_up_meanwhile_gets_its_room_back(tmp_path, free_disk_bytes, monkeypatch, caplog):
    monkeypatch.setattr(quantised_cache, "_ROOM_BYTES", 1)
    cache = QuantisedCache(tmp_path, LARGE)
    monkeypatch.setattr(cache, "_make_room", lambda _: setattr(free_disk_bytes, "free", 1))
    with caplog.at_level(logging.INFO):
        cache.begin_writing(FACTS, tensors())
        cache.wait()
    assert "no quantised copy of org/model is kept: the volume filled up meanwhile" in caplog.text
    assert names(tmp_path) == []


def test_only_own_copies_are_evicted_and_the_oldest_first(tmp_path):
    oldest, older = (fill(tmp_path, {"base": name}, used=used) for name, used in (("x", 1), ("y", 2)))
    foreign = tmp_path / "quantised-models" / "of the user"
    foreign.mkdir()
    (foreign / "file").write_bytes(bytes(5000))
    size = sum(file.stat().st_size for file in older.iterdir())
    assert QuantisedCache(tmp_path, 2 * size + 100).write(FACTS, tensors()) > 0
    assert (oldest.exists(), older.exists(), foreign.exists()) == (False, True, True)


def test_download_that_lacks_room_gets_it_from_the_copies(tmp_path, free_disk_bytes, monkeypatch):
    folder = fill(tmp_path, used=1)
    free_disk(tmp_path, 100, spare_bytes=0)
    assert folder.exists(), "there is room enough"
    free_disk_bytes.free = 2 << 30
    removed = []
    monkeypatch.setattr(
        copies_on_volume,
        "remove",
        lambda path: removed.append(path) or setattr(free_disk_bytes, "free", free_disk_bytes.free + 1500),
    )
    BaseModels(tmp_path).check_room("org/model", 1000)
    assert removed == [folder]


def test_download_that_lacks_room_gets_that_of_killed_writers(tmp_path, free_disk_bytes):
    left = tmp_path / "quantised-models" / "abc.writing" / "own"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(100))
    for path in (left / "model.safetensors", left, left.parent):
        os.utime(path, (1, 1))
    free_disk(tmp_path, 100, spare_bytes=0)
    assert left.exists(), "there is room enough"
    free_disk_bytes.free = 50
    free_disk(tmp_path, 100, spare_bytes=0)
    assert names(tmp_path) == []


def test_preparing_a_download_loads_no_torch():
    """It costs seconds, and a machine whose torch is broken could not even say so."""
    code = "import sys, lora_trainer.models.bases; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
