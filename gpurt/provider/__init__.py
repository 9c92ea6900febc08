"""The contract between the core and a provider: what a plug-in implements, and nothing else of gpurt.

A provider is a class that an entry point in the group ``gpurt.providers`` names. It says which devices it has (probe),
which nodes of a graph it can run and why not the others (get_capability), turns what the partitioner granted into units
(compile), and owns the memory of its device. Two kinds share the contract: a *kernel provider* returns one unit for
each kernel, a *compiling provider* one unit for a whole partition. A provider whose memory is the host's returns units
that are called with NumPy arrays (HostUnit); all others return units that are planned for concrete shapes and bound to
memory that the plan assigns (DeviceUnit).
"""

from gpurt.provider.contract import (
    HOST,
    PROVIDER_API,
    Capability,
    Device,
    Provider,
    Rates,
    SupportInfo,
    Unavailable,
)
from gpurt.provider.memory import Arena, Borrowed, DeviceMemory, DeviceTimer
from gpurt.provider.units import (
    Bound,
    BufferRef,
    ContinuingUnit,
    DeviceUnit,
    HostUnit,
    Operand,
    Refused,
    Step,
    Unit,
    UnitPlan,
)

__all__ = [
    "HOST",
    "PROVIDER_API",
    "Arena",
    "Borrowed",
    "Bound",
    "BufferRef",
    "Capability",
    "ContinuingUnit",
    "Device",
    "DeviceMemory",
    "DeviceTimer",
    "DeviceUnit",
    "HostUnit",
    "Operand",
    "Provider",
    "Rates",
    "Refused",
    "Step",
    "SupportInfo",
    "Unavailable",
    "Unit",
    "UnitPlan",
]
