"""The folder that vLLM serves from: who may write where, and what a server finds there meanwhile."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from safetensors.numpy import load_file

from lora_contract.serving import MARKER_NAME, Marker, serving_name, whole_serving_name
from lora_trainer.errors import NotServedError
from lora_trainer.run import served_adapters
from lora_trainer.run.served_adapters import ServedAdapters
from tests.unit.trainer.run.served import BASE, loaded_value, make_adapter, served_value

JOB = "0a1b2c3d-0000-4000-8000-000000000001"
TWIN = "0a1b2c3d-0000-4000-8000-000000000002"
NAME = serving_name(JOB)


@pytest.fixture(params=["exchange", "two renames"])
def served(tmp_path, monkeypatch, request):
    if request.param == "two renames":
        monkeypatch.setattr(served_adapters, "exchange", lambda one, other: False)
    return ServedAdapters(tmp_path / "lora-adapters")


def place(served, tmp_path, value, *, job=JOB, run="run-1", is_current=lambda: True):
    adapter = make_adapter(tmp_path / f"artifact-{job}-{run}", value)
    names = [serving_name(job), whole_serving_name(job)]
    return served.place(adapter, names, job_id=job, run_id=run, is_current=is_current)


def hidden(served):
    return [path for path in served.folder.iterdir() if path.name.startswith(".")]


def age(path, seconds):
    os.utime(path, (time.time() - seconds,) * 2)


def test_adapter_is_found_by_name_and_readable_by_everybody(served, tmp_path):
    before = os.umask(0o077)
    try:
        assert place(served, tmp_path, 1.0) == NAME
    finally:
        os.umask(before)
    assert served_value(served.folder, NAME) == 1.0
    assert hidden(served) == []
    assert served.folder.stat().st_mode & 0o777 == 0o755
    assert (served.folder / NAME).stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in (served.folder / NAME).iterdir()} == {0o644}


def test_newer_attempt_replaces_its_adapter_and_keeps_the_old_for_readers(served, tmp_path):
    place(served, tmp_path, 1.0)
    assert place(served, tmp_path, 2.0, run="run-2") == NAME
    assert served_value(served.folder, NAME) == 2.0
    [old] = hidden(served)
    assert loaded_value(old) == 1.0
    age(old, 4000)
    place(served, tmp_path, 3.0, run="run-3")
    assert not old.exists()


def test_another_jobs_folder_is_never_replaced(served, tmp_path):
    place(served, tmp_path, 1.0)
    assert place(served, tmp_path, 2.0, job=TWIN) == whole_serving_name(TWIN)
    assert served_value(served.folder, NAME) == 1.0
    assert served_value(served.folder, whole_serving_name(TWIN)) == 2.0


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_nobody_has_marked_is_left_alone(served, tmp_path, kind):
    path = served.folder / NAME
    served.folder.mkdir()
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(make_adapter(tmp_path / "elsewhere", 9.0))
    else:
        make_adapter(path, 9.0)
    assert place(served, tmp_path, 1.0) == whole_serving_name(JOB)
    assert path.read_text() == "mine" if kind == "file" else served_value(served.folder, NAME) == 9.0


def test_no_name_left_is_told_and_nothing_is_left_behind(served, tmp_path):
    for name in (NAME, whole_serving_name(JOB)):
        make_adapter(served.folder / name, 9.0)
    with pytest.raises(NotServedError, match="Others have the names"):
        place(served, tmp_path, 1.0)
    assert hidden(served) == []


def test_execution_that_was_replaced_puts_nothing_there(served, tmp_path):
    place(served, tmp_path, 2.0, run="run-2")
    with pytest.raises(NotServedError, match="taken over"):
        place(served, tmp_path, 1.0, is_current=lambda: False)
    assert served_value(served.folder, NAME) == 2.0
    assert hidden(served) == []


def test_full_volume_is_told_before_anything_is_written(tmp_path):
    served = ServedAdapters(tmp_path / "lora-adapters", least_free_bytes=10**18)
    with pytest.raises(NotServedError, match="no room"):
        place(served, tmp_path, 1.0)
    assert list(served.folder.iterdir()) == []


def test_two_jobs_that_finish_together_are_both_there(served, tmp_path):
    barrier = threading.Barrier(2)

    def meet():
        barrier.wait(timeout=60)
        return True

    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(place, served, tmp_path, 1.0 + n, job=job, is_current=meet) for n, job in enumerate((JOB, TWIN))
        ]
        names = [run.result(timeout=60) for run in runs]
    assert len(set(names)) == 2
    assert NAME in names
    assert [served_value(served.folder, name) for name in names] == [1.0, 2.0]


def test_server_that_reads_meanwhile_finds_one_adapter_or_the_other(tmp_path):
    served = ServedAdapters(tmp_path / "lora-adapters")
    place(served, tmp_path, 1.0)
    if not served_adapters.exchange(served.folder / NAME, make_adapter(tmp_path / "probe", 1.0)):
        pytest.skip("this file system can't exchange two folders")
    served_adapters.exchange(served.folder / NAME, tmp_path / "probe")
    ended, found = threading.Event(), set()

    def read():
        while not ended.is_set():
            found.add(served_value(served.folder, NAME))

    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read)
        for number in range(2, 30):
            place(served, tmp_path, float(number), run=f"run-{number}")
        ended.set()
        reading.result(timeout=60)
    assert None not in found
    assert found <= {float(number) for number in range(1, 30)}


def test_removed_adapter_is_unknown_to_new_servers_and_zero_for_old_ones(served, tmp_path):
    place(served, tmp_path, 1.0)
    assert served.remove({"run-1", "never served"}) == {}
    assert served_value(served.folder, NAME) is None
    left = load_file(served.folder / NAME / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in left} == {"v_proj"}, "the smallest module"
    assert {tensor.shape for tensor in left.values()} == {(4, 8), (8, 4)}
    assert loaded_value(served.folder / NAME) == 0.0
    assert hidden(served) == [], "nothing of the adapter stays"
    assert served.remove({"run-1"}) == {}


def test_removal_that_can_not_look_everywhere_says_what_it_did_not_find(served, tmp_path, monkeypatch):
    place(served, tmp_path, 1.0)
    assert served.remove({"never served"}) == {}
    monkeypatch.setattr(served_adapters, "_MAX_FOLDERS", 1)
    wrong = served.remove({"run-1", "never served"})
    assert list(wrong) == ["never served"]
    assert "is not in the 1 folders that were looked at" in wrong["never served"]
    assert served_value(served.folder, NAME) is None


def test_place_of_a_removed_adapter_is_cleared_after_a_week(served, tmp_path):
    place(served, tmp_path, 1.0)
    served.remove({"run-1"})
    assert place(served, tmp_path, 2.0, job=TWIN) == whole_serving_name(TWIN)
    assert place(served, tmp_path, 3.0, run="run-2") == NAME
    assert served_value(served.folder, NAME) == 3.0
    served.remove({"run-2"})
    marker = Marker.model_validate_json((served.folder / NAME / MARKER_NAME).read_bytes())
    past = marker.model_copy(update={"removed_at": time.time() - 8 * 86_400})
    (served.folder / NAME / MARKER_NAME).write_text(past.model_dump_json())
    served.remove(set())
    assert not (served.folder / NAME).exists()
    assert place(served, tmp_path, 4.0, job=TWIN, run="run-4") == NAME
    assert served_value(served.folder, NAME) == 4.0
    assert served_value(served.folder, whole_serving_name(TWIN)) is None, "no adapter is served under two names"


def test_removal_of_one_run_leaves_the_adapter_of_a_newer_one(served, tmp_path):
    place(served, tmp_path, 1.0)
    place(served, tmp_path, 2.0, run="run-2")
    assert len(hidden(served)) == 1
    served.remove({"run-1"})
    assert served_value(served.folder, NAME) == 2.0
    assert hidden(served) == [], "what was kept of the removed one for its readers is gone, too"


def test_unreadable_adapter_is_removed_without_zeros_in_its_place(served, tmp_path):
    place(served, tmp_path, 1.0)
    (served.folder / NAME / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    served.remove({"run-1"})
    assert list(served.folder.iterdir()) == []


def test_alias_holds_an_exact_copy_and_is_replaced_by_another(served, tmp_path):
    place(served, tmp_path, 1.0)
    place(served, tmp_path, 2.0, job="other", run="run-2")
    served.set_alias("bot:live", NAME)
    assert served_value(served.folder, "bot:live") == 1.0
    first = (served.folder / "bot:live").stat().st_ino
    served.set_alias("bot:live", NAME)
    assert (served.folder / "bot:live").stat().st_ino == first, "it holds that already"
    served.set_alias("bot:live", serving_name("other"))
    assert served_value(served.folder, "bot:live") == 2.0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        original = served.folder / serving_name("other") / name
        assert (served.folder / "bot:live" / name).read_bytes() == original.read_bytes()


def test_alias_goes_with_its_adapter_and_can_be_removed_alone(served, tmp_path):
    place(served, tmp_path, 1.0)
    served.set_alias("bot:live", NAME)
    served.remove_alias("bot:live")
    assert served_value(served.folder, "bot:live") is None
    assert served_value(served.folder, NAME) == 1.0
    served.set_alias("bot:live", NAME)
    assert served_value(served.folder, "bot:live") == 1.0
    served.remove({"run-1"})
    assert served_value(served.folder, "bot:live") is None
    served.remove_alias("never:set")


def test_alias_of_nothing_or_over_somebodys_folder_is_refused(served, tmp_path):
    with pytest.raises(NotServedError, match="No adapter"):
        served.set_alias("bot:live", NAME)
    place(served, tmp_path, 1.0)
    make_adapter(served.folder / "bot:live", 9.0)
    with pytest.raises(NotServedError, match="something else"):
        served.set_alias("bot:live", NAME)
    with pytest.raises(NotServedError, match="something else"):
        served.remove_alias("bot:live")
    served.remove({"run-1"})
    with pytest.raises(NotServedError, match="No adapter"):
        served.set_alias("bot:next", NAME)
    assert served_value(served.folder, "bot:live") == 9.0


def test_base_model_of_a_removed_adapter_is_named_nowhere(served, tmp_path):
    place(served, tmp_path, 1.0)
    served.remove({"run-1"})
    assert BASE not in (served.folder / NAME / "adapter_config.json").read_text()
