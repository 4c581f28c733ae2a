"""Takes the pictures of docs/images: the dashboard and `watch`, over a sandbox where jobs train (`make screenshots`).

The database, the worker and the trainer are the real ones; the training itself is the tests' stand-in. Only the bills
of past days are made up, as rows.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from lora_worker.commands.live_views import draw_job
from lora_worker.database.calls import DatabaseCalls
from lora_worker.database.job_reports import JobDetails
from sandbox.application import Application
from sandbox.browser import find_chromium
from sandbox.errors import ChildFailedError, SandboxError
from sandbox.processes import own_environment, remove_folder, start_child, temporary_folder
from sandbox.runpod import LocalRunPod
from sandbox.sample_text import write_sample_dataset
from sandbox.standin import Mishap, standin_env
from sandbox.supabase import LocalSupabase

ROOT = Path(__file__).resolve().parents[1]
SANDBOX = ROOT / ".sandbox"
IMAGES = ROOT / "docs" / "images"

MODELS = ("Qwen/Qwen3-8B", "mistralai/Mistral-7B-Instruct-v0.2")
PAIRS = 240
_STEPS, _SHOWN_AT = 180, 110
_STEP_SECONDS = 0.15
_MOST_SECONDS = 300
_MOST_BYTES = 150_000
_COLUMNS = 92

_PAST_BILLS = """
insert into public.cost_records (user_id, cost_type, amount, details, billing_period, recorded_at)
select %s, 'training_compute', round((1.5 + 6 * abs(sin(day * %s)))::numeric, 2),
  jsonb_build_object('job_id', gen_random_uuid(), 'gpu_seconds', 1800 + 400 * day),
  (now() at time zone 'utc')::date - day, now() - make_interval(days => day)
