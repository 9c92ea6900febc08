"""The memory of a provider's device: arena, queues and copies, and what crosses to other libraries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from gpurt.errors import InvalidArgument, ProviderError
from gpurt.provider.units import BufferRef, Step


@dataclass(frozen=True, slots=True, eq=False)
class Borrowed:
    """Another library's array that lies in a device's memory; `owner` keeps that memory alive.

    It is `copied` where the array was not dense: what is written to it does not reach the array.
    """

    ref: BufferRef
    dtype: np.dtype
    shape: tuple[int, ...]
    owner: Any
    copied: bool = False


class Arena(Protocol):
    """The memory of one device as the plan uses it."""

    alignment: int
    max_block: int

    def alloc(self, nbytes: int) -> BufferRef:
        """A block of at least nbytes. Raises gpurt.errors.OutOfMemory."""

    def free(self, ref: BufferRef) -> None:
        """Give a block back to the arena."""

    def stats(self) -> Mapping[str, int]:
        """Counters in bytes and calls: in_use, held, peak, allocations, extensions, limit."""

    def shrink(self) -> int:
        """Give unused regions back to the device; returns the bytes freed."""


class DeviceTimer(Protocol):
    """A queue whose work is timed by the device. One run at a time uses it.

    Attributes:
        stream: the in-order queue.
    """

    stream: Any

    def align(self) -> None:
        """Find out once more how the device's clock relates to the host's; waits for the queue."""

    def time(self, work: Step) -> Any:
        """Call work with the queue; returns a token for span, or None if nothing was enqueued."""

    def span(self, token: Any) -> tuple[int, int]:
        """When the device began and ended the work, in nanoseconds of time.perf_counter_ns; after synchronize."""


class DeviceMemory(ABC):
    """What a provider with memory of its own offers besides Provider; streams are the provider's own objects."""

    device: str
    arena: Arena

    shares_host: bool = False
    """Whether the device computes in the host's own memory, so that view and wrap take the place of copies."""

    streams_weights: bool = False
    """Whether weights beyond the arena's limit are copied at each run, rather than run on the next provider."""

    @abstractmethod
    def stream(self) -> Any:
        """A new in-order queue."""

    def copy_stream(self) -> Any:
        """A queue for copies that overlap with the work on another one; without one of its own a further stream."""
        return self.stream()

    branches: int = 1
    """Queues on which independent kernels are worth enqueuing: more than one where the device runs some at once, and
    lets queues follow one another without the host. Since version 1.1 of the contract."""

    def branch_stream(self, number: int) -> Any:  # noqa: ARG002 - a further one, whichever it is
        """A queue beside the first, for launches; `number` counts from 1. Since version 1.1 of the contract."""
        return self.stream()

    def follow(self, stream: Any, leader: Any) -> None:  # noqa: ARG002 - whatever comes then is late enough
        """Let what is enqueued on a stream from now on begin after what is on another one by now.

        A device without a way of its own waits for the leader.
        """
        self.synchronize(leader)

    @abstractmethod
    def write(self, dst: BufferRef, src: np.ndarray, stream: Any) -> Any:
        """Enqueue a copy of a contiguous host array to the device.

        The caller keeps src, untouched, and what is returned until synchronize.
        """

    @abstractmethod
    def read(self, dst: np.ndarray, src: BufferRef, stream: Any) -> Any:
        """Enqueue a copy into a contiguous host array; it is complete after synchronize.

        The caller keeps what is returned until then.
        """

    @abstractmethod
    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: Any) -> None:
        """Enqueue a copy within the device."""

    @abstractmethod
    def synchronize(self, stream: Any) -> None:
        """Wait until everything enqueued on the stream is done."""

    def mark(self, stream: Any) -> Callable[[], None]:
        """A function that waits for what is on the stream by now; without one of its own it waits for the whole stream.

        Since version 1.1 of the contract.
        """
        return partial(self.synchronize, stream)

    def timer(self) -> DeviceTimer | None:
        """Optional: a queue that notes when the device works, for profiles; None if the device cannot tell.

        Since version 1.1 of the contract.
        """
        return None

    @abstractmethod
    def constant(self, array: np.ndarray) -> BufferRef:
        """Device memory that holds this content, shared with everyone who asks for the same content.

        The caller keeps the reference for as long as the memory is used; then it may be freed.
        """

    def view(self, ref: BufferRef) -> np.ndarray:  # noqa: ARG002
        """Where shares_host: the bytes of the memory, as the host sees them, uint8 of shape [ref.nbytes].

        Reading is right after synchronize, writing while nothing that is enqueued uses the memory.
        """
        raise self._apart()

    def wrap(self, array: np.ndarray) -> BufferRef:  # noqa: ARG002
        """Where shares_host: a contiguous host array at a 64-byte boundary as device memory; the array is kept."""
        raise self._apart()

    def _apart(self) -> ProviderError:
        return ProviderError(
            f"{type(self).__name__} shares no memory with the host",
            remedy="Leave shares_host unset, or implement view and wrap",
        )

    def merged(self, launches: Sequence[Step]) -> Sequence[Step]:
        """Optional: the same work in the same order in fewer launches, where that is faster.

        The given ones can still be called by themselves, and what is set on them holds for both.
        """
        return launches

    def weights(self) -> int:
        """Optional: bytes of the constants that this provider's session holds on the device."""
        return 0

    # Optional: other libraries' arrays, and tensors that outlive their session.

    dlpack_device: tuple[int, int] | None = None
    """What ``__dlpack_device__`` says of the memory: (2, index) for CUDA, (4, index) for OpenCL; None: no DLPack."""

    def reaches(self, ref: BufferRef) -> bool:  # noqa: ARG002
        """Whether kernels can use a buffer that another provider object made on a device of the same name."""
        return False

    def take(self, value: Any, stream: Any) -> Borrowed | None:  # noqa: ARG002
        """The memory of another library's array, dense and complete for what is put on the stream from now on.

        None where it lies elsewhere, in another context included.
        """
        return None

    def at(self, pointer: int, nbytes: int) -> BufferRef:  # noqa: ARG002
        """Memory of the caller's at an address (CUDA) or behind a handle (``cl_mem``)."""
        raise InvalidArgument(
            f"{type(self).__name__} takes no memory by its address", remedy="Bind a gpurt.Tensor instead"
        )

    def export(self, ref: BufferRef, dtype: np.dtype, shape: tuple[int, ...], owner: Any) -> Any:  # noqa: ARG002
        """An array of the device's own library over the memory, which keeps owner alive and speaks DLPack; or None."""
        return None

    def settle(self) -> None:  # noqa: B027 - where there are no other libraries there is nothing to wait for
        """Wait for everything that any library has put on the device."""
