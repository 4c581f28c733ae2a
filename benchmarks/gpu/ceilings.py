"""What the card reaches without a model: `python -m benchmarks.gpu.ceilings <answer>`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.gpu.card import measure_ceilings

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure_ceilings()))
