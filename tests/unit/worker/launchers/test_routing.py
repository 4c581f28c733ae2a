"""The routing table: what is refused in it, which rule matches, and which place is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_worker.errors import SettingsError
from lora_worker.launchers.routing import Choice, Hurdle, PlaceState, Wanted, choose, describe, matches
from lora_worker.launchers.routing_table import MAX_BYTES, RoutingTable, Rule, read_table

USER = "a1b2c3d4-0000-4000-8000-000000000001"
JOB = Wanted("meta-llama/Llama-3-70B", 70.0, "sft", frozenset({"h100", "h10080gb"}), 2, USER, "high")
TABLE = RoutingTable.model_validate(
    {
        "endpoints": {
            "a": {},
            "b": {"slots": 2, "endpoint": "https://b.example/v2/b"},
            "c": {"launcher": "gpu-server"},
        },
        "rules": [{"base_model": "*/*-70b", "endpoints": ["b", "c"]}, {"endpoints": ["c", "b", "a"]}],
    }
)
NO_GPU = PlaceState(without_gpu_seconds=901)


def written(folder: Path, text: str) -> Path:
    path = folder / "routes.toml"
    path.write_text(text)
    return path


def test_a_whole_table_is_read(tmp_path: Path) -> None:
    table = read_table(
        written(
            tmp_path,
            """
            fall_back_minutes = 5
            [endpoints.h100]
            gpu_type = "H100"
            gpu_count = 2
            slots = 10
            price_per_hour = 3.9
            [endpoints.own]
            launcher = "gpu-server"
            [[rules]]
            parameters_at_least = 30
            method = "dpo"
            endpoints = ["own", "h100"]
            """,
        )
    )
    assert list(table.endpoints) == ["h100", "own"], "the first is the default place, so the file's order counts"
    assert (table.fall_back_minutes, table.pass_over_minutes) == (5, 30)
    assert table.rules[0].endpoints == ("own", "h100")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[endpoints.a]\ngpu_typ = 'H100'", r"\[endpoints.a\]: 'gpu_typ' is no key there; gpu_type may be meant\.$"),
        ("[endpoints.a]\nzebra = 1", r"\[endpoints.a\]: 'zebra' is no key there; known are launcher, endpoint, "),
        ("[endpoints.a]\n[[rules]]\nbase = 'x'\nendpoints = ['a']", r"rule 1 of \[\[rules\]\]: 'base' is no key there"),
        ("fall_back = 1\n[endpoints.a]", "at the top: 'fall_back' is no key there; fall_back_minutes may be meant"),
        ("[endpoints.a]\nslots = 0", r"\[endpoints.a\]: slots: must be greater than or equal to 1"),
        ("[endpoints.a]\nprice_per_hour = nan", r"\[endpoints.a\]: price_per_hour: "),
        ("[endpoints.a]\ngpu_count = '2'", r"\[endpoints.a\]: gpu_count: must be a valid integer"),
        ("[endpoints.'a b']", r"at the top: endpoints: 'a b' is no name; take 1 to 50 letters"),
        ("rules = []", "at the top: endpoints: is missing"),
        ("endpoints = {}", "at the top: endpoints: must have at least 1 item"),
        ("[endpoints.a]\n[[rules]]\nmethod = 'grpo'\nendpoints = ['a']", r"rule 1 of \[\[rules\]\]: method: "),
        ("[endpoints.a]\n[[rules]]\nendpoints = ['b']", r"rule 1 .*names 'b', and there is no \[endpoints.b\]\.$"),
        ("[endpoints.a]\n[[rules]]\nendpoints = ['a', 'a']", "rule 1 .*endpoints names one twice"),
        ("[endpoints.a]\n[[rules]]\nendpoints = []", r"rule 1 of \[\[rules\]\]: endpoints: "),
        (
            "[endpoints.a]\n[[rules]]\nparameters_at_least=9\nparameters_at_most=8\nendpoints = ['a']",
            "rule 1 .*matches nothing",
        ),
        (
            "[endpoints.a]\nendpoint = 'https://x/y/'\n[endpoints.b]\nendpoint = 'https://x/y'",
            r"\[endpoints.b\]: its endpoint is that of \[endpoints.a\] too",
        ),
        ("[endpoints.a]\n[rules]\nendpoints = ['a']", r"at the top: rules: write \[\[rules\]\], with two brackets"),
        ("[[endpoints]]\nlauncher = 'runpod'", r"at the top: endpoints: write \[endpoints.NAME\], with one bracket"),
        ("[endpoints]\na = 'runpod'", r"\[endpoints.a\]: is no table; write \[endpoints.a\] in a line of its own"),
        ("[endpoints.a]\n[[rules]]\nendpoints = 'a'", r'rule 1 of \[\[rules\]\]: endpoints: write \["a"\], a list'),
        ("[endpoints.a]\n[endpoints.a]", r"line 2: \[endpoints.a\] is there twice; rename one"),
        ("[endpoints.a]\n[[rules]]\nuser = 'bob'\nendpoints = ['a']", r"rule 1 .*: user: 'bob' is no user's id; write"),
        (
            "[endpoints.a]\n[[rules]]\npriority = '" + "x" * 51 + "'\nendpoints = ['a']",
            "priority: must have at most 50",
        ),
        ("[endpoints.a]\n[[rules]]\ngpu_count = 9\nendpoints = ['a']", "gpu_count: must be less than or equal to 8"),
        ("[endpoints", "is no TOML"),
        ("a = " + "[" * 50_000, "is no TOML"),
        ("# " + "x" * MAX_BYTES, "larger than 200 KB"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=sentence) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"LORA_WORKER_ROUTES: {path}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_all_mistakes_of_a_table_are_told_up_to_ten(tmp_path: Path) -> None:
    text = "[endpoints.a]\nslots = 0\n" + "[[rules]]\nmethod = 'x'\n" * 6
    with pytest.raises(SettingsError) as caught:
        read_table(written(tmp_path, text))
    assert str(caught.value).count("rule ") == 9
    assert str(caught.value).endswith(" And 3 more.")
    with pytest.raises(SettingsError, match=r"'b', and .* 'c', and .*names one twice\.$"):
        read_table(written(tmp_path, "[endpoints.a]\n[[rules]]\nendpoints = ['b', 'c', 'c']"))


def test_table_that_is_not_utf_8_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_bytes("[endpoints.a]\n# für\n".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"routes\.toml, line 2: is not UTF-8; save the file as UTF-8\.$"):
        read_table(path)


def test_a_missing_table_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^LORA_WORKER_ROUTES: .*none\.toml can't be read \(No such file"):
        read_table(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("rule", "job", "matched"),
    [
        ({}, JOB, True),
        ({"base_model": "meta-llama/*"}, JOB, True),
        ({"base_model": "META-*-70b"}, JOB, True),
        ({"base_model": "llama"}, JOB, False),
        ({"parameters_at_least": 70}, JOB, True),
        ({"parameters_at_least": 70.1}, JOB, False),
        ({"parameters_at_most": 70}, JOB, True),
        ({"parameters_at_most": 8}, JOB, False),
        ({"parameters_at_most": 100}, replace(JOB, parameters=None), False),
        ({"method": "sft"}, JOB, True),
        ({"method": "dpo"}, JOB, False),
        ({"gpu_type": "H100-80GB"}, JOB, True),
        ({"gpu_type": "H200"}, JOB, False),
        ({"gpu_count": 2}, JOB, True),
        ({"gpu_count": 1}, JOB, False),
        ({"user": USER.upper()}, JOB, True),
        ({"user": USER.replace("1", "2")}, JOB, False),
        ({"priority": "high"}, JOB, True),
        ({"priority": "high"}, replace(JOB, priority=None), False),
        ({"method": "sft", "gpu_count": 1}, JOB, False),
    ],
)
def test_all_conditions_of_a_rule_must_hold(rule: dict[str, object], job: Wanted, matched: bool) -> None:
    read = Rule.model_validate({**rule, "endpoints": ["a"]})
    assert matches(read, job) is matched
    assert all(key in describe(read) for key in rule)


def chosen(states: dict[str, PlaceState], *, unfit: dict[str, str] | None = None, refused: str = "") -> Choice:
    return choose(TABLE, JOB, states, unfit=unfit or {}, refused=frozenset(refused.split()))


@pytest.mark.parametrize(
    ("states", "place", "hurdles"),
    [
        ({}, "b", [None, None]),
        ({"b": PlaceState(launches=1)}, "b", [None, None]),
        ({"b": PlaceState(launches=2)}, "c", [Hurdle.FULL, None]),
        ({"b": PlaceState(without_gpu_seconds=899)}, "b", [None, None]),
        ({"b": NO_GPU}, "c", [Hurdle.NO_GPU, None]),
        ({"b": PlaceState(passed_over_seconds=1)}, "c", [Hurdle.NO_GPU, None]),
        ({"b": PlaceState(held_seconds=1)}, "c", [Hurdle.HELD, None]),
        ({"b": NO_GPU, "c": NO_GPU}, "b", [Hurdle.NO_GPU, Hurdle.NO_GPU]),
        ({"b": PlaceState(launches=2), "c": NO_GPU}, None, [Hurdle.FULL, Hurdle.NO_GPU]),
        ({"b": PlaceState(held_seconds=9), "c": NO_GPU}, None, [Hurdle.HELD, Hurdle.NO_GPU]),
    ],
)
def test_first_free_candidate_is_chosen(
    states: dict[str, PlaceState], place: str | None, hurdles: list[Hurdle | None]
) -> None:
    choice = chosen(states)
    assert (choice.rule, choice.place) == (1, place)
    assert [option.hurdle for option in choice.options] == hurdles
    assert all(option.reason for option in choice.options if option.hurdle)


def test_place_that_cannot_hold_the_job_is_chosen_only_where_none_can() -> None:
    assert chosen({"c": NO_GPU}, unfit={"b": "too small"}).place == "c"
    assert chosen({}, unfit={"b": "too small", "c": "too small"}).place == "b", "the preflight says why"


def test_launcher_that_refused_the_run_is_passed_over() -> None:
    assert chosen({}, refused="b").place == "c"
    assert chosen({}, refused="b c").place == "b"


def test_job_without_a_rule_gets_the_first_endpoint() -> None:
    table = TABLE.model_copy(update={"rules": TABLE.rules[:1]})
    choice = choose(table, replace(JOB, base_model="other"), {}, unfit={})
    assert (choice.rule, choice.place) == (None, "a")
    assert "no rule matches" in choice.conditions


STATES = st.builds(
    PlaceState,
    launches=st.integers(0, 3),
    without_gpu_seconds=st.sampled_from([0.0, 899.0, 901.0]),
    passed_over_seconds=st.sampled_from([0.0, 5.0]),
    held_seconds=st.sampled_from([0.0, 5.0]),
)
NAMES = st.sampled_from(["a", "b", "c"])


@given(st.dictionaries(NAMES, STATES), st.dictionaries(NAMES, st.just("small")), st.frozensets(NAMES))
def test_no_run_goes_to_a_full_or_held_place(
    states: dict[str, PlaceState], unfit: dict[str, str], refused: frozenset[str]
) -> None:
    choice = choose(TABLE, JOB, states, unfit=unfit, refused=refused)
    hurdles = {option.place: option.hurdle for option in choice.options}
    assert choice.place is None or choice.place in hurdles
    if choice.place is not None:
        assert hurdles[choice.place] not in {Hurdle.FULL, Hurdle.HELD}
        assert hurdles[choice.place] is not Hurdle.UNFIT or set(hurdles.values()) == {Hurdle.UNFIT}
    if None in hurdles.values():
        assert choice.is_free
        assert choice.place == next(name for name, hurdle in hurdles.items() if hurdle is None)
