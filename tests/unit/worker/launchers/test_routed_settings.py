"""The settings and places of a worker with a routing table, and what is refused in them at its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from annotated_types import Ge, Gt, Le, Lt

from lora_contract.hyperparameters import GpuConfig, Hyperparameters
from lora_worker.datasets.preflight import check_gpu, make_policy
from lora_worker.errors import PreflightError, SettingsError
from lora_worker.launchers.gpu_server.settings import GpuServerSettings
from lora_worker.launchers.places import Places, is_newer_than_image
from lora_worker.launchers.registry import LAUNCHERS, load_settings, open_places, settings_class
from lora_worker.launchers.runpod.settings import RunPodSettings
from lora_worker.money.billing import Rate
from lora_worker.money.places import price_at, unfit_places
from lora_worker.money.pricing import load_prices
from lora_worker.services import open_services

TWO = """
[endpoints.first]
endpoint = "second-ep"
gpu_type = "H100"
[endpoints.own]
launcher = "gpu-server"
endpoint = "https://gpu.example.com/"
gpu_type = "RTX-4090"
price_per_hour = 0.25
slots = 3
"""


def routes(environment: pytest.MonkeyPatch, text: str) -> None:
    Path("routes.toml").write_text(text)
    environment.setenv("LORA_WORKER_ROUTES", "routes.toml")


@pytest.fixture
def server(environment: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The five variables, and those of a GPU server."""
    environment.setenv("LORA_WORKER_GPU_SERVER_URL", "https://former.example.com")
    environment.setenv("LORA_WORKER_GPU_SERVER_KEY", "k" * 32)
    return environment


async def test_places_are_those_of_the_table_in_its_order(server: pytest.MonkeyPatch) -> None:
    routes(server, TWO)
    settings = load_settings()
    assert isinstance(settings, RunPodSettings)
    assert isinstance(settings, GpuServerSettings)
    async with open_services(settings) as services:
        first, own = services.places.all
        assert (first.name, first.endpoint) == ("first", "https://api.runpod.ai/v2/second-ep")
        assert (own.launcher.name, own.endpoint, own.gpu_count, own.slots) == (
            "gpu-server", "https://gpu.example.com", 1, 3
        )  # fmt: skip
        assert services.launcher is first.launcher
        assert services.places.launchers == ("runpod", "gpu-server")
        price = price_at(own, services.prices, "H100")
        assert price is not None
        assert (price.type, price.price_per_hour) == ("RTX-4090", 0.25)
        for former in ("https://api.runpod.ai/v2/ep", "https://former.example.com"):
            assert services.places.launcher_at(former) is not None, "launches of the settings' own endpoint live on"
        assert services.places.launcher_at("https://elsewhere.example.com") is None


async def test_table_is_read_once_at_the_start(server: pytest.MonkeyPatch) -> None:
    """A second reading might find another table, whose launchers' settings were never read."""
    routes(server, TWO)
    settings = load_settings()
    routes(server, "[endpoints.other]")
    async with open_services(settings) as services:
        assert services.routes is not None
        assert [place.name for place in services.places.all] == list(services.routes.endpoints)


async def test_estimates_follow_the_job_where_places_have_different_gpus(server: pytest.MonkeyPatch) -> None:
    routes(server, TWO)
    async with open_services(load_settings()) as services:
        assert services.terms.endpoint_gpu_type is None
    routes(server, "[endpoints.a]\ngpu_type = 'H100'\nprice_per_hour = 1.5")
    async with open_services(load_settings()) as services:
        gpu = services.terms.gpu("L4")
        assert gpu is not None
        assert (gpu.type, gpu.price_per_hour) == ("H100", 1.5)
        assert not any("are billed" in sentence for sentence in services.terms.assumptions)
    routes(server, "[endpoints.a]\ngpu_type = 'H100'\ngpu_count = 4")
    async with open_services(load_settings()) as services:
        assert any("All GPUs of the machine are billed" in sentence for sentence in services.terms.assumptions)


