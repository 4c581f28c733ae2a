"""The doctor names aliases that lead to deleted adapters, and those that can't be served."""

from __future__ import annotations

from lora_worker.doctor.aliases import examine_aliases
from tests.unit.worker.versions.made import alias


def test_aliases_that_are_live_or_on_their_way_are_well() -> None:
    assert examine_aliases([]) == []
    (check,) = examine_aliases([alias(placed=True, served=True), alias()])
    assert check.ok
    assert "2 aliases" in check.finding


def test_alias_of_a_deleted_adapter_is_named_with_what_to_do() -> None:
    gone = [alias(name=f"z{number}", deleted=True, problem="any") for number in range(7)]
    (check,) = examine_aliases([*gone, alias(placed=True, served=True)])
    assert check.ok is False
    assert check.finding.startswith("z0:live, z1:live, z2:live, z3:live, z4:live and 2 more lead to adapters")
    assert "rollback NAME" in check.remedy


def test_alias_that_can_not_be_served_says_why() -> None:
    (check,) = examine_aliases([alias(problem="the volume is full")])
    assert (check.ok, check.finding) == (False, "zebras:live is not served yet: the volume is full")


def test_of_many_that_can_not_be_served_none_is_left_out_silently() -> None:
    checks = examine_aliases([alias(name=f"z{number}", problem="the volume is full") for number in range(7)])
    assert [check.ok for check in checks] == [False] * 6
    assert checks[4].finding.startswith("z4:live is not served yet")
    assert (checks[5].finding, checks[5].remedy) == (
        "2 more aliases are not served yet", "`lora-worker aliases` lists them and says why"
    )  # fmt: skip
