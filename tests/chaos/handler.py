"""The trainer's handler, as RunPod's workers run it here: `lora_trainer.handler` with a quicker start.

The chaos suite starts hundreds of them. At import the SDK looks up the machine's processor for its debug
output, and loads an SSH client for its command line: that takes longer than everything else together.
"""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

cast(dict[str, Any], sys.modules)["cpuinfo"] = SimpleNamespace(get_cpu_info=lambda: {"brand_raw": "not asked"})
sys.modules["paramiko"] = ModuleType("paramiko")

from lora_trainer.handler import main  # noqa: E402

if __name__ == "__main__":
    main()
