"""The request of a run, in the environment variables of a machine that was started for it.

A cloud that starts a machine for each run (a pod, a training job, a task) hands its container no request, but takes
environment variables. Clouds bound their number and their length (SageMaker takes 100 of at most 512 characters), so
the request is compressed and cut into several. `lora_trainer.machine` puts it together again.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping, MutableMapping
from typing import Any

REQUEST_VARIABLE = "LORA_TRAINER_REQUEST"
"""Holds the number of parts of the request; these stand in variables of this name with `_0`, `_1`, … after it."""
LAUNCH_ID_VARIABLE = "LORA_TRAINER_LAUNCH_ID"
"""Holds the launch's id (`external_job_id`), where the launcher chooses it itself."""
LAUNCH_ID_FROM_VARIABLE = "LORA_TRAINER_LAUNCH_ID_FROM"
"""Names the variable in which the cloud tells the machine its id, which is the launch's: `RUNPOD_POD_ID`."""

END_VARIABLE = "LORA_MACHINE_END_URL"
"""Where a machine may ask for its own end, by a DELETE of its cloud's id of it; set where its cloud starts a container
that has ended again."""

MOST_REQUEST_BYTES = 1_000_000
"""The largest request that is packed or unpacked, as JSON."""
_MOST_PARTS = 200
_MOST_CHARACTERS = 200_000
"""Of all parts together. A process's environment has room for more (Linux: 128 KiB a variable, 2 MiB altogether)."""

_COUNT = re.compile(r"[1-9][0-9]{0,2}")
_LAUNCH_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
"""As `training_check_external_job_id` in the database takes it."""


def pack_request(payload: dict[str, Any], *, most_characters: int = 500, most_variables: int = 80) -> dict[str, str]:
    """Pack a request into environment variables of at most so many characters, and at most so many of them.

    Raises:
        ValueError: it is too large for them; the text is a sentence.
    """
    document = json.dumps(payload, separators=(",", ":")).encode()
    if len(document) > MOST_REQUEST_BYTES:
        raise ValueError(f"The request is larger than {MOST_REQUEST_BYTES:,} bytes.")
    text = base64.urlsafe_b64encode(zlib.compress(document, 9)).decode()
    parts = [text[start : start + most_characters] for start in range(0, len(text), most_characters)]
    most_parts = min(most_variables - 1, _MOST_PARTS)
    if len(parts) > most_parts or len(text) > _MOST_CHARACTERS:
        raise ValueError(
            f"The request takes {len(parts):,} environment variables of {most_characters:,} characters; "
            f"the cloud takes {most_parts:,} of them."
        )
    return {REQUEST_VARIABLE: str(len(parts)), **{_part(index): part for index, part in enumerate(parts)}}


def unpack_request(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the request that `pack_request` has put into the environment.

    Raises:
        ValueError: there is none, or it can't be read. The text is a sentence without any value, which may be secret.
    """
    text = "".join(_parts(environ))
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"The variables {REQUEST_VARIABLE}_… are too long.")
    try:
        unpacker = zlib.decompressobj()
        # A few compressed bytes may hold gigabytes.
        document = unpacker.decompress(base64.b64decode(text, altchars=b"-_", validate=True), MOST_REQUEST_BYTES)
        is_whole = unpacker.eof
        payload = json.loads(document) if is_whole else None
    except (binascii.Error, zlib.error, ValueError, RecursionError):
        payload = None
    if isinstance(payload, dict):
        return payload
    raise ValueError(f"The variables {REQUEST_VARIABLE}_… hold no request; pass them on as the worker has sent them.")


def find_launch_id(environ: Mapping[str, str]) -> str:
    """Return the id of the machine's launch (`external_job_id`).

    Raises:
        ValueError: it is not there, or is no id; the text is a sentence.
    """
    variable = environ.get(LAUNCH_ID_FROM_VARIABLE) or LAUNCH_ID_VARIABLE
    launch_id = environ.get(variable, "")
    if not _LAUNCH_ID.fullmatch(launch_id):
        raise ValueError(f"The variable {variable:.100} holds no id of a launch: 1 to 255 letters, digits, - and _.")
    return launch_id


def forget_request(environ: MutableMapping[str, str]) -> None:
    """Remove the request and the launch's id, so that no child process inherits the run's token."""
    for name in list(environ):
        if name.startswith((REQUEST_VARIABLE, LAUNCH_ID_VARIABLE)):
            del environ[name]


def _parts(environ: Mapping[str, str]) -> list[str]:
    count = environ.get(REQUEST_VARIABLE)
    if count is None:
        raise ValueError(f"The variable {REQUEST_VARIABLE} is missing: this machine was started without a request.")
    if not _COUNT.fullmatch(count) or int(count) > _MOST_PARTS:
        raise ValueError(f"The variable {REQUEST_VARIABLE} must hold the number of parts, 1 to {_MOST_PARTS}.")
    parts = [environ.get(_part(index)) for index in range(int(count))]
    missing = next((index for index, part in enumerate(parts) if not part), None)
    if missing is not None:
        raise ValueError(f"The variable {_part(missing)} is missing: a part of the request was lost on its way.")
    return [part for part in parts if part]


def _part(index: int) -> str:
    return f"{REQUEST_VARIABLE}_{index}"
