"""The operators of the device layer, by family; each module adds its rows to gpurt.device.table.TABLE."""

from importlib import import_module
from typing import Final

MODULES: Final = ("copying", "movement")


def load() -> None:
    """Import every family, once; kept out of import time so that `import gpurt` stays light."""
    for name in MODULES:
        import_module(f"gpurt.device.ops.{name}")
