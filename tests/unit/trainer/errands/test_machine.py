"""The checks that need no GPU: each can pass, and each can fail."""

import os
from collections import namedtuple

import pytest

from lora_contract.errands import FitnessCheck
from lora_trainer.errands import machine
from lora_trainer.errands.examination import as_unfit
from lora_trainer.errors import UnfitError
from lora_trainer.run import volume as volume_module
from lora_trainer.run.volume import mounted_volume

Usage = namedtuple("Usage", "total used free")


def meminfo(tmp_path, kilobytes):
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:       99999999 kB\nMemAvailable:   {kilobytes} kB\n")
    return path


def test_memory_of_the_machine_is_checked(tmp_path):
    assert "8.2 GB" in machine.check_memory(meminfo(tmp_path, 8_000_000), tmp_path)
    with pytest.raises(UnfitError, match=r"1\.0 GB of main memory are available, and 4 are needed"):
        machine.check_memory(meminfo(tmp_path, 1_000_000), tmp_path)


def test_memory_limit_of_the_container_counts(tmp_path):
    (tmp_path / "memory.max").write_text("5000000000\n")
    (tmp_path / "memory.current").write_text("4000000000\n")
    with pytest.raises(UnfitError, match=r"1\.0 GB"):
        machine.check_memory(meminfo(tmp_path, 80_000_000), tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    assert "81.9 GB" in machine.check_memory(meminfo(tmp_path, 80_000_000), tmp_path)


def test_system_without_meminfo_is_not_called_unfit(tmp_path):
    assert "Not checked" in machine.check_memory(tmp_path / "none", tmp_path)


def test_volume_that_works_keeps_nothing_of_the_check(tmp_path):
    assert "reads it back" in machine.check_volume(tmp_path / "volume")
    assert list((tmp_path / "volume").iterdir()) == []


def test_volume_that_is_no_folder_fails(tmp_path):
    (tmp_path / "volume").write_text("a file")
    with pytest.raises(UnfitError, match="can't be written: File exists"):
        machine.check_volume(tmp_path / "volume")


def test_volume_over_its_quota_fails_and_nothing_is_left(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(machine.os, "fsync", refuse)
    with pytest.raises(UnfitError, match="Disk quota exceeded"):
        machine.check_volume(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_volume_that_reads_back_other_bytes_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.Path, "read_bytes", lambda _: b"other")
    with pytest.raises(UnfitError, match="other bytes"):
        machine.check_volume(tmp_path)


def test_disk_with_too_little_room_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(0, 0, 10**9))
    assert "1.0 GB" in machine.check_disk([tmp_path], 10**9)
    with pytest.raises(UnfitError, match="LORA_TRAINER_LEAST_FREE_GB"):
        machine.check_disk([tmp_path], 2 * 10**9)


def test_error_names_failed_checks_and_no_others():
    checks = [FitnessCheck(name="gpu", ok=False, finding="None."), FitnessCheck(name="disk", ok=True, finding="Room.")]
    assert "gpu: None." in as_unfit(checks).message
    assert "disk" not in as_unfit(checks).message
    assert as_unfit(checks[1:]) is None


def test_folder_where_no_volume_is_mounted_is_not_taken_for_one(tmp_path, monkeypatch):
    """Libraries create /runpod-volume for their caches; what is written there is lost with the container."""
    monkeypatch.setattr(volume_module, "MOUNTS", (tmp_path,))
    assert mounted_volume(None) is None
    assert mounted_volume(tmp_path / "configured") == tmp_path / "configured"


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="only Linux mounts /proc")
def test_mount_that_cannot_be_written_is_not_taken(monkeypatch):
    monkeypatch.setattr(volume_module, "MOUNTS", (volume_module.Path("/proc"),))
    monkeypatch.setattr(volume_module.os, "access", lambda *_: False)
    assert mounted_volume(None) is None
    monkeypatch.setattr(volume_module.os, "access", lambda *_: True)
    assert mounted_volume(None) == volume_module.Path("/proc")
