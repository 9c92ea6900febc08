"""Gradient rules by family; each module adds its own to gpurt.autodiff.table.RULES."""

from importlib import import_module
from typing import Final

_FAMILIES: Final = ("elementwise", "linalg", "movement", "reduce")


def load() -> None:
    """Import every family; kept out of import time, as few models hold a Gradient."""
    for family in _FAMILIES:
        import_module(f"{__name__}.{family}")