from generate_series(1, 28) day where day %% %s <> 0
"""


class Scene:
    """A sandbox with users, whose jobs a worker trains."""

    def __init__(self, stack: ExitStack) -> None:
        self.folder = temporary_folder(SANDBOX)
        stack.callback(remove_folder, self.folder)
        self.project = stack.enter_context(LocalSupabase.start(SANDBOX))
        volume = self.folder / "volume"
        volume.mkdir()
        env = standin_env(volume, step_seconds=_STEP_SECONDS)
        self.runpod = stack.enter_context(LocalRunPod.start(workers_max=2, env=env, rate_limits={}))
        self.users = [self._add_user(stack, f"user{number}@example.com") for number in range(3)]

    def _add_user(self, stack: ExitStack, email: str) -> Application:
        user = Application(self.project, self.project.create_user(email))
        stack.callback(user.close)
        return user

    def queue(self, user: int, name: str, *, model: str = MODELS[0], broken: bool = False, **chosen: Any) -> str:
        """Queue a job; returns its id."""
        file = self.folder / "examples.jsonl"
        write_sample_dataset(file)
        if broken:
            file.write_text(file.read_text().replace('"assistant"', '"someone"'))
        application = self.users[user]
        dataset_id = application.add_dataset(file, pairs=PAIRS, name=name)
        settings = {"base_model": model, "learning_rate": 2e-4, "batch_size": 4, "epochs": 3, "rank": 16}
        return application.queue_job(dataset_id, {**settings, "max_steps": _STEPS, **chosen}, pairs=PAIRS)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's row."""
        with psycopg.connect(self.project.database_url, row_factory=psycopg.rows.dict_row) as connection:
            row = connection.execute("select * from public.training_jobs where id = %s", [job_id]).fetchone()
        assert row is not None
        return row

    def until(self, job_id: str, fits: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until the job's row fits."""
        deadline = time.monotonic() + _MOST_SECONDS
        while not fits(row := self.job(job_id)):
            if time.monotonic() > deadline:
                raise ChildFailedError(f"the job {row['status']} at step {row['current_step']} does not go on")
            time.sleep(0.5)

    def environment(self) -> dict[str, str]:
        """Return the environment of the worker's commands, without settings of this machine."""
        return {
            **own_environment(),
            "SUPABASE_URL": self.project.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.project.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": self.project.publishable_key,
            "GPU_CLUSTER_API_URL": self.runpod.api_url,
            "GPU_CLUSTER_API_KEY": self.runpod.api_key,
            "LORA_WORKER_NAME": "worker-1",
            "LORA_WORKER_POLL_SECONDS": "0.5",
            "LORA_WORKER_MAX_PER_USER": "1",
        }


def prepare(scene: Scene) -> str:
    """Let jobs end and others begin; returns the id of one that is in the middle of its training."""
    with psycopg.connect(scene.project.database_url, autocommit=True) as connection:
        for place, user in enumerate(scene.users, start=2):
            connection.execute(_PAST_BILLS, [user.user_id, place, place])
    short = {"max_steps": 30}
    done = [
        scene.queue(0, "Tone of voice, newsletters", **short),
        scene.queue(1, "Product questions, English", model=MODELS[1], **short),
        scene.queue(2, "Chat export, first try", broken=True),
    ]
    for job_id in done:
        scene.until(job_id, lambda row: row["completed_at"] is not None)
    shown = scene.queue(0, "Support answers, German")
    scene.until(shown, lambda row: (row["current_step"] or 0) > 0)
    scene.queue(1, "Contract summaries", model=MODELS[1], seed=int(Mishap.ENDLESS))
    scene.queue(0, "Support answers, French")
    scene.queue(2, "Recipes, rewritten")
    scene.until(shown, lambda row: (row["current_step"] or 0) >= _SHOWN_AT)
    return shown


@contextmanager
def dashboard(scene: Scene) -> Iterator[str]:
    """Serve the dashboard; yields the URL that opens it."""
    command = [sys.executable, "-m", "lora_worker.commands.cli", "dashboard", "--port", "0", "--json"]
    with subprocess.Popen(  # noqa: S603
        command, env=scene.environment(), cwd=scene.folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            if not line:
                raise ChildFailedError("the dashboard did not start")
            yield json.loads(line)["url"]
        finally:
            process.terminate()


def open_page(browser: Browser, url: str, **options: Any) -> Page:
    """Open the dashboard in a session of its own."""
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.wait_for_url(lambda opened: "token" not in opened)
    return page


def take(page: Page, name: str) -> None:
    """Take a picture of what the window shows, in few colours: so it is a third of the size."""
    path = IMAGES / f"{name}.png"
    page.mouse.move(0, 0)
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > _MOST_BYTES:
        raise ChildFailedError(f"{path.name} has {path.stat().st_size:,} bytes, more than {_MOST_BYTES:,}")


async def ask(scene: Scene, job_id: str) -> JobDetails:
    """Return what the database tells of a job."""
    async with httpx.AsyncClient(timeout=30) as http:
        queue = DatabaseCalls(scene.project.url, scene.project.secret_key, worker="", lease_seconds=60, http=http)
        details = await queue.training_job_details(UUID(job_id))
    assert details is not None
    return details


def take_watch(scene: Scene, job_id: str) -> None:
    """Take a picture of what `lora-worker watch` shows of a job."""
    console = Console(
        record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False, markup=False
    )
    console.print(draw_job(asyncio.run(ask(scene, job_id)), now=datetime.now(UTC), width=_COLUMNS))
    picture = console.export_svg(title=f"lora-worker watch {job_id[:8]}")
    # rich names a font on the web, which a picture in a page may not fetch.
    (IMAGES / "watch.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


def main() -> int:
    """Take all pictures; returns 1 after a sentence where something is missing."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    SANDBOX.mkdir(exist_ok=True)
    try:
        chromium = find_chromium(SANDBOX / "cache")
        with ExitStack() as stack:
            scene = Scene(stack)
            worker = start_child(
                [sys.executable, "-m", "lora_worker.commands.cli", "run"],
                name="The worker", log=scene.folder / "worker.log", cwd=scene.folder, env=scene.environment(),
            )  # fmt: skip
            stack.callback(worker.stop)
            shown = prepare(scene)
            take_watch(scene, shown)
            url = stack.enter_context(dashboard(scene))
            browser = stack.enter_context(chromium.launch(stack.enter_context(sync_playwright())))
            take(open_page(browser, url, viewport={"width": 1080, "height": 860}), "dashboard-light")
            dark = open_page(browser, url, viewport={"width": 1080, "height": 920}, color_scheme="dark")
            dark.locator(f"#job-{shown}").first.click()
            dark.wait_for_url("**/jobs/*")
            take(dark, "dashboard-dark")
            phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}
            take(open_page(browser, url, **phone), "dashboard-phone")
    except SandboxError as error:
        print(f"No pictures: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