@pytest.fixture
def free_gpu(server: pytest.MonkeyPatch) -> None:
    """A price table in which one of two GPUs costs nothing."""
    Path("prices.toml").write_text(
        "[[gpu]]\ntype='H100'\nprice_per_hour=0\nmemory_gb=80\nnames=['h100']\n"
        "[[gpu]]\ntype='RTX-4090'\nprice_per_hour=0.5\nmemory_gb=24\nnames=['4090']\n"
    )
    server.setenv("LORA_WORKER_PRICE_TABLE", "prices.toml")


@pytest.mark.usefixtures("free_gpu")
async def test_place_where_nobody_pays_has_no_limit_of_money(server: pytest.MonkeyPatch) -> None:
    routes(server, TWO.replace("price_per_hour = 0.25", "price_per_hour = 0"))
    async with open_services(load_settings()) as services:
        assert [gpu.price_per_hour for gpu in services.prices] == [0, 0.5]
        for place in services.places.all:
            price = price_at(place, services.prices, None)
            assert price is not None
            rate = Rate.at(price, gpu_count=1, max_cost=5)
            policy = make_policy(rate, spent_cost=0, spent_seconds=0, max_run_seconds=7200, queue_allowance_seconds=1)
            assert policy.execution_seconds == 7200
            assert rate.cost(3600) == 0


def test_settings_of_all_named_launchers_are_required(environment: pytest.MonkeyPatch) -> None:
    routes(environment, TWO)
    with pytest.raises(SettingsError, match=r"GPU_SERVER_URL is missing.* \[endpoints.own\] asks for gpu-server: "):
        load_settings()


def test_table_is_not_blamed_for_a_wrong_setting(server: pytest.MonkeyPatch) -> None:
    routes(server, TWO)
    server.setenv("LORA_WORKER_SLOTS", "many")
    with pytest.raises(SettingsError, match=r"^LORA_WORKER_SLOTS: must be a valid integer[^.]*\.$"):
        load_settings()


def test_unnamed_launcher_needs_no_settings(server: pytest.MonkeyPatch) -> None:
    for name in ("GPU_CLUSTER_API_URL", "GPU_CLUSTER_API_KEY"):
        server.delenv(name)
    routes(server, "[endpoints.own]\nlauncher = 'gpu-server'")
    assert not isinstance(load_settings(), RunPodSettings)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[endpoints.a]\nlauncher = 'modal'", r"\[endpoints.a\]: launcher: 'modal' is none; choose one of runpod, "),
        ("[endpoints.a]\n[endpoints.b]\nendpoint = 'ep'", r"\[endpoints.b\]: its endpoint is that of \[endpoints.a\]"),
        (
            "[endpoints.a]\nendpoint = 'https://www.runpod.ai/x'",
            r"\[endpoints.a\]: endpoint: is the console",
        ),
        ("[endpoints.a]\nendpoint = 'a b'", r"\[endpoints.a\]: endpoint: is no endpoint of RunPod; write its id"),
        ("[endpoints.a]\ngpu_type = 'B200'", r"\[endpoints.a\]: the Dockerfile's image has no kernels for a B200"),
        ("[endpoints.a]\ngpu_type = 'GTX-1080'", r"\[endpoints.a\]: gpu_type is not in the price table; choose one of"),
        (
            "[endpoints.a]\n[[rules]]\ngpu_type = 'HH100'\nendpoints = ['a']",
            r"rule 1 of \[\[rules\]\]: gpu_type is not in the price table; choose one of",
        ),
        (
            "[endpoints.a]\nprice_per_hour = 900\ngpu_count = 8\ngpu_type = 'H100'",
            r"\[endpoints.a\]: LORA_WORKER_MAX_COST_PER_JOB buys 50 seconds there",
        ),
        (
            "[endpoints.a]\nlauncher = 'gpu-server'\nendpoint = 'https://x.runpod.ai/v2'",
            r"\[endpoints.a\]: endpoint: is an address of Supabase or RunPod",
        ),
        (
            "[endpoints.a]\nlauncher = 'gpu-server'\ngpu_count = 2",
            r"\[endpoints.a\]: LORA_WORKER_ENDPOINT_GPU_COUNT \(gpu_count in a routing table\) is 2, and a GPU server",
        ),
    ],
)
async def test_wrong_endpoint_is_refused_at_the_start(server: pytest.MonkeyPatch, text: str, sentence: str) -> None:
    routes(server, text)
    with pytest.raises(SettingsError, match=sentence) as refused:
        async with open_services(load_settings()):
            pass
    assert str(refused.value).startswith("LORA_WORKER_ROUTES: routes.toml, ")


