"""The provider itself: its devices, what it says of nodes, and what it compiles."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from gpurt.graph.view import GraphView, NodeView
from gpurt.provider.units import DeviceUnit, HostUnit

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
