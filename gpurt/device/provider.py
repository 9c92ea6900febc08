"""DeviceProvider: a whole provider over any Driver: op table, fusion, launches, arena, program cache, constants."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpurt.device.driver import DeviceInfo, Driver
from gpurt.device.fusion import groups
from gpurt.device.handed_on import HANDED_ON
from gpurt.device.table import TABLE, OpTable
from gpurt.device.unit import KernelUnit
from gpurt.device.weights import Constants
from gpurt.dtypes import onnx_name
from gpurt.errors import InvalidArgument
from gpurt.graph.view import GraphView, NodeView
from gpurt.memory.arena import RegionArena
from gpurt.provider import BufferRef, Capability, DeviceMemory, DeviceUnit, HostUnit, Provider, SupportInfo

MEMORY_OPTIONS: Mapping[str, str] = {
    "memory_limit": "most bytes the arena may hold, an integer; default: the device's memory",
    "arena_extend_strategy": "next_power_of_two (default) or same_as_requested",
    "kernel_class": "auto (default: by device), gpu or cpu: which variants of the kernels run",
}


class DeviceProvider(Provider, DeviceMemory):
    """Base of kernel providers on a GPU API.

    Args:
        driver: the opened device.
        device: name:index, for example ``opencl:0``.
        options: the memory options of MEMORY_OPTIONS; the others belong to the subclass.
    """

    table: ClassVar[OpTable] = TABLE

    def __init__(self, driver: Driver, device: str, options: Mapping[str, Any]) -> None:
        _load_rows()
        self.driver = driver
        self.info: DeviceInfo = driver.info()
        self.device = device
        self.memory_space = device
        limit = options.get("memory_limit")
        if limit is not None and (not isinstance(limit, int) or limit <= 0):
            raise InvalidArgument(f"memory_limit is {limit!r}", provider=self.name, remedy="Give a number of bytes")
        self.arena = RegionArena(
            driver.alloc,
            driver.free,
            alignment=max(self.info.base_align, 128),
            max_block=self.info.max_alloc,
            limit=limit,
            strategy=options.get("arena_extend_strategy", "next_power_of_two"),
            name=device,
        )
        self.constants = Constants(driver)
        self._programs: dict[bytes, Any] = {}
        self._build_lock = threading.Lock()

    @classmethod
    def supported(cls) -> Mapping[tuple[str, str], SupportInfo]:
        """The rows of the table, and what is handed on to the host on purpose."""
        _load_rows()
        found = {key: SupportInfo(False, note=reason) for key, reason in HANDED_ON.items()}
        for key, row in cls.table.rows.items():
            dtypes = {at: tuple(sorted(onnx_name(d) for d in allowed)) for at, allowed in row.types.items()}
            found[key] = SupportInfo(True, dtypes, "not with every attribute or rank" if row.check else "")
        return found

    def get_capability(self, graph: GraphView) -> Capability:
        """One claim for each node that has a row which accepts it."""
        claims, refused = [], {}
        for node in graph.nodes:
            reason = self.table.refusal(node, self.info)
            if reason is None:
                claims.append((node.name,))
            else:
                refused[node.name] = reason
        return Capability(claims, refused)

    def compile(self, partition: GraphView) -> Sequence[HostUnit | DeviceUnit]:
        """One unit a node, elementwise chains fused into one."""
        made: Iterable[DeviceUnit | tuple[NodeView, ...]] = groups(self, partition)
        return [KernelUnit(self, g[0]) if isinstance(g, tuple) else g for g in made]

    def program(self, text: str, name: str) -> Any:
        """The program with this text, built once."""
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        program = self._programs.get(key)
        if program is None:
            with self._build_lock:
                program = self._programs.get(key)
                if program is None:
                    program = self._programs[key] = self.driver.build(text, name)
        return program

    def stream(self) -> Any:
        """A new in-order queue of the device."""
        return self.driver.stream()

    def write(self, dst: BufferRef, src: np.ndarray, stream: Any) -> Any:
        """See DeviceMemory."""
        return self.driver.write(dst, src, stream)

    def read(self, dst: np.ndarray, src: BufferRef, stream: Any) -> Any:
        """See DeviceMemory."""
        return self.driver.read(dst, src, stream)

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: Any) -> None:
        """See DeviceMemory."""
        self.driver.copy(dst, src, nbytes, stream)

    def synchronize(self, stream: Any) -> None:
        """See DeviceMemory."""
        self.driver.synchronize(stream)

    def constant(self, array: np.ndarray) -> BufferRef:
        """See DeviceMemory."""
        return self.constants.get(array)


def _load_rows() -> None:
    from gpurt.device import ops

    ops.load()
