"""Plans are carried out once, whatever fails on the way: each fault is one sentence, and the next apply finishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_worker.deployment.applying import Applier, delete
from lora_worker.deployment.file import parse_specification
from lora_worker.deployment.planning import ActionKind, Plan, plan_deployment
from lora_worker.deployment.removal import plan_removal
from lora_worker.deployment.specification import Specification
from lora_worker.deployment.survey import look_at_resources, take_survey
from lora_worker.errors import DeploymentError, ServiceRefusedError, WorkerError
from tests.unit.worker.deployment.fake_account import Account
from tests.unit.worker.deployment.fake_api import KEY, Waits, client

TEXT = """
name = "trainer"
image = "ghcr.io/me/trainer:1"
registry = "mine"
env = { LORA_TRAINER_KEEP_DAYS = "7" }
[gpu]
pools = ["AMPERE_80"]
excluded_types = ["NVIDIA A100-SXM4-80GB"]
[workers]
max = 2
[[volumes]]
name = "models"
size_gb = 50
data_center = "EU-RO-1"
"""


def specification(text: str = TEXT) -> Specification:
    return parse_specification(text, Path("deploy.toml"))


SPECIFICATION = specification()


@pytest.fixture
def account() -> Account:
    account = Account()
    account.add("registries", name="mine")
    account.add("registries", name="another")
    account.add("serverless", name="of somebody else", env={"TOKEN": "s"})
    return account


async def planned(account: Account, wanted: Specification = SPECIFICATION) -> Plan:
    async with client(account, Waits()) as api:
        return plan_deployment(wanted, await take_survey(api, wanted))


async def applied(account: Account, wanted: Specification = SPECIFICATION) -> Waits:
    """Plan and apply once, as the command does; what was said is in the result."""
    waits = Waits()
    async with client(account, waits) as api:
        survey = await take_survey(api, wanted)
        plan = plan_deployment(wanted, survey)
        if plan.needed:
            await Applier(api, wanted, waits.said.append).apply(plan.actions, survey)
    return waits


async def destroyed(account: Account, *, with_volumes: bool = True) -> None:
    async with client(account, Waits()) as api:
        plan = plan_removal(SPECIFICATION, await look_at_resources(api), with_volumes=with_volumes)
        await delete(api, plan.needed)


def ours(account: Account) -> dict[str, Any]:
    (endpoint,) = [item for item in account.endpoints.values() if item["name"] == "trainer"]
    return endpoint


async def test_apply_makes_all_once_and_destroy_leaves_nothing(account: Account) -> None:
    await applied(account)
    assert account.writes == ["POST network-volumes", "POST serverless"]
    (volume,) = account.volumes.values()
    endpoint = ours(account)
    assert endpoint["networkVolumes"] == [volume["id"]]
    assert endpoint["registry"] == "re1"
    assert endpoint["dataCenterIds"] == ["EU-RO-1"]
    assert endpoint["timeout"] == 43_200_000
    assert endpoint["workers"] == {"min": 0, "max": 2, "idleTimeout": 30}

    await applied(account)
    assert (await planned(account)).needed == ()
    assert len(account.writes) == 2

    await destroyed(account)
    assert account.writes[2:] == ["DELETE serverless", "DELETE network-volumes"]
    assert [item["name"] for item in account.endpoints.values()] == ["of somebody else"]
    assert account.volumes == {}
    await destroyed(account)
    assert len(account.writes) == 4


@pytest.mark.parametrize(
    ("status", "carried_out"), [(500, False), (500, True), (503, False), (503, True), (429, False)]
)
@pytest.mark.parametrize("call", ["POST network-volumes", "POST serverless"])
async def test_a_fault_of_a_creation_makes_no_second_resource(
    account: Account, call: str, status: int, carried_out: bool
) -> None:
    account.fail(call, status, carried_out=carried_out)
    await applied(account)
    assert len(account.volumes) == 1
    assert ours(account)["networkVolumes"] == list(account.volumes)
    assert (await planned(account)).needed == ()
    assert account.writes.count(call) == (1 if carried_out else 2)


@pytest.mark.parametrize("call", ["POST network-volumes", "POST serverless", "GET serverless", "GET network-volumes"])
async def test_a_lasting_fault_is_one_sentence_and_the_next_apply_finishes(account: Account, call: str) -> None:
    account.fail(call, 500, times=50)
    with pytest.raises(WorkerError, match=r"^RunPod failed \(500\)[^\n]*$"):
        await applied(account)
    account.faults.clear()
    await finishes(account)


@pytest.mark.parametrize("kind", ["network-volumes", "serverless"])
async def test_apply_finishes_what_was_made_and_never_seen(account: Account, kind: str) -> None:
    account.fail(f"POST {kind}", 500, carried_out=True, then=f"GET {kind}")
    with pytest.raises(WorkerError):
        await applied(account)
    account.faults.clear()
    await finishes(account)


async def finishes(account: Account) -> None:
    await applied(account)
    assert len(account.volumes) == 1
    assert ours(account)["networkVolumes"] == list(account.volumes)
    assert (await planned(account)).needed == ()


@pytest.mark.parametrize("call", ["PATCH serverless", "PATCH network-volumes"])
@pytest.mark.parametrize("carried_out", [False, True])
async def test_a_fault_of_a_change_is_retried(account: Account, call: str, carried_out: bool) -> None:
    await applied(account)
    larger = specification(TEXT.replace("size_gb = 50", "size_gb = 60").replace("max = 2", "max = 4"))
    account.fail(call, 500, carried_out=carried_out)
    await applied(account, larger)
    assert ours(account)["workers"]["max"] == 4
    assert next(iter(account.volumes.values()))["size"] == 60
    assert (await planned(account, larger)).needed == ()


@pytest.mark.parametrize("call", ["DELETE serverless", "DELETE network-volumes"])
@pytest.mark.parametrize("carried_out", [False, True])
async def test_a_fault_of_a_deletion_leaves_nothing_over(account: Account, call: str, carried_out: bool) -> None:
    await applied(account)
    account.fail(call, 500, carried_out=carried_out)
    await destroyed(account)
    assert [item["name"] for item in account.endpoints.values()] == ["of somebody else"]
    assert account.volumes == {}


async def test_a_volume_still_held_by_ending_workers_is_deleted_later(account: Account) -> None:
    await applied(account)
    account.fail("DELETE network-volumes", 409, times=3)
    await destroyed(account)
    assert account.volumes == {}


async def test_a_volume_of_another_endpoint_is_kept(account: Account) -> None:
    await applied(account)
    (volume,) = account.volumes
    account.add("serverless", name="inference", networkVolumes=[volume])
    await destroyed(account)
    assert list(account.volumes) == [volume]


async def test_destroy_keeps_volumes_unless_they_are_asked_for(account: Account) -> None:
    await applied(account)
    await destroyed(account, with_volumes=False)
    assert len(account.volumes) == 1


DRIFTS: list[tuple[str, dict[str, Any]]] = [
    ("image", {"image": "ghcr.io/me/trainer:0"}),
    ("registry", {"registry": None}),
    ("registry", {"registry": "re2"}),
    ("disk_gb", {"disk": 20}),
    ("disk_gb", {"disk": None}),
    ("env", {"env": {}}),
    ("env", {"env": {"LORA_TRAINER_KEEP_DAYS": "7", "MORE": "1"}}),
    ("gpu.pools", {"gpu": {"pools": ["ADA_24"], "excludedTypes": ["NVIDIA A100-SXM4-80GB"], "count": 1,
                           "minCudaVersion": "12.6", "allowedCudaVersions": []}}),
    ("gpu.excluded_types", {"gpu": {"pools": ["AMPERE_80"], "count": 1, "minCudaVersion": "12.6"}}),
    ("gpu.count", {"gpu": {"pools": ["AMPERE_80"], "excludedTypes": ["NVIDIA A100-SXM4-80GB"], "count": 2,
                           "minCudaVersion": "12.6"}}),
    ("gpu.min_cuda", {"gpu": {"pools": ["AMPERE_80"], "excludedTypes": ["NVIDIA A100-SXM4-80GB"], "count": 1,
                              "minCudaVersion": None}}),
    ("allowed CUDA versions", {"gpu": {"pools": ["AMPERE_80"], "excludedTypes": ["NVIDIA A100-SXM4-80GB"], "count": 1,
                                       "minCudaVersion": "12.6", "allowedCudaVersions": ["12.8"]}}),
    ("workers.min", {"workers": {"min": 1, "max": 2, "idleTimeout": 30}}),
    ("workers.max", {"workers": {"min": 0, "max": 0, "idleTimeout": 30}}),
    ("workers.idle_seconds", {"workers": {"min": 0, "max": 2, "idleTimeout": 5}}),
    ("workers.queue_delay_seconds", {"scaling": {"type": "REQUEST_COUNT", "requestCount": 1}}),
    ("workers.execution_seconds", {"timeout": 300_000}),
    ("workers.flashboot", {"flashboot": "FLASHBOOT"}),
    ("data_centers", {"dataCenterIds": []}),
    ("volumes", {"networkVolumes": []}),
    ("volumes", {"networkVolumes": ["vanished"]}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "drift"), DRIFTS, ids=lambda value: str(value)[:60])
async def test_drift_of_each_setting_is_named_and_mended(account: Account, key: str, drift: dict[str, Any]) -> None:
    await applied(account)
    endpoint = ours(account)
    before = dict(endpoint)
    endpoint.update(drift)
    (action,) = (await planned(account)).needed
    assert action.kind is ActionKind.UPDATE
    assert [change.key for change in action.changes] == [key]
    await applied(account)
    assert ours(account) == before
    assert account.writes[2:] == ["PATCH serverless"]


async def test_drift_of_variables_shows_no_value(account: Account) -> None:
    await applied(account)
    ours(account)["env"] = {"SOMEBODYS_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz"}
    (action,) = (await planned(account)).needed
    (change,) = action.changes
    assert change.now == "LORA_TRAINER_KEEP_DAYS is not set, SOMEBODYS_TOKEN is set"
    assert "hf_" not in str(action)


async def test_a_vanished_volume_is_made_again_and_attached(account: Account) -> None:
    await applied(account)
    (lost,) = account.volumes
    del account.volumes[lost]
    plan = await planned(account)
    assert [(action.kind, action.resource) for action in plan.needed] == [
        ("create", "network volume"), ("update", "endpoint"),
    ]  # fmt: skip
    assert f"{lost} (gone)" in plan.needed[1].changes[0].now
    assert "deploy prefetch" in plan.needed[1].note
    await finishes(account)
    assert list(account.volumes) != [lost]


async def test_a_volume_that_left_the_file_is_detached_and_named(account: Account) -> None:
    await applied(account)
    bare = specification(TEXT[: TEXT.index("[[volumes]]")])
    plan = await planned(account, bare)
    assert "the network volume models is taken from the endpoint and kept" in " ".join(plan.notes)
    await applied(account, bare)
    assert ours(account)["networkVolumes"] == []
    assert len(account.volumes) == 1


async def test_an_endpoint_named_by_flashboot_is_found(account: Account) -> None:
    await applied(account)
    ours(account)["name"] = "trainer -fb"
    assert (await planned(account)).needed == ()


@pytest.mark.parametrize("change", [{"type": "LOAD_BALANCER"}, {"gpu": None, "cpu": [{"id": "cpu5c"}]}], ids=str)
async def test_an_endpoint_that_can_not_be_changed_is_replaced(account: Account, change: dict[str, Any]) -> None:
    await applied(account)
    former = ours(account)
    former.update(change)
    (action,) = (await planned(account)).needed
    assert action.kind is ActionKind.REPLACE
    account.fail("POST serverless", 500, times=50)
    with pytest.raises(WorkerError):
        await applied(account)
    account.faults.clear()
    await finishes(account)
    assert ours(account)["id"] != former["id"]


async def test_an_endpoint_whose_gpu_can_not_be_read_is_not_replaced(account: Account) -> None:
    await applied(account)
    ours(account)["gpu"] = "new shape"
    (action,) = (await planned(account)).needed
    assert action.kind is ActionKind.UPDATE


@pytest.mark.parametrize(
    ("kind", "fields", "sentence"),
    [
        ("serverless", {"name": "trainer"}, "RunPod holds 2 endpoints named trainer (se"),
        ("network-volumes", {"name": "models"}, "RunPod holds 2 network volumes named models (ne"),
        ("registries", {"name": "mine"}, "RunPod holds 2 registry credentials named mine (re1, "),
    ],
)
async def test_two_of_one_name_are_refused_and_nothing_is_called(
    account: Account, kind: str, fields: dict[str, Any], sentence: str
) -> None:
    await applied(account)
    before = list(account.writes)
    account.add(kind, **fields)
    with pytest.raises(DeploymentError) as caught:
        await applied(account)
    assert str(caught.value).startswith(sentence)
    assert "delete or rename the others" in str(caught.value)
    if kind != "registries":
        with pytest.raises(DeploymentError):
            await destroyed(account)
    assert account.writes == before


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        ({"dataCenter": "US-KS-2"}, "is in US-KS-2, and the file says EU-RO-1: a volume can't move"),
        ({"size": 80}, "has 80 GB, and the file says 50: a volume can't be reduced; write size_gb = 80"),
    ],
)
async def test_a_volume_that_can_not_become_as_wanted_is_refused(
    account: Account, volume: dict[str, Any], sentence: str
) -> None:
    account.add("network-volumes", **{"name": "models", "size": 50, "dataCenter": "EU-RO-1", **volume})
    with pytest.raises(DeploymentError) as caught:
        await applied(account)
    assert sentence in str(caught.value)
    assert account.writes == []


@pytest.mark.parametrize("call", ["POST network-volumes", "POST serverless"])
async def test_a_key_without_the_right_to_write_is_named_and_heals(account: Account, call: str) -> None:
    account.fail(call, 403, times=5)
    with pytest.raises(
        ServiceRefusedError, match=r"^RunPod's API key has no right to make the [^\n]*\(403\)"
    ) as caught:
        await applied(account)
    assert KEY not in str(caught.value)
    account.faults.clear()
    await finishes(account)


async def test_a_setting_that_runpod_does_not_take_is_told(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(kind: str, made: dict[str, Any]) -> None:
        made.pop("timeout", None)

    monkeypatch.setattr(account, "_complete", forgetful)
    with pytest.raises(DeploymentError, match=r"still differs from the file \(endpoint trainer: workers.execution"):
        await applied(account)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('["AMPERE_80"]', '["AMPER_80"]', "gpu.pools: RunPod has no pool AMPER_80; AMPERE_80 may be meant"),
        ("A100-SXM4-80GB", "A100-SXM4-80", "gpu.excluded_types: NVIDIA A100-SXM4-80 is no GPU type of these pools; "
         "NVIDIA A100-SXM4-80GB may be meant"),
        ('["NVIDIA A100-SXM4-80GB"]', '["NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"]', "leaves no GPU type"),
        ('registry = "mine"', 'registry = "yours"', "RunPod holds no registry credentials named yours"),
    ],
)  # fmt: skip
async def test_names_are_checked_against_what_runpod_has(account: Account, old: str, new: str, sentence: str) -> None:
    assert old in TEXT
    with pytest.raises(DeploymentError) as caught:
        await planned(account, specification(TEXT.replace(old, new)))
    assert sentence in str(caught.value)


async def test_a_plan_tells_price_and_stock_of_each_pool(account: Account) -> None:
    text = TEXT.replace('["AMPERE_80"]', '["AMPERE_80", "ADA_80_PRO"]\ncount = 2')
    first, second = (await planned(account, specification(text))).offers
    assert (first.pool, first.gpus, first.usd_per_hour, first.stock) == ("AMPERE_80", ("A100 PCIe",), 5.48, "MEDIUM")
    assert (second.pool, second.usd_per_hour, second.stock) == ("ADA_80_PRO", 8.36, "LOW")


async def test_a_plan_warns_of_a_moving_tag_and_an_unknown_place(account: Account) -> None:
    text = TEXT.replace("EU-RO-1", "EU-R0-1").replace("trainer:1", "trainer:latest")
    notes = " ".join((await planned(account, specification(text))).notes)
    assert "no data centre EU-R0-1; EU-RO-1 may be meant" in notes
    assert "the image trainer has no tag that stays" in notes
