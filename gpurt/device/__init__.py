"""The device layer: a whole provider over the Driver seam, shared by CUDA, OpenCL and any other GPU API."""

from gpurt.device.driver import DeviceInfo, Driver, Launcher, TensorArg
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.provider import MEMORY_OPTIONS, DeviceProvider
from gpurt.device.table import ANY, FLOATS, INTS, NUMERIC, TABLE, OpTable, op

__all__ = [
    "ANY",
    "FLOATS",
    "INTS",
    "MEMORY_OPTIONS",
    "NUMERIC",
    "TABLE",
    "DeviceInfo",
    "DeviceProvider",
    "Driver",
    "Launcher",
    "Lowering",
    "OpTable",
    "Ref",
    "TensorArg",
    "op",
]
