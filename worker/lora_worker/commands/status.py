"""What `lora-worker status` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def status_lines(health: Mapping[str, Any]) -> list[str]:
    """What `lora-worker status` says of endpoints and held jobs beside its tables."""
    held = health["held"]
    lines = [f"run {run['run_id'][:8]}: {run['problem']}" for run in health["runs"] if run["problem"]]
    lines += [
        f"endpoint {row['endpoint']}: {row['problem']}"
        + (f" (starting for {row['starting_seconds']:.0f} s)" if row["starting_seconds"] else "")
        for row in held["endpoint_problems"]
    ]
    lines += [
        f"held: {row['jobs']} jobs, for {row['name'] or 'the image'} at {row['endpoint']} ({row['error_code']}, "
        f"{row['users']} users); next try in {row['probe_in_seconds']:.0f} s, or `lora-worker resume`"
        for row in held["breakers"]
    ]
    if len({(row["launcher"], row["endpoint"]) for row in health["endpoints"]}) > 1:
        lines += [f"{row['launches']} launches at {row['endpoint']} ({row['launcher']})" for row in health["endpoints"]]
    return lines
