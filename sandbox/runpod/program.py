"""The first program of a container: `python -m sandbox.runpod.program MODULE` runs the handler as `python -m MODULE`.

At import RunPod's SDK looks up the machine's processor for its debug output, in a process of its own, and loads an SSH
client for its command line. Both together take longer than everything else at a container's start, and no handler uses
them, so here they are not asked.
"""

from __future__ import annotations

import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast


def main(arguments: list[str]) -> None:
    """Run the module as the main program; what follows its name are its arguments."""
    cast(dict[str, Any], sys.modules)["cpuinfo"] = SimpleNamespace(get_cpu_info=lambda: {"brand_raw": "not asked"})
    sys.modules["paramiko"] = ModuleType("paramiko")
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
