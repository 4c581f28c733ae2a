"""Optional packages: whether one can really be used here, which looking for it does not tell."""

from __future__ import annotations

import importlib
import logging

log = logging.getLogger(__name__)


def imports(name: str) -> bool:
    """Whether the module is there and can be imported."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    except Exception as error:  # built for another torch or CUDA, it may raise anything
        log.warning("%s can't be imported (%s)", name, type(error).__name__)
        return False
    return True
