"""A request in the variables of a machine: it arrives whole, bounded, and leaves nothing behind."""

import base64
import random
import zlib

import pytest

from lora_contract.machine_request import (
    LAUNCH_ID_FROM_VARIABLE,
    LAUNCH_ID_VARIABLE,
    MOST_REQUEST_BYTES,
    REQUEST_VARIABLE,
    find_launch_id,
    forget_request,
    pack_request,
    unpack_request,
)


def _unpackable(size: int) -> dict[str, str]:
    return {"noise": random.Random(1).randbytes(size).hex()}


def _variables(document: bytes) -> dict[str, str]:
    return {REQUEST_VARIABLE: "1", f"{REQUEST_VARIABLE}_0": base64.urlsafe_b64encode(document).decode()}


def test_request_arrives_whole_in_variables_of_bounded_length() -> None:
    payload = {"run_id": "a", "text": "Grüße ✓\n", "nested": {"numbers": [1, 2.5, None, True]}, **_unpackable(4000)}
    variables = pack_request(payload)
    assert len(variables) > 3
    assert max(map(len, variables.values())) == 500
    assert unpack_request({"PATH": "/bin", **variables}) == payload


@pytest.mark.parametrize("most_variables", [2, 20])
def test_request_that_fits_no_variables_is_refused(most_variables: int) -> None:
    with pytest.raises(ValueError, match=rf"the cloud takes {most_variables - 1} of them"):
        pack_request(_unpackable(10_000), most_variables=most_variables)


def test_request_of_many_megabytes_is_refused_though_it_packs_well() -> None:
    with pytest.raises(ValueError, match="larger than"):
        pack_request({"text": "a" * MOST_REQUEST_BYTES})


def test_bomb_of_packed_bytes_is_never_unpacked_whole() -> None:
    with pytest.raises(ValueError, match="hold no request"):
        unpack_request(_variables(zlib.compress(b'{"a":"' + b"a" * (MOST_REQUEST_BYTES + 1) + b'"}')))


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "LORA_TRAINER_REQUEST is missing"),
        ({REQUEST_VARIABLE: "many"}, "1 to 200"),
        ({REQUEST_VARIABLE: "201"}, "1 to 200"),
        ({REQUEST_VARIABLE: "2", f"{REQUEST_VARIABLE}_0": "secret"}, "LORA_TRAINER_REQUEST_1 is missing"),
        ({REQUEST_VARIABLE: "1", f"{REQUEST_VARIABLE}_0": "a secret ✓"}, "hold no request"),
        (_variables(b"secret, and not packed"), "hold no request"),
        (_variables(zlib.compress(b'["secret"]')), "hold no request"),
        (_variables(zlib.compress(b"[" * 100_000)), "hold no request"),
        (_variables(zlib.compress(b'{"secret": 1}')[:-3]), "hold no request"),
        (
            {REQUEST_VARIABLE: "2", f"{REQUEST_VARIABLE}_0": "A" * 150_000, f"{REQUEST_VARIABLE}_1": "A" * 150_000},
            "long",
        ),
    ],
)
def test_unreadable_request_is_one_sentence_without_its_values(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        unpack_request(environ)
    assert "secret" not in str(raised.value)


def test_launch_id_is_the_launchers_or_the_clouds_own() -> None:
    assert find_launch_id({LAUNCH_ID_VARIABLE: "lora-1_a"}) == "lora-1_a"
    assert find_launch_id({LAUNCH_ID_FROM_VARIABLE: "RUNPOD_POD_ID", "RUNPOD_POD_ID": "pod1"}) == "pod1"


@pytest.mark.parametrize(
    "environ", [{}, {LAUNCH_ID_VARIABLE: "a/b"}, {LAUNCH_ID_FROM_VARIABLE: "X", LAUNCH_ID_VARIABLE: "a"}]
)
def test_launch_id_that_is_none_is_a_sentence(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="holds no id of a launch"):
        find_launch_id(environ)


def test_nothing_of_the_request_is_left_for_child_processes() -> None:
    environ = {
        "PATH": "/bin",
        LAUNCH_ID_VARIABLE: "a",
        LAUNCH_ID_FROM_VARIABLE: "b",
        **pack_request({"token": "secret"}),
    }
    forget_request(environ)
    assert environ == {"PATH": "/bin"}
