"""The operators of the device layer, by family; each module adds its rows to gpurt.device.table.TABLE."""

from importlib import import_module
from pkgutil import iter_modules


def load() -> None:
    """Import every family, once; kept out of import time so that `import gpurt` stays light."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
