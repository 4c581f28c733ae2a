"""Whether optional packages can be used. That a package is installed does not mean that it can be imported."""

from __future__ import annotations

import importlib
import logging

log = logging.getLogger(__name__)


def can_import(name: str) -> bool:
    """Whether the module exists and its import succeeds. The reason of a failed import is logged."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    except Exception as error:  # a package that was built for another torch or CUDA may raise anything
        log.warning("%s can't be imported (%s)", name, type(error).__name__)
        return False
    return True
