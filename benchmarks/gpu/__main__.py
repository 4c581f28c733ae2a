"""`python -m benchmarks.gpu [part …]`: the suite and the measurements; writes gpu-report.json after each part."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import describe_card
from benchmarks.gpu.parts import CORRECTNESS, LOADING, PARTS, ROOT, SPEED, TWO_GPUS, run_parts
from benchmarks.gpu.report import format_table, read_report, write_report


def main(arguments: list[str]) -> int:
    """Run the named parts, or all; 0 when none failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of: {', '.join(PARTS)}")
    parser.add_argument("--report", type=Path, default=ROOT / "gpu-report.json")
    parser.add_argument("--tiny", action="store_true", help="a minute's form of the measurements, for the CPU too")
    parser.add_argument("--steps", type=int, help="measured steps of each part, instead of 20")
    parser.add_argument("--warm-up", type=int, help="steps before them, instead of 5")
    parser.add_argument("--folder", type=Path, help="where models are written to be loaded, such as a network volume")
    options = parser.parse_args(arguments)
    changes = {name: value for name in ("steps", "warm_up") if (value := getattr(options, name)) is not None}
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    card = describe_card()
    if card["gpu"] is None and not options.tiny:
        print(
            "There is no NVIDIA GPU here. With --tiny the measurements run on the CPU, at a size that shows no speed."
        )
        return 1
    report = {"card": card, "parts": read_report(options.report).get("parts", {})}
    chosen = options.parts or [*SPEED, *LOADING] if options.tiny else options.parts or PARTS
    for name, found in run_parts(chosen, tiny=options.tiny, changes=changes, folder=options.folder):
        report["parts"][name] = found
        write_report(options.report, report)
        print(f"{name}: {_say(name, found)}", flush=True)
    print(format_table(report))
    return 1 if any("failed" in report["parts"][name] for name in chosen) else 0


def _say(name: str, found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"FAILED: {found['failed']}\n{found.get('output', '')[-3000:]}"
    if name in {CORRECTNESS, TWO_GPUS}:
        return "\n" + found["output"][-5000:]
    if "tokens_a_second" in found:
        return f"{found['tokens_a_second']:,.0f} tokens/s, {found['part_seconds']} s in all"
    return str(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
