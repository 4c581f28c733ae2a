"""`python -m sandbox.smollm2 FOLDER`: make the model there, and print its folder as the last line."""

import sys
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.smollm2 import make_smollm2


def main(cache: Path) -> int:
    """Return 0 when the model is there, 1 after a sentence on why not."""
    try:
        sys.stdout.write(f"{make_smollm2(cache)}\n")
    except SandboxError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
