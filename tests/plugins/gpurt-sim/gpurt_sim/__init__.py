"""A simulated device: memory of its own, a few operators, float16 and int8 only.

It shows what a provider for new hardware needs: devices (probe), claims with reasons (get_capability), units that are
planned for concrete shapes and bound to memory (compile), and copies. A real one would call its driver where this one
calls NumPy on its "device" memory. Work is queued and done only when the queue is waited for, as on a real device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpurt.graph.view import GraphView, NodeView
from gpurt.infer import infer
from gpurt.memory.arena import RegionArena
from gpurt.provider import BufferRef, Capability, Device, DeviceMemory, Operand, Provider, UnitPlan
from gpurt.spec import Spec

KERNELS: Mapping[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Mul": np.multiply,
    "Sub": np.subtract,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "Neg": np.negative,
    "MatMul": lambda a, b: np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype),
}
DTYPES = (np.dtype(np.float16), np.dtype(np.int8))


class Queue(list):  # type: ignore[type-arg]
    """Work that was enqueued and is not done yet."""


class SimProvider(Provider, DeviceMemory):
    """Kernel provider over simulated memory."""

    name: ClassVar[str] = "sim"
    options: ClassVar[Mapping[str, str]] = {
        "memory_limit": "most bytes the arena may hold",
        "over_budget": "layers (default) or stream: what the limit has no room for",
        "shares_host": "True: the host sees the device's memory",
    }

    def __init__(self, index: int, limit: int | None) -> None:
        self.device = f"{self.name}:{index}"
        self.memory_space = self.device
        self.arena = RegionArena(lambda n: np.full(n, 0xFF, np.uint8), lambda _: None, limit=limit, name=self.device)
        self._constants: weakref.WeakValueDictionary[bytes, Constant] = weakref.WeakValueDictionary()

    @classmethod
    def probe(cls) -> Sequence[Device]:
        return [Device(f"{cls.name}:0", "simulated accelerator", "accelerator")]

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:
        provider = cls(index or 0, options.get("memory_limit"))
        provider.shares_host = options.get("shares_host", cls.shares_host)
        provider.streams_weights = cls.streams_weights or options.get("over_budget", "layers") == "stream"
        return provider

    def get_capability(self, graph: GraphView) -> Capability:
        claims, refused = [], {}
        for node in graph.nodes:
            dtypes = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}
            if node.domain or node.op_type not in KERNELS:
                refused[node.name] = f"sim has no {node.op}"
            elif not dtypes <= set(DTYPES):
                refused[node.name] = f"sim computes float16 and int8, not {', '.join(sorted(map(str, dtypes)))}"
            else:
                claims.append((node.name,))
        return Capability(claims, refused)

    def compile(self, partition: GraphView) -> Sequence[SimUnit]:
        return [SimUnit(node) for node in partition.nodes]

    def stream(self) -> Queue:
        return Queue()

    def write(self, dst: BufferRef, src: np.ndarray, stream: Queue) -> None:
        data = src.reshape(-1).view(np.uint8)
        stream.append(lambda: _bytes(dst)[: data.size].__setitem__(slice(None), data))

    def read(self, dst: np.ndarray, src: BufferRef, stream: Queue) -> None:
        out = dst.reshape(-1).view(np.uint8)
        stream.append(lambda: out.__setitem__(slice(None), _bytes(src)[: out.size]))

    def copy(self, dst: BufferRef, src: BufferRef, nbytes: int, stream: Queue) -> None:
        stream.append(lambda: _bytes(dst)[:nbytes].__setitem__(slice(None), _bytes(src)[:nbytes]))

    def view(self, ref: BufferRef) -> np.ndarray:
        return _bytes(ref)

    def wrap(self, array: np.ndarray) -> BufferRef:
        return BufferRef(array.reshape(-1).view(np.uint8), 0, array.nbytes)

    def synchronize(self, stream: Queue) -> None:
        while stream:
            stream.pop(0)()

    def constant(self, array: np.ndarray) -> BufferRef:
        key = f"{array.dtype}{array.shape}".encode() + array.tobytes()
        constant = self._constants.get(key)
        if constant is None:
            constant = self._constants[key] = Constant(self.arena, array)
        ref = constant.ref
        return BufferRef(ref.buffer, ref.offset, ref.nbytes, constant)


class Constant:
    """A constant in the arena, for as long as somebody keeps a reference to it."""

    def __init__(self, arena: RegionArena, array: np.ndarray) -> None:
        self.ref = arena.alloc(array.nbytes)
        _bytes(self.ref)[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        weakref.finalize(self, arena.free, self.ref)


class SimUnit:
    """One node on the simulated device."""

    host_inputs: frozenset[int] = frozenset()

    def __init__(self, node: NodeView) -> None:
        self.nodes = (node,)
        self.inputs = [None if v is None else v.name for v in node.inputs]
        self.outputs = [None if v is None else v.name for v in node.outputs]

    def plan(self, inputs: Sequence[Spec | None]) -> UnitPlan:
        outs = infer(self.nodes[0], inputs)
        specs = [s for s in inputs if s is not None]
        kernel = KERNELS[self.nodes[0].op_type]
        operands = [*(Operand("in", i) for i in range(len(specs))), Operand("out", 0)]
        return UnitPlan(outs, operands, bind=lambda refs: SimBound(kernel, [*specs, outs[0]], refs))


class SimBound:
    """A kernel over actual memory."""

    def __init__(self, kernel: Callable[..., np.ndarray], specs: Sequence[Spec], refs: Sequence[BufferRef]) -> None:
        self._refs = list(refs)

        def step(stream: Queue) -> None:
            views = [
                _bytes(r)[: s.nbytes].view(s.dtype).reshape(s.shape) for r, s in zip(self._refs, specs, strict=True)
            ]
            stream.append(lambda: views[-1].__setitem__(..., kernel(*views[:-1])))

        self.steps = [step]

    def rebind(self, operand: int, ref: BufferRef) -> None:
        self._refs[operand] = ref


def _bytes(ref: BufferRef) -> np.ndarray:
    return ref.buffer[ref.offset : ref.offset + ref.nbytes]
