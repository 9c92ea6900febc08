"""The Driver protocol: the few calls that a GPU API must offer. gpurt.device builds a whole provider on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gpurt.provider import BufferRef, DeviceTimer

Arg = BufferRef | np.generic
"""A kernel argument: a tensor (passed as base pointer and i64 offset in elements, see TENSOR in the dialect headers)
or a NumPy scalar of the exact type that the kernel declares."""


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """Facts about a device that lowerings and predicates ask for; sizes in bytes."""

    name: str
    kind: str = "gpu"  # "gpu", "accelerator", "cpu" or "emulator"
    dialect: str = "opencl"  # which dialect header kernels get: "opencl" or "cuda"
    kernel_class: str = "gpu"  # "gpu" (local-memory tiles) or "cpu" (fat work-items, float8)
    vendor: str = ""
    driver: str = ""
    fp16: bool = False  # half arithmetic; half storage works everywhere
    fp64: bool = False
    subgroups: bool = False
    compute_units: int = 1
    vector_width: int = 8  # float32 lanes of a native vector; decides register tiles of the cpu class
    max_group: int = 256
    local_bytes: int = 32768
    max_alloc: int = 1 << 31
    memory: int = 1 << 32
    base_align: int = 128
    shares_host: bool = False  # computes in the host's memory, all of which the host can see
    sleeps: bool = (
        False  # a CPU whose driver's threads sleep between launches: waking them takes longer than small kernels
    )


@dataclass(frozen=True, slots=True)
class TensorArg:
    """A tensor argument with the element size that turns its byte offset into the element offset kernels take."""

    ref: BufferRef
    itemsize: int


class Launcher(Protocol):
    """A kernel with all arguments set: call it with a stream; it belongs to one PlanState.

    What a call returns is for the driver's timer. Attributes grid and block, where there are any, are for profiles.
    """

    def __call__(self, stream: Any) -> Any: ...

    def set(self, position: int, arg: TensorArg | np.generic) -> None:
        """Replace an argument by one of the same type; position counts tensors and scalars as one each."""

    def resize(self, grid: tuple[int, int, int]) -> None:
        """Launch so many groups from now on; 0 in any dimension launches nothing."""


@runtime_checkable
class TimingDriver(Protocol):
    """Optional for a Driver: pacing of queues, and the device's own times."""

    def mark(self, stream: Any) -> Callable[[], None]:
        """A function that waits for what is on the stream by now."""

    def timer(self) -> DeviceTimer:
        """A queue whose work is timed."""


class Driver(Protocol):
    """A device of a GPU API. All calls may come from several threads; a stream is used by one at a time."""

    def info(self) -> DeviceInfo: ...

    def alloc(self, nbytes: int) -> Any:
        """Raises MemoryError when the device has no room."""

    def free(self, buffer: Any) -> None: ...

    def write(self, dst: BufferRef, src: np.ndarray, stream: Any) -> Any:
        """Enqueue a copy; the caller keeps src and what is returned until the stream was waited for."""

    def read(self, dst: np.ndarray, src: BufferRef, stream: Any) -> Any:
        """Enqueue a copy; the caller keeps dst and what is returned until the stream was waited for."""

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: Any) -> None: ...

    def build(self, source: str, name: str) -> Any:
        """Compile a program. Raises gpurt.errors.EPFail with the compiler's log."""

    def prepare(
        self,
        program: Any,
        entry: str,
        args: Sequence[TensorArg | np.generic],
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
    ) -> Launcher:
        """Bind a kernel: grid counts groups, block the items of a group."""

    def stream(self) -> Any: ...

    def synchronize(self, stream: Any) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class PortableDriver(Protocol):
    """Optional for a Driver: programs as bytes, which other processes on the same device can load."""

    def portability(self) -> str:
        """All that a binary depends on besides its text: device, driver, compiler options."""

    def binary(self, program: Any) -> bytes | None:
        """A program that was built; None where the driver does not say."""

    def load(self, binary: bytes, name: str) -> Any:
        """A program as build would give it. Raises any exception if the driver does not take the binary."""


@runtime_checkable
class FollowingDriver(Protocol):
    """Optional for a Driver: queues that wait for one another while the host goes on."""

    def follow(self, stream: Any, leader: Any) -> None:
        """What is enqueued on a stream from now on begins after what is on the leader by now."""


class SharingDriver(Driver, Protocol):
    """What a driver offers besides where DeviceInfo.shares_host is set."""

    def view(self, ref: BufferRef) -> np.ndarray:
        """The memory's bytes as the host sees them, uint8 of shape [ref.nbytes]."""

    def wrap(self, array: np.ndarray) -> Any:
        """A buffer over a contiguous host array at a 64-byte boundary, which it keeps alive."""


@runtime_checkable
class AddressingDriver(SharingDriver, Protocol):
    """Optional where DeviceInfo.shares_host is set: what persistent kernels need, see gpurt.device.persistent."""

    def address(self, buffer: Any) -> int:
        """Where kernels see the buffer: the number that a pointer to its first byte has, for as long as it exists."""

    def done(self, token: Any) -> bool:
        """Whether what a launch returned is complete."""

    def wait(self, token: Any) -> None:
        """Wait until it is."""
