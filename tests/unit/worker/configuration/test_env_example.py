"""`.env.example` names what is required, only settings that exist, their real defaults, and holds no secret."""

from __future__ import annotations

import json
import re

from lora_worker.commands.setup import setting_rows
from lora_worker.configuration.environment import DATABASE_VARIABLES
from lora_worker.configuration.settings import DEFAULT_LAUNCHER, variables_of
from lora_worker.launchers.registry import LAUNCHERS
from tests.commands import check_keys, run_command
from tests.project import ROOT

TEXT = (ROOT / ".env.example").read_text()
NAMED = {match[2]: (match[1], match[3]) for match in re.finditer(r"^(# )?([A-Z][A-Z0-9_]+)=(.*)$", TEXT, re.MULTILINE)}
SETTINGS = {name: row for row in setting_rows() for name in row["variable"].split(" or ")}


def test_settings_are_listed_with_stable_keys() -> None:
    done = run_command("settings", "--json")
    check_keys("settings", json.loads(done.stdout))


def test_every_variable_of_the_example_is_a_setting() -> None:
    assert set(NAMED) - set(SETTINGS) - set(DATABASE_VARIABLES) == set()


def test_every_required_variable_is_to_be_filled_in() -> None:
    open_lines = {name for name, (comment, value) in NAMED.items() if not comment and value == ""}
    # Those of the usual launcher: what another one needs is on its own page.
    usual = variables_of(LAUNCHERS[DEFAULT_LAUNCHER].settings)
    for row in setting_rows():
        names = set(row["variable"].split(" or "))
        if row["default"].startswith("required") and names & usual:
            assert open_lines & names, row["variable"]


def test_what_is_to_be_filled_in_is_empty() -> None:
    assert [name for name, (comment, value) in NAMED.items() if not comment and value] == []


def test_the_shown_defaults_are_the_real_ones() -> None:
    for name, (comment, value) in NAMED.items():
        if comment and value:
            assert SETTINGS[name]["default"] == value, name