async def test_gpu_newer_than_the_image_needs_a_word_of_the_operator(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_ENDPOINT_GPU_TYPE", "RTX-PRO-6000")
    async with httpx.AsyncClient() as http:
        with pytest.raises(SettingsError, match="no kernels for a RTX-PRO-6000: build one with"):
            open_places(load_settings(), http)
        environment.setenv("LORA_WORKER_IMAGE_FOR_NEWER_GPUS", "true")
        (place,) = open_places(load_settings(), http)
        assert place.takes_newer_gpus
        # A job may ask for one where the endpoint has no GPU of its own.
        place, asked, prices = replace(place, gpu_type=None), GpuConfig(type="B200"), load_prices()
        assert check_gpu(asked, prices, place).type == "B200"
        old, chosen = replace(place, takes_newer_gpus=False), Hyperparameters()
        with pytest.raises(PreflightError, match="'B200' is not a GPU that is offered; choose one of A100") as refused:
            check_gpu(asked, prices, old)
        assert "RTX-PRO" not in str(refused.value)
        assert unfit_places(Places(place), chosen, asked, prices) == {}
        assert "no kernels" in unfit_places(Places(old), chosen, asked, prices)[place.name]
        assert check_gpu(GpuConfig(type="H200"), prices, old).type == "H200"


@pytest.mark.parametrize(
    ("gpu", "newer"),
    [
        *(("NVIDIA RTX 5000 Ada Generation", False), ("Quadro RTX 5000", False), ("RTX PRO 5000 Ada", False)),
        *(("GeForce RTX 5090", True), ("RTX-5060-Ti", True), ("RTX PRO 6000", True), ("GB200", True), ("H200", False)),
    ],
)
def test_only_blackwell_is_newer_than_the_image(gpu: str, newer: bool) -> None:
    assert is_newer_than_image(gpu) is newer


async def test_gpu_server_takes_newer_gpus_without_an_image(server: pytest.MonkeyPatch) -> None:
    server.setenv("LORA_WORKER_LAUNCHER", "gpu-server")
    server.setenv("LORA_WORKER_ENDPOINT_GPU_TYPE", "B200")
    async with httpx.AsyncClient() as http:
        (place,) = open_places(load_settings(), http)
    assert place.takes_newer_gpus


def test_no_setting_has_two_bounds_of_which_one_is_lost() -> None:
    """Of a bound in the annotation and one at the field, pydantic keeps one alone."""
    for kind in LAUNCHERS.values():
        for name, field in kind.settings.model_fields.items():
            bounds = [type(each).__name__ for each in field.metadata if isinstance(each, Le | Lt | Ge | Gt)]
            assert len(bounds) == len(set(bounds)), name


def test_settings_of_all_launchers_can_be_read_together() -> None:
    """A validator of one name in two classes would be called for one of them alone."""
    together = settings_class(LAUNCHERS)
    for kind in LAUNCHERS.values():
        assert issubclass(together, kind.settings)
        assert set(kind.settings.model_fields) <= set(together.model_fields)


async def test_each_place_has_a_launcher_of_its_own(environment: pytest.MonkeyPatch) -> None:
    routes(environment, "[endpoints.eu]\nendpoint = 'eu'\n[endpoints.us]\nendpoint = 'us'")
    async with httpx.AsyncClient() as http:
        eu, us = open_places(load_settings(), http)
    assert eu.launcher is not us.launcher
    assert [place.endpoint.rpartition("/")[2] for place in (eu, us)] == ["eu", "us"]
    assert load_prices()


def test_wrong_gpu_count_is_told_in_a_sentence(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("LORA_WORKER_ENDPOINT_GPU_COUNT", "16")
    with pytest.raises(SettingsError, match="LORA_WORKER_ENDPOINT_GPU_COUNT"):
        load_settings()
