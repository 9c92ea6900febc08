"""The contract between the core and a provider: what a plug-in implements, and nothing else of gpurt.

A provider is a class that an entry point in the group ``gpurt.providers`` names. It says which devices it has (probe),
which nodes of a graph it can run and why not the others (get_capability), turns what the partitioner granted into units
(compile), and owns the memory of its device. Two kinds share the contract: a *kernel provider* returns one unit for
each kernel, a *compiling provider* one unit for a whole partition. A provider whose memory is the host's returns units
that are called with NumPy arrays (HostUnit); all others return units that are planned for concrete shapes and bound to
memory that the plan assigns (DeviceUnit).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np

from gpurt.errors import InvalidArgument, ProviderError
from gpurt.graph.view import GraphView, NodeView
from gpurt.spec import Spec
from gpurt.symbolic import Size

PROVIDER_API: Final = (1, 1)
"""Version of this contract: a provider of another major version is refused; a minor one adds optional members."""

HOST: Final = "host"
"""The memory space of NumPy arrays."""


class Unavailable(Exception):
    """Raised by probe or the constructor of a provider that cannot be used here.

    Attributes:
        reason: what is missing, as a clause: "PyOpenCL is not installed".
        remedy: what the user can do: "pip install gpurt[opencl]".
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}. {remedy}" if remedy else reason)


class Refused(Exception):
    """Raised by DeviceUnit.plan when the unit cannot run with these shapes; the reason is kept for explain()."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a provider can use: ``name`` is ``provider:index``, ``description`` is for people."""

    name: str
    description: str
    kind: str = "cpu"  # "gpu", "accelerator", "cpu" or "emulator"


@dataclass(frozen=True, slots=True)
class Capability:
    """The answer to GetCapability.

    Attributes:
        claims: node names; one name for a kernel, several for a group that is compiled as one, or not at all. Of
            claims that overlap one is kept; whose claims were not is asked again about the rest.
        refused: for each node that is not claimed the reason.
    """

    claims: Sequence[tuple[str, ...]]
    refused: Mapping[str, str] = field(default_factory=dict)

    def takes(self, node: NodeView) -> bool:
        """Whether the node is in a claim."""
        return any(node.name in claim for claim in self.claims)


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast a device is, for the placement of nodes: sustained, at sizes that are usual in models.

    Attributes:
        gemm, conv, depthwise: multiplications and additions a second in matrix products, convolutions, and convolutions
            with one input channel a group.
        window: taps a second of pooling windows.
        math: elements a second of exponentials and the like.
        data: bytes read and written a second where nothing else counts.
        launch: seconds that a node takes at least.
        view: seconds of a node that only gives its input another shape.
        sync: seconds to wait for the device's queue.
        calls: whether a node takes several calls of `launch` seconds, as NumPy's do.
        read, write: bytes a second from the device to the host, and from the host to the device.
    """

    gemm: float
    conv: float
    depthwise: float
    window: float
    math: float
    data: float
    launch: float
    view: float = 0.0
    sync: float = 0.0
    read: float = 1e10
    write: float = 1e10
    calls: bool = False


@dataclass(frozen=True, slots=True)
class SupportInfo:
    """What a provider says of an operator in general, for tables and documentation; see Provider.supported.

    Attributes:
        kernel: whether it has a kernel; where it has not, ``note`` says why.
        dtypes: input position -> ONNX names of the element types that the kernel takes, None standing for all other
            inputs; empty where it takes all that the standard allows.
        note: conditions, or the reason.
    """

    kernel: bool = True
    dtypes: Mapping[int | None, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class BufferRef:
    """A range of device memory: the driver's buffer, and offset and length in bytes.

    Whoever keeps the reference keeps `owner`, if there is one, and with it the memory.
    """

    buffer: Any
    offset: int
    nbytes: int
    owner: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """What a unit's plan touches: an input or output by position, a workspace by size, or a constant by content."""

    kind: str  # "in", "out", "temp" or "const"
    index: int = 0
    nbytes: int = 0
    array: np.ndarray | None = None


Step = Callable[[Any], Any]
"""A bound launch: called with the stream it is to run on; it must not block. What it returns is for DeviceTimer."""


class Bound(Protocol):
    """A unit's plan over actual memory; it belongs to one run at a time."""

    @property
    def steps(self) -> Sequence[Step]:
        """What to call, in order, with the stream."""

    def rebind(self, operand: int, ref: BufferRef) -> None:
        """Point one operand (position in UnitPlan.operands) at other memory."""

    def resize(self, values: Sequence[int]) -> None:
        """Optional: set what depends on sizes again; one number for each of UnitPlan.sizes."""


@dataclass(slots=True)
class UnitPlan:
    """A unit for concrete shapes.

    Attributes:
        outputs: specs of the unit's outputs.
        operands: what bind wants memory for, in this order. Inputs that no kernel reads do not appear.
        aliases: output position -> (input position, byte offset): the output is the input's memory.
        inplace: output position -> input positions whose memory it may take if nobody reads them later.
        carried: output position -> (input position, numbers of steps that only copy that input there): they are left
            out where the output takes the input's memory.
        bind: memory for the operands -> bound steps.
        kernels: names of what is launched, for explain and traces.
        sizes: symbolic sizes (gpurt.symbolic.Size) that its launches depend on; then what bind returns has resize.
    """

    outputs: Sequence[Spec]
    operands: Sequence[Operand] = ()
    aliases: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    inplace: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    bind: Callable[[Sequence[BufferRef]], Bound] | None = None
    kernels: Sequence[str] = ()
    sizes: Sequence[Size] = ()
    carried: Mapping[int, tuple[int, frozenset[int]]] = field(default_factory=dict)


