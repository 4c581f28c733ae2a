"""A headless Chromium, and the dashboard over a scripted or a real database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from starlette.applications import Starlette

from sandbox.browser import find_chromium
from sandbox.errors import ToolMissingError
from tests.conftest import SANDBOX
from tests.processes.stage import Stage
from tests.processes.waiting import PATIENCE_SECONDS

PATIENCE_MS = PATIENCE_SECONDS * 1000


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for one file: Playwright keeps an event loop running, beside which no test with a loop can run."""
    try:
        found = find_chromium(SANDBOX / "cache")
        assert found.version
    except ToolMissingError as error:
        # Where changes are checked, a missing browser must not pass for a tested page.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    with sync_playwright() as playwright, found.launch(playwright) as browser:
        expect.set_options(timeout=PATIENCE_MS)
        yield browser


@pytest.fixture
def page_of(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of its own session at a URL with a token: `page_of(url, color_scheme="dark")`.

    At the end, no page may have had an error or broken the policy.
    """
    complaints: list[str] = []
    with ExitStack() as stack:

        def open_page(url: str, **options: object) -> Page:
            context: BrowserContext = chromium.new_context(**options)  # type: ignore[arg-type]
            stack.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", lambda line: complaints.append(line.text) if "Content Security" in line.text else None)
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            page.goto(url)
            page.wait_for_url(lambda opened: "token" not in opened)
            return page

        yield open_page
    assert complaints == []


class ServedApp:
    """An application at a port of this process, which can be stopped and started again."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(self._app, log_config=None, ws="none", lifespan="off", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[listening])))
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def served(app: Starlette) -> Iterator[ServedApp]:
    """Serve an application until the context ends."""
    running = ServedApp(app)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def dashboard_url(stage: Stage) -> Iterator[str]:
    """The URL of `lora-worker dashboard` over the stage's project, the token included. SIGTERM has to end it with 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_worker.commands.cli", "dashboard", "--port", "0", "--json"],
        env=stage.environment(), cwd=stage.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield json.loads(line)["url"]
    except json.JSONDecodeError:
        pytest.fail(f"the dashboard did not start: {process.communicate()[1]}")
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "Traceback" not in output + errors
