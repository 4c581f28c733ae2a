"""`make lock`: prints the pinned requirements of the trainer's image, from pip's installation report."""

import json
import sys
from pathlib import Path

# The base image has a CUDA build of torch, which pip must not replace.
_FROM_THE_BASE_IMAGE = ("torch==", "triton==", "nvidia-c", "lora-worker==")


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text())
    pins = sorted(f"{item['metadata']['name'].lower()}=={item['metadata']['version']}" for item in report["install"])
    python = report["environment"]["python_version"]
    print(f"# Made by `make lock`, with Python {python}.")
    print("# Without torch and its CUDA libraries: the base image brings those.")
    print("\n".join(pin for pin in pins if not pin.startswith(_FROM_THE_BASE_IMAGE)))


if __name__ == "__main__":
    main()
