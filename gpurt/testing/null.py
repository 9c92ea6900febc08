"""A device that computes nothing: host logic is tested without a GPU API, and the kernels' texts can be collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gpurt.device import MEMORY_OPTIONS, DeviceInfo, DeviceProvider, TensorArg
from gpurt.errors import InvalidArgument
from gpurt.provider import BufferRef, Device, Provider


@dataclass(frozen=True, slots=True, eq=False)
class NullProgram:
    """A program that was "built": its text, and the operator it was built for."""

    source: str
    name: str


@dataclass(frozen=True, slots=True)
class NullLaunch:
    """A launch as it was made: tensors as (buffer, offset in bytes)."""

    program: NullProgram
    entry: str
    args: tuple[Any, ...]
    grid: tuple[int, int, int]
    block: tuple[int, int, int]


@dataclass(slots=True)
class NullStream:
    """A queue whose copies are made at once and whose launches are only written down."""

    launches: list[NullLaunch] = field(default_factory=list)


class NullDriver:
    """gpurt.device.Driver over byte arrays of the host.

    Attributes:
        programs: everything that was built, in order.
        launches: everything that was launched, on all streams.
    """

    def __init__(self, info: DeviceInfo | None = None) -> None:
        self._info = info or DeviceInfo("null", fp16=True, fp64=True)
        self.programs: list[NullProgram] = []
        self.launches: list[NullLaunch] = []
        self.held = 0

    def info(self) -> DeviceInfo:
        """The facts it was made with."""
        return self._info

    def alloc(self, nbytes: int) -> bytearray:
        """Raises MemoryError where the device that is pretended has no room."""
        if nbytes > self._info.max_alloc or self.held + nbytes > self._info.memory:
            raise MemoryError(f"{self._info.name}: {nbytes} bytes")
        self.held += nbytes
        return bytearray(nbytes)

    def free(self, buffer: bytearray) -> None:
        """Give the buffer back."""
        self.held -= len(buffer)

    def write(self, dst: BufferRef, src: np.ndarray, stream: NullStream) -> None:  # noqa: ARG002
        """Copy from host memory."""
        memoryview(dst.buffer)[dst.offset : dst.offset + src.nbytes] = _bytes(src)

    def read(self, dst: np.ndarray, src: BufferRef, stream: NullStream) -> None:  # noqa: ARG002
        """Copy to host memory: what a kernel should have written is whatever was there, zeros at first."""
        _bytes(dst)[:] = memoryview(src.buffer)[src.offset : src.offset + dst.nbytes]

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: NullStream) -> None:  # noqa: ARG002
        """Copy within the device."""
        source = bytes(memoryview(src.buffer)[src.offset : src.offset + nbytes])
        memoryview(dst.buffer)[dst.offset : dst.offset + nbytes] = source

    def build(self, source: str, name: str) -> NullProgram:
        """Keep the text."""
        self.programs.append(NullProgram(source, name))
        return self.programs[-1]

    def prepare(
        self,
        program: NullProgram,
        entry: str,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> NullLauncher:
        """A launcher that writes its launches down."""
        return NullLauncher(self, program, entry, args, grid, block)

    def stream(self) -> NullStream:
        """A new queue."""
        return NullStream()

    def synchronize(self, stream: NullStream) -> None:
        """Nothing is ever pending."""

    def close(self) -> None:
        """Nothing."""


class NullLauncher:
    """A bound launch that computes nothing."""

    def __init__(
        self,
        driver: NullDriver,
        program: NullProgram,
        entry: str,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> None:
        self._driver, self._program, self._entry = driver, program, entry
        self._args, self._grid, self._block = list(args), grid, block

    def set(self, position: int, arg: TensorArg | np.generic) -> None:
        """Replace an argument."""
        self._args[position] = arg

    def resize(self, grid: tuple[int, int, int]) -> None:
        """Launch so many groups from now on."""
        self._grid = grid

    def __call__(self, stream: NullStream) -> None:
        args = tuple((a.ref.buffer, a.ref.offset) if isinstance(a, TensorArg) else a for a in self._args)
        launch = NullLaunch(self._program, self._entry, args, self._grid, self._block)
        stream.launches.append(launch)
        self._driver.launches.append(launch)


class NullProvider(DeviceProvider):
    """The shared device layer over a NullDriver. It is no entry point: tests register or open it themselves."""

    name: ClassVar[str] = "null"
    options: ClassVar[Mapping[str, str]] = {
        **MEMORY_OPTIONS,
        "dialect": "opencl (default) or cuda: which header kernels get",
    }

    driver: NullDriver

    @classmethod
    def probe(cls) -> Sequence[Device]:
        """One device that is always there."""
        return [Device("null:0", "a device that computes nothing", "emulator")]

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        """A new device with the dialect and kernel class of the options; kernel_class auto is gpu."""
        if index not in (None, 0):
            raise InvalidArgument(f"there is no null:{index}", provider="null", remedy='Use "null"')
        kernel_class = {"auto": "gpu"}.get(options.get("kernel_class", "auto"), options.get("kernel_class"))
        info = DeviceInfo(
            "null", "emulator", options.get("dialect", "opencl"), str(kernel_class),
            fp16=True, fp64=True, compute_units=16,
        )  # fmt: skip
        return cls(NullDriver(info), "null:0", options)


def collect(provider: NullProvider) -> dict[str, str]:
    """Text -> operator of every program that was built on this provider."""
    return {p.source: p.name for p in provider.driver.programs}


def _bytes(array: np.ndarray) -> memoryview:
    """The memory of a contiguous array of any dtype."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(bytearray())
