"""Autotuning: parameters of kernels measured on the device, verified, and kept for later sessions.

Lowerings ask ``c.choose(family, sizes, candidates, default)`` and stay pure: what they get comes from tables (a cache
file, a file shipped with an application, the package's own), else it is the default. With tuning="online" a unit's
open choices are measured when it is first planned for a shape.
"""

from gpurt.device.tuning.choices import Choices, Key, Value
from gpurt.device.tuning.setup import TUNING_OPTIONS, Tuning, tuning_for
from gpurt.device.tuning.tables import Choice, Table, package_tables, read_tables, write_tables

__all__ = [
    "TUNING_OPTIONS",
    "Choice",
    "Choices",
    "Key",
    "Table",
    "Tuning",
    "Value",
    "package_tables",
    "read_tables",
    "tuning_for",
    "write_tables",
]
