"""The application over a scripted database."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.unit.worker.dashboard.scripted import Clock, ScriptedDatabase, make_page, signed_in


@pytest.fixture
def database() -> ScriptedDatabase:
    return ScriptedDatabase()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(database: ScriptedDatabase, clock: Clock) -> Starlette:
    return make_page(database, clock)


@pytest.fixture
def browser(app: Starlette) -> TestClient:
    """A browser with a session."""
    return signed_in(app)
