"""The report of `make gpu`: JSON for machines, and the table of docs/performance.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_report(path: Path) -> dict[str, Any]:
    """An earlier report, so that parts can be run one by one; empty where there is none."""
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write the report whole or not at all: a part that is killed must not cost those before it."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(report, indent=1))
    aside.replace(path)


def format_table(report: dict[str, Any]) -> str:
    """The measurements as a Markdown table, under a line that says which card and software they come from."""
    columns = ("part", "tokens/s", "model TFLOP/s", "step", "peak", "planned peak", "rows a pass", "activations")
    lines = [_card_line(report["card"]), "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, found in report["parts"].items():
        if "tokens_a_second" in found:
            lines.append(_row(name, found))
        elif "failed" in found:
            lines.append(f"| {name} | {found['failed']} | | | | | | |")
    return "\n".join([*lines, *_loading_table(report["parts"])])


def _loading_table(parts: dict[str, Any]) -> list[str]:
    """How long the parts that load from the disk took until their first step, from the base and from its copy."""
    loads = [
        (name, source, found[source])
        for name, found in parts.items()
        for source in ("from_base", "from_copy")
        if source in found
    ]
    if not loads:
        return []
    columns = ("part", "from", "read", "imports", "loading", "first step", "in all")
    rows = [
        f"| {name} | {'its quantised copy' if source == 'from_copy' else 'the base'} "
        f"| {_gigabytes(found['copy_bytes' if found['from_copy'] else 'base_bytes'])} "
        + "".join(f"| {found[f'{key}_seconds']:.1f} s " for key in ("import", "load", "first_step", "total"))
        + "|"
        for name, source, found in loads
    ]
    return ["", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows]


def _card_line(card: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in card["packages"].items())
    return f"{card['gpu']}, driver {card['driver']}, CUDA {card['cuda']}, {packages}; {card['date']}."


def _row(name: str, found: dict[str, Any]) -> str:
    return (
        f"| {name} | {found['tokens_a_second']:,.0f} | {found['model_tflops']:.0f} | {found['seconds_a_step']:.2f} s "
        f"| {_gigabytes(found['peak_bytes'])} | {_gigabytes(found['plan']['allocated_bytes'])} "
        f"| {found['micro_batch']} | {'recomputed' if found['recompute'] else 'kept'} |"
    )


def _gigabytes(size: int | None) -> str:
    return "–" if size is None else f"{size / 1e9:.1f} GB"
