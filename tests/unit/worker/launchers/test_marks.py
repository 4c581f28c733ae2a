"""The names by which a project's launches are found again in a cloud's account."""

import pytest

from lora_worker.launchers.marks import launch_name, project_mark, run_of_name

RUN_ID = "0b5c1f2e-58a9-4a0b-9d0f-6b8f9a2d4c11"


def test_mark_is_the_same_however_the_address_is_written() -> None:
    assert project_mark("https://abc.supabase.co") == project_mark("https://ABC.supabase.co/")
    assert project_mark("https://abc.supabase.co") != project_mark("https://abd.supabase.co")
    assert len(project_mark("https://abc.supabase.co")) == 10


def test_run_is_found_by_the_name_of_its_launch() -> None:
    name = launch_name(RUN_ID)
    assert name == "lora-0b5c1f2e58a94a0b9d0f6b8f9a2d4c11"
    assert run_of_name(name) == run_of_name(f"{name}-2") == RUN_ID


@pytest.mark.parametrize("name", ["", "lora-", "lora-abc", f"lora-{RUN_ID}", "lora-" + "a" * 33, "my-lora-" + "a" * 32])
def test_name_of_anything_else_is_no_runs(name: str) -> None:
    assert run_of_name(name) is None
