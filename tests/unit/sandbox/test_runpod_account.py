"""The rules between templates, volumes, registries and endpoints of the local RunPod's account."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox.runpod.rest.account import Account
from sandbox.runpod.rest.catalog import Catalog
from sandbox.runpod.rest.problems import ProblemError
from sandbox.runpod.rest.quota import Quota
from sandbox.runpod.rest.requests import (
    CreateEndpoint,
    CreateRegistry,
    CreateTemplate,
    CreateVolume,
    GpuQuery,
    Model,
    UpdateEndpoint,
    UpdateTemplate,
    UpdateVolume,
    parse_body,
    parse_query,
)

PLAIN = {
    "name": "trainer",
    "type": "QUEUE",
    "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
    "gpu": {"pools": ["AMPERE_24"]},
    "image": "trainer:1",
}
BY_REQUESTS = {"type": "REQUEST_COUNT", "requestCount": 1}
TEMPLATE = {"name": "trainer", "image": "trainer:1", "serverless": True, "env": {"A": "1", "B": "1"}, "disk": 40}


@pytest.fixture
def account() -> Account:
    return Account(Catalog(), lambda: 1_764_000_000, "http://127.0.0.1:1/v2")


def body(model: type[Model], fields: dict[str, Any]) -> Model:
    return parse_body(model, json.dumps(fields).encode())


def endpoint(account: Account, **fields: Any) -> dict[str, Any]:
    return account.create_endpoint(body(CreateEndpoint, {**PLAIN, **fields}))


def change(account: Account, endpoint_id: str, **fields: Any) -> dict[str, Any]:
    return account.update_endpoint(endpoint_id, body(UpdateEndpoint, fields))


def volume(account: Account, **fields: Any) -> dict[str, Any]:
    return account.create_volume(body(CreateVolume, {"name": "v", "size": 50, "dataCenter": "EU-RO-1", **fields}))


def template(account: Account, **fields: Any) -> dict[str, Any]:
    return account.create_template(body(CreateTemplate, {**TEMPLATE, **fields}))


class TestBodies:
    @pytest.mark.parametrize(
        ("fields", "finding"),
        [
            ({"executionTimeoutMs": 1}, "$.executionTimeoutMs"),
            ({"workers": {"maximum": 3}}, "$.workers.maximum"),
            ({"workers": {"idleTimeout": 0}}, "$.workers.idleTimeout"),
            ({"timeout": "300000"}, "$.timeout"),
            ({"timeout": 1.5}, "$.timeout"),
            ({"env": {"A": 1}}, "$.env.A"),
            ({"env": None}, "env must not be null"),
            ({"name": ""}, "$.name"),
            ({"flashboot": True}, "$.flashboot"),
            ({"gpu": {"pools": []}}, "$.gpu.pools"),
            ({"gpu": {"pools": ["AMPERE_24"], "excludedTypes": ["NVIDIA L4"] * 2}}, "the entries must differ"),
            ({"scaling": {"type": "QUEUE_DELAY", "requestCount": 1}}, "queueDelay"),
            ({"type": "LOAD_BALANCER"}, "scales by REQUEST_COUNT"),
        ],
    )
    def test_a_body_that_is_not_as_described_is_refused(self, fields: dict[str, Any], finding: str) -> None:
        with pytest.raises(ProblemError) as refused:
            body(CreateEndpoint, {**PLAIN, **fields})
        assert refused.value.status == 422
        assert finding in " ".join(refused.value.errors)

    def test_an_endpoint_needs_an_image_or_a_template(self) -> None:
        fields = {name: value for name, value in PLAIN.items() if name != "image"}
        with pytest.raises(ProblemError) as refused:
            body(CreateEndpoint, fields)
        assert refused.value.status == 422
        assert body(CreateEndpoint, {**fields, "templateId": "t"}).template_id == "t"

    def test_null_removes_a_registry_and_nothing_else(self) -> None:
        assert body(UpdateTemplate, {"registry": None}).given() == {"registry": None}
        for fields in ({"name": None}, {"disk": None}):
            with pytest.raises(ProblemError):
                body(UpdateTemplate, fields)

    def test_refusals_name_no_password(self) -> None:
        with pytest.raises(ProblemError) as refused:
            body(CreateRegistry, {"name": "r", "username": "", "password": "hunter2", "x": 1})
        assert "hunter2" not in " ".join(refused.value.errors)

    def test_text_that_is_not_json_is_a_bad_request(self) -> None:
        with pytest.raises(ProblemError) as refused:
            parse_body(CreateEndpoint, b"{")
        assert refused.value.status == 400

    def test_a_change_of_a_volume_changes_something(self) -> None:
        with pytest.raises(ProblemError):
            body(UpdateVolume, {})


class TestVolumes:
    def test_names_are_not_unique(self, account: Account) -> None:
        assert volume(account)["id"] != volume(account)["id"]
        assert [one["name"] for one in account.volumes.values()] == ["v", "v"]

    def test_a_volume_grows_and_does_not_shrink(self, account: Account) -> None:
        made = volume(account)
        assert account.update_volume(made["id"], body(UpdateVolume, {"size": 60}))["size"] == 60
        with pytest.raises(ProblemError, match="can't be reduced"):
            account.update_volume(made["id"], body(UpdateVolume, {"size": 50}))

    def test_an_attached_volume_is_not_deleted(self, account: Account) -> None:
        made = volume(account)
        holder = endpoint(account, networkVolumes=[made["id"]])
        with pytest.raises(ProblemError, match="attached"):
            account.delete_volume(made["id"])
        account.delete_endpoint(holder["id"])
        account.delete_volume(made["id"])
        assert account.volumes == {}

    @pytest.mark.parametrize("fields", [{"dataCenter": "XX-1"}, {"dataCenter": "US-CA-2"}])
    def test_a_data_centre_must_have_volumes(self, account: Account, fields: dict[str, str]) -> None:
        with pytest.raises(ProblemError):
            volume(account, **fields)

    def test_a_missing_volume_is_refused(self, account: Account) -> None:
        with pytest.raises(ProblemError, match="no network volume gone"):
            endpoint(account, networkVolumes=["gone"])
        assert account.endpoints.all() == []


class TestTemplates:
    def test_a_template_belongs_to_one_endpoint_and_goes_with_it(self, account: Account) -> None:
        made = template(account)
        first = endpoint(account, templateId=made["id"])
        with pytest.raises(ProblemError, match="bound to another"):
            endpoint(account, templateId=made["id"])
        with pytest.raises(ProblemError, match="in use"):
            account.delete_template(made["id"])
        account.delete_endpoint(first["id"])
        assert account.templates == {}

    def test_an_endpoint_overrides_its_template_and_merges_variables(self, account: Account) -> None:
        made = endpoint(account, templateId=template(account)["id"], env={"B": "2"}, image="trainer:2")
        assert (made["image"], made["disk"], made["env"]) == ("trainer:2", 40, {"A": "1", "B": "2"})

    def test_a_later_change_of_the_template_changes_no_endpoint(self, account: Account) -> None:
        made = template(account)
        user = endpoint(account, templateId=made["id"])
        account.update_template(made["id"], body(UpdateTemplate, {"disk": 99}))
        assert account.endpoints.get(user["id"]).shown["disk"] == 40

    def test_only_serverless_templates_make_endpoints(self, account: Account) -> None:
        with pytest.raises(ProblemError) as refused:
            endpoint(account, templateId=template(account, serverless=False)["id"])
        assert refused.value.status == 422
        with pytest.raises(ProblemError) as missing:
            endpoint(account, templateId="gone")
        assert missing.value.status == 404

    def test_serverless_templates_have_no_mounts(self, account: Account) -> None:
        with pytest.raises(ProblemError, match="no mounts"):
            template(account, mounts={"persistent": {"size": 20, "path": "/workspace"}})

    def test_deleted_credentials_leave_the_templates_but_not_endpoints(self, account: Account) -> None:
        made = account.create_registry(body(CreateRegistry, {"name": "r", "username": "u", "password": "p"}))
        assert made == {"id": made["id"], "name": "r"}
        kept = template(account, registry=made["id"])
        user = endpoint(account, registry=made["id"])
        with pytest.raises(ProblemError, match="in use"):
            account.delete_registry(made["id"])
        change(account, user["id"], registry=None)
        account.delete_registry(made["id"])
        assert account.templates[kept["id"]]["registry"] is None


class TestEndpoints:
    def test_what_is_not_said_has_the_documented_default(self, account: Account) -> None:
        made = endpoint(account)
        assert made["timeout"] == 300_000
        assert made["workers"] == {"min": 0, "max": 3, "idleTimeout": 10}
        assert made["gpu"] == {"pools": ["AMPERE_24"], "count": 1, "allowedCudaVersions": [], "minCudaVersion": None}
        assert made["flashboot"] == "OFF"
        assert made["requestUrls"]["status"] == f"http://127.0.0.1:1/v2/{made['id']}/status/{{job_id}}"

    @pytest.mark.parametrize(
        ("fields", "finding"),
        [
            ({"gpu": {"pools": ["HOPPER_9"]}}, "no GPU pool"),
            ({"gpu": {"pools": ["AMPERE_24"], "excludedTypes": ["NVIDIA H200"]}}, "not a GPU type of the pools"),
            ({"gpu": {"pools": ["HOPPER_141"], "excludedTypes": [" NVIDIA H200"]}}, "leaves no GPU type"),
            (
                {"gpu": {"pools": ["AMPERE_24"], "allowedCudaVersions": ["12.8"], "minCudaVersion": "12.4"}},
                "exclude each other",
            ),
            ({"cpu": [{"id": "cpu5c", "vcpuCount": 4}]}, "Exactly one"),
            ({"scaling": BY_REQUESTS, "workers": {"idleTimeout": 5}}, "does not apply"),
            ({"workers": {"min": 4, "max": 3}}, "above workers.max"),
            ({"dataCenterIds": ["XX-1"]}, "no data center"),
            ({"timeout": 8 * 24 * 3_600_000}, "timeout must be"),
            ({"registry": "gone"}, "no such registry"),
            ({"env": {f"V{number}": "" for number in range(51)}}, "More than 50"),
        ],
    )
    def test_fields_that_do_not_fit_together_are_refused(
        self, account: Account, fields: dict[str, Any], finding: str
    ) -> None:
        with pytest.raises(ProblemError, match=finding) as refused:
            endpoint(account, **fields)
        assert refused.value.status == 400
        assert account.endpoints.all() == []

    def test_scaling_by_requests_has_no_idle_timeout(self, account: Account) -> None:
        made = endpoint(account)
        assert change(account, made["id"], scaling=BY_REQUESTS)["workers"] == {"min": 0, "max": 3}
        with pytest.raises(ProblemError, match="does not apply"):
            change(account, made["id"], workers={"idleTimeout": 5})
        delayed = change(account, made["id"], scaling=PLAIN["scaling"])
        assert delayed["workers"] == {"min": 0, "max": 3, "idleTimeout": 10}

    def test_other_pools_remove_the_exclusions_and_a_count_does_not(self, account: Account) -> None:
        made = endpoint(account, gpu={"pools": ["AMPERE_24"], "excludedTypes": ["NVIDIA L4 "]})
        assert made["gpu"]["excludedTypes"] == ["NVIDIA L4"]
        assert change(account, made["id"], gpu={"count": 2})["gpu"]["excludedTypes"] == ["NVIDIA L4"]
        assert "excludedTypes" not in change(account, made["id"], gpu={"pools": ["ADA_24"]})["gpu"]

    def test_a_refused_change_changes_nothing(self, account: Account) -> None:
        before = dict(endpoint(account))
        with pytest.raises(ProblemError):
            change(account, before["id"], name="other", workers={"min": 9})
        assert account.endpoints.get(before["id"]).shown == before

    def test_a_change_of_the_container_makes_a_release_and_scaling_does_not(self, account: Account) -> None:
        made = endpoint(account)
        change(account, made["id"], workers={"max": 5}, timeout=600_000, name="other")
        change(account, made["id"], image="trainer:2")
        change(account, made["id"], image="trainer:2")
        configuration = account.endpoints.get(made["id"])
        assert [release["version"] for release in configuration.releases] == [2, 1]
        assert configuration.releases[0]["diff"] == [{"field": "image", "old": "trainer:1", "new": "trainer:2"}]

    def test_a_given_environment_replaces_the_old_one(self, account: Account) -> None:
        made = endpoint(account, env={"A": "1"})
        assert change(account, made["id"], env={"B": "2"})["env"] == {"B": "2"}


class TestCatalog:
    def test_stock_is_told_only_when_asked_for_and_for_a_product(self) -> None:
        catalog = Catalog()
        assert "availability" not in catalog.list_gpus(GpuQuery())["gpus"][0]
        for parameters in ({"include": "AVAILABILITY"}, {"product": "SERVERLESS"}, {"count": "2"}):
            with pytest.raises(ProblemError) as refused:
                catalog.list_gpus(parse_query(GpuQuery, parameters))
            assert refused.value.status == 400

    def test_stock_of_a_pool_can_be_taken_away(self) -> None:
        catalog = Catalog()
        catalog.set_stock("ADA_24", "NONE")
        query = parse_query(GpuQuery, {"include": "AVAILABILITY", "product": "SERVERLESS"})
        shown = catalog.gpu("NVIDIA GeForce RTX 4090", query)
        assert shown["availability"] == "NONE"
        assert "dataCenters" not in shown
        assert catalog.placement(["NVIDIA GeForce RTX 4090", "NVIDIA L4"], ["EU-RO-1"]) == ("NVIDIA L4", "EU-RO-1")

    def test_a_country_narrows_the_data_centres(self) -> None:
        query = parse_query(GpuQuery, {"include": "AVAILABILITY", "product": "POD,SERVERLESS", "countryCodes": "RO"})
        found = Catalog().list_gpus(query)["gpus"]
        assert {center["id"] for gpu in found for center in gpu["dataCenters"]} == {"EU-RO-1"}

    def test_a_type_outside_of_the_pools_has_no_serverless_price(self) -> None:
        shown = Catalog().gpu("AMD Instinct MI300X OAM", GpuQuery())
        assert shown["pool"] is None
        assert "serverless" not in shown["price"]


def test_calls_over_the_quota_are_refused_until_the_window_is_over() -> None:
    now = [100.0]
    quota = Quota(lambda: now[0], {"minute": 2, "hour": 3})
    assert [quota.take("a")[1] for _ in range(3)] == [None, None, "minute"]
    assert quota.take("b")[1] is None
    headers, _ = quota.take("a")
    assert headers["Retry-After"] == "60"
    assert headers["RateLimit"].startswith('"minute";r=0;t=60')
    now[0] += 60
    assert quota.take("a")[1] == "hour"
