"""The trainer's handler, as RunPod's workers run it here: `trainer.handler` with a quicker start.

A chaos suite starts hundreds of them, and the SDK asks at import which processor the machine has, for
its debug output. That takes a second of that processor, more than everything else together.
"""

import sys
from types import SimpleNamespace
from typing import Any, cast

cast(dict[str, Any], sys.modules)["cpuinfo"] = SimpleNamespace(get_cpu_info=lambda: {"brand_raw": "not asked"})

from trainer.handler import main  # noqa: E402

if __name__ == "__main__":
    main()
