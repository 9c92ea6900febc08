"""DeviceProvider: a whole provider over any Driver: op table, fusion, launches, arena, program cache, constants."""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, cast

import numpy as np

from gpurt.device.binaries import binaries_for
from gpurt.device.driver import (
    AddressingDriver,
    DeviceInfo,
    Driver,
    FollowingDriver,
    Launcher,
    SharingDriver,
    TimingDriver,
)
from gpurt.device.fusion import groups
from gpurt.device.handed_on import HANDED_ON
from gpurt.device.lowering import Launch
from gpurt.device.persistent import Part, Programs
from gpurt.device.persistent.part import Arg
from gpurt.device.preference import preference
from gpurt.device.progress import Progress
from gpurt.device.table import TABLE, OpTable
from gpurt.device.tuning import TUNING_OPTIONS, Choices, tuning_for
from gpurt.device.unit import KernelUnit
from gpurt.device.weights import Constants
from gpurt.dtypes import onnx_name
from gpurt.errors import InvalidArgument
from gpurt.graph.view import GraphView, NodeView
from gpurt.memory.arena import RegionArena
from gpurt.provider import (
    BufferRef,
    Capability,
    DeviceMemory,
    DeviceTimer,
    DeviceUnit,
    HostUnit,
    Provider,
    Step,
    SupportInfo,
)

MEMORY_OPTIONS: Mapping[str, str] = {
    "memory_limit": "most bytes that weights and arena may take together, an integer; default: the device's memory",
    "arena_extend_strategy": "next_power_of_two (default) or same_as_requested",
    "initial_chunk_size_bytes": "bytes of the arena's first region, default 1 MiB, or less under a memory_limit",
    "max_power_of_two_extend_bytes": "bytes up to which next_power_of_two doubles, default 1 GiB, or less under "
    "a memory_limit",
    "over_budget": "layers (default): what is over memory_limit runs on the next provider; "
    "stream: its weights are copied at each run, while the layer before computes",
    "share_arena": "True: one arena for all sessions on the device that say so, with the same options",
    "kernel_class": "auto (default: by device), gpu or cpu: which variants of the kernels run",
    "persistent_kernels": "auto (default: where a driver's threads sleep between launches, as PoCL's), True or False: "
    "the launches of a plan as one; for devices that compute in the host's memory",
    **TUNING_OPTIONS,
}

BRANCHES: Final = 4
"""Queues for independent kernels on a GPU."""