class Unit(Protocol):
    """What compile returns: one or several nodes that run as one."""

    @property
    def nodes(self) -> Sequence[NodeView]:
        """In topological order."""

    @property
    def inputs(self) -> Sequence[str | None]:
        """Names of the values read from outside; None where an optional input is left out."""

    @property
    def outputs(self) -> Sequence[str | None]:
        """Names of the values yielded; None where an optional output is not wanted."""


class HostUnit(Unit, Protocol):
    """A unit over host values: NumPy arrays, lists for sequences, None for absent optionals."""

    def call(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Compute the outputs. Inputs are never changed; an output may be a view of an input."""


@runtime_checkable
class ContinuingUnit(Protocol):
    """Optional for a HostUnit: outputs that continue an input, a cache, and can be written to given memory.

    Attributes:
        continues: output position -> position of the input that it continues.
    """

    continues: Mapping[int, int]

    def call_into(self, inputs: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
        """As call. Arrays, by output position, are None or memory of the caller's for that output.

        Where one has the output's dtype and shape it is written and returned. It may be the memory of the input that
        the output continues, and then holds what it held but for what is new; an error leaves it as it was.
        """


class DeviceUnit(Unit, Protocol):
    """A unit over device memory."""

    @property
    def host_inputs(self) -> frozenset[int]:
        """Positions of inputs whose content must be known when the unit is planned (axes, pads, sizes)."""

    symbolic: bool
    """Optional: plan takes specs whose shapes have symbolic sizes (gpurt.symbolic.Size) and keeps no size but in
    UnitPlan's own attributes. A unit that does not say so is given plain numbers, and its plan serves these alone."""

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        """Plan for these inputs.

        Raises:
            Refused: not with these shapes; the node goes to the next provider.
            gpurt.spec.Unknown: an output's shape depends on content that is not known yet.
        """


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


class Provider(ABC):
    """One device of one kind of hardware, opened for a session.

    Class attributes:
        name: the provider's name in ``providers=[...]``.
        api: the contract's version it was written for.
        options: name -> description of the provider options it accepts.
    """

    name: ClassVar[str]
    api: ClassVar[tuple[int, int]] = PROVIDER_API
    options: ClassVar[Mapping[str, str]] = {}

    device: str
    memory_space: str

    prefers_integers: Collection[str] = frozenset()
    """Operators that are faster on quantized numbers (QLinearConv for Conv) than on floats between conversions.

    From level extended on, what is between DequantizeLinear and QuantizeLinear becomes such an operator wherever there
    is a kernel. They may be any of Conv, MatMul, Gemm, Add, Mul, Sigmoid, LeakyRelu, AveragePool and GlobalAveragePool.
    Since version 1.1 of the contract."""

    @classmethod
    @abstractmethod
    def probe(cls) -> Sequence[Device]:
        """All devices, in a fixed documented order; index 0 is the default. Raises Unavailable if there is none."""

    @classmethod
    @abstractmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        """Open a device by index, or by what the options choose. Raises Unavailable or InvalidArgument."""

    @abstractmethod
    def get_capability(self, graph: GraphView) -> Capability:
        """Say which of the graph's nodes this provider can run."""

    @abstractmethod
    def compile(self, partition: GraphView) -> Sequence[HostUnit | DeviceUnit]:
        """Turn granted nodes into units in topological order. A GpurtError hands the partition to the next provider."""

    def trim(self) -> int:
        """Optional: free memory of the host that is kept for later runs and that none uses now; bytes freed."""
        return 0

    @classmethod
    def supported(cls) -> Mapping[tuple[str, str], SupportInfo] | None:
        """Optional: (domain, operator) -> what there is, known without a device. None: only get_capability tells.

        It is for people: sessions ask get_capability, which sees a node's types, ranks and attributes too.
        """
        return None

    def transformers(self) -> Sequence[Any]:
        """Optional: graph optimizations for this provider alone, as SessionOptions.add_transformer takes them.

        They run in every session that lists the provider. A rule among them fires where this provider, and none before
        it, has kernels for the nodes that it makes. Give fresh objects at each call.
        """
        return ()

    def channels_last(self, node: NodeView) -> float:  # noqa: ARG002 - by default no node is told from another
        """Optional: the share of a node's time that channels last would save: 0.25 for a quarter, negative if slower.

        Asked at level layout of the nodes that the provider was given, in ONNX's layout: most of all Conv,
        ConvTranspose and the pools. Where it is worth the Transposes at the edges of a region, these run as operators
        of the domain ``gpurt.channels_last`` (see gpurt.graph.channels_last), everything between them as ONNX's own
        with other axes; a node stays as it is where get_capability does not claim what would take its place.
        """
        return 0.0

    def rates(self) -> Rates | None:
        """Optional: how fast the device is, where its maker knows. None: the core measures it, once for an identity."""
        return None

    def identity(self) -> str:
        """Optional: what measured rates hold for; by default the device's name and description."""
        found = [d.description for d in type(self).probe() if d.name == self.device]
        return f"{self.device} {' '.join(found)}"

    def close(self) -> None:  # noqa: B027 - most providers have nothing to do
        """Release what the session's use of the device holds."""


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