MOST_PROGRAMS: Final = 1024
"""Programs that a provider keeps for plans to come, whether or not a plan uses them; the oldest goes first."""


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
        self.shares_host = self.info.shares_host
        if self.info.kind == "gpu" and isinstance(driver, FollowingDriver):
            self.branches = BRANCHES  # all cores of a CPU have work by one kernel
        terms = {
            "limit": _nbytes(options, "memory_limit"),
            "strategy": options.get("arena_extend_strategy", "next_power_of_two"),
            "initial": _nbytes(options, "initial_chunk_size_bytes"),
            "max_extend": _nbytes(options, "max_power_of_two_extend_bytes"),
        }
        make = partial(_arena, driver, device, self.info, terms)
        over = options.get("over_budget", "layers")
        if not (isinstance(over, str) and over in ("layers", "stream")):
            raise InvalidArgument(f"over_budget is {over!r}", provider=self.name, remedy="Use layers or stream")
        self.streams_weights = over == "stream"
        shared = options.get("share_arena", False)
        if not isinstance(shared, bool):
            raise InvalidArgument(f"share_arena is {shared!r}", provider=self.name, remedy="Give True or False")
        self.arena = _shared_arena(driver, tuple(terms.values()), make) if shared else make()
        self.constants = Constants(driver, self.arena)
        self.tuning = tuning_for(self.info, options)
        self._programs: dict[bytes, Any] = {}
        self._binaries = binaries_for(driver, options.get("cache_dir"))
        self._build_lock = threading.Lock()
        self._progress = Progress(device)
        self._persistent = (
            Programs(driver, self.info, self.program)
            if _persistent(options, self.info) and isinstance(driver, AddressingDriver)
            else None
        )

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
        units = [KernelUnit(self, g[0]) if isinstance(g, tuple) else g for g in made]
        return self.tuning.units(self, units)

    @property
    def choices(self) -> Choices:
        """What lowerings ask for parameters of kernels."""
        return self.tuning.choices

    def channels_last(self, node: NodeView) -> float:
        """In the CPU class convolutions and pools are faster so."""
        return preference(node, self.info)

    def identity(self) -> str:
        """The facts of the device, its driver's version among them."""
        return repr(self.info)

    def kernel(self, launch: Launch, name: str) -> Callable[[Sequence[Arg], tuple[int, int, int]], Launcher]:
        """What binds a launch; where persistent kernels are in use its own program is built when it is called alone."""
        build = partial(self.program, launch.source, name)
        if self._persistent is not None and launch.block == Part.block:
            return partial(Part, self.driver, build, launch.source, launch.entry)
        return partial(_prepare, self.driver, build(), launch)

    def merged(self, launches: Sequence[Step]) -> Sequence[Step]:
        """See DeviceMemory."""
        return launches if self._persistent is None else self._persistent.merged(launches)

    def program(self, text: str, name: str, made: Callable[[], str] | None = None) -> Any:
        """The program with this text, or with the text that is made where the program for this key is not there yet."""
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        program = self._programs.get(key)
        if program is None:
            with self._build_lock:
                program = self._programs.get(key)
                if program is None:
                    program = self._programs[key] = self._kept(text, name) or self._built(text, name, made)
                    if len(self._programs) > MOST_PROGRAMS:  # plans keep what they use
                        del self._programs[next(iter(self._programs))]
        return program

    def _kept(self, text: str, name: str) -> Any | None:
        return None if self._binaries is None else self._binaries.load(text, name)

    def _built(self, text: str, name: str, made: Callable[[], str] | None) -> Any:
        with self._progress.compiling(name):
            program = self.driver.build(made() if made else text, name)
            if self._binaries is not None:  # drivers may compile only now
                self._binaries.keep(text, program)
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

    def view(self, ref: BufferRef) -> np.ndarray:
        """See DeviceMemory."""
        return cast("SharingDriver", self.driver).view(ref)

    def wrap(self, array: np.ndarray) -> BufferRef:
        """See DeviceMemory."""
        return BufferRef(cast("SharingDriver", self.driver).wrap(array), 0, array.nbytes)

    def follow(self, stream: Any, leader: Any) -> None:
        """See DeviceMemory."""
        if isinstance(self.driver, FollowingDriver):
            self.driver.follow(stream, leader)
        else:
            super().follow(stream, leader)

    def mark(self, stream: Any) -> Callable[[], None]:
        """See DeviceMemory."""
        return self.driver.mark(stream) if isinstance(self.driver, TimingDriver) else super().mark(stream)

    def timer(self) -> DeviceTimer | None:
        """See DeviceMemory."""
        return self.driver.timer() if isinstance(self.driver, TimingDriver) else None

    def constant(self, array: np.ndarray) -> BufferRef:
        """See DeviceMemory."""
        return self.constants.get(array)

    def weights(self) -> int:
        """See DeviceMemory."""
        return self.constants.nbytes()


def _nbytes(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value <= 0):
        raise InvalidArgument(f"{name} is {value!r}", remedy="Give a number of bytes")
    return value


def _persistent(options: Mapping[str, Any], info: DeviceInfo) -> bool:
    wanted = options.get("persistent_kernels", "auto")
    if not isinstance(wanted, bool) and not (isinstance(wanted, str) and wanted == "auto"):
        raise InvalidArgument(f"persistent_kernels is {wanted!r}", remedy="Give auto, True or False")
    possible = info.shares_host and info.kernel_class == "cpu"
    return possible and (info.sleeps if wanted == "auto" else bool(wanted))


def _prepare(driver: Driver, program: Any, launch: Launch, args: Sequence[Arg], grid: tuple[int, int, int]) -> Launcher:
    return driver.prepare(program, launch.entry, args, grid, launch.block)


def _arena(driver: Driver, device: str, info: DeviceInfo, terms: Mapping[str, Any]) -> RegionArena:
    return RegionArena(
        driver.alloc,
        driver.free,
        alignment=max(info.base_align, 128),
        max_block=info.max_alloc,
        name=device,
        **terms,
    )


_SHARED: weakref.WeakKeyDictionary[Driver, weakref.WeakValueDictionary[Hashable, RegionArena]] = (
    weakref.WeakKeyDictionary()
)
_SHARED_LOCK = threading.Lock()


def _shared_arena(driver: Driver, terms: Hashable, make: Callable[[], RegionArena]) -> RegionArena:
    """The arena of a device that sessions share on equal terms; it goes with the last of them."""
    with _SHARED_LOCK:
        arenas = _SHARED.setdefault(driver, weakref.WeakValueDictionary())
        arena = arenas.get(terms)
        if arena is None:
            arena = arenas[terms] = make()
        return arena


def _load_rows() -> None:
    from gpurt.device import ops

    ops.load()
