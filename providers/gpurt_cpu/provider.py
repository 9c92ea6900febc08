"""The cpu provider: NumPy kernels over host arrays, the fallback for everything."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from gpurt.errors import GpurtError, InvalidArgument, RuntimeException
from gpurt.graph.view import GraphView, NodeView
from gpurt.infer.constraints import objection
from gpurt.provider import HOST, Capability, Device, DeviceUnit, HostUnit, Provider, SupportInfo
from gpurt_cpu.fusion import FusedUnit, groups, is_product
from gpurt_cpu.memory import Recycler
from gpurt_cpu.ops import lookup, operators
from gpurt_cpu.steps import constant


class CpuProvider(Provider):
    """Kernel provider over the host's memory."""

    name: ClassVar[str] = "cpu"
    options: ClassVar[Mapping[str, str]] = {}
    # 1.3 to 1.9 times as fast so; products of integers take up to four times as long as BLAS's of floats.
    prefers_integers = frozenset({"Add", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"})

    def __init__(self) -> None:
        self.device = "cpu"
        self.memory_space = HOST
        self._memory = Recycler()

    @classmethod
    def probe(cls) -> Sequence[Device]:
        """Always one device."""
        return [Device("cpu", f"NumPy {np.__version__} on {platform.processor() or platform.machine()}", "cpu")]

    @classmethod
    def open(cls, index: int | None, options: Mapping[str, Any]) -> Provider:  # noqa: ARG003 - there are none
        """There is one device, and there are no options."""
        if index not in (None, 0):
            raise InvalidArgument(f"there is no cpu:{index}", provider="cpu", remedy='Use "cpu"')
        return cls()

    @classmethod
    def supported(cls) -> Mapping[tuple[str, str], SupportInfo]:
        """Every operator that has a NumPy kernel, for all types that the standard allows."""
        return {key: SupportInfo() for key in operators()}

    def get_capability(self, graph: GraphView) -> Capability:
        """Every operator that has a NumPy kernel, in every dtype that the standard allows."""
        claims, refused = [], {}
        for node in graph.nodes:
            reason = objection(node) if lookup(node.domain, node.op_type) else f"no NumPy kernel for {node.op}"
            if reason is None:
                claims.append((node.name,))
            else:
                refused[node.name] = reason
        return Capability(claims, refused)

    def compile(self, partition: GraphView) -> Sequence[HostUnit | DeviceUnit]:
        """A unit for each chain of elementwise nodes and the products that feed it, and one for each other node."""
        return [
            FusedUnit(g, self._memory.empty) if len(g) > 1 or is_product(g[0]) else NumpyUnit(g[0])
            for g in groups(partition)
        ]

    def trim(self) -> int:
        """See Provider."""
        return self._memory.trim()


class NumpyUnit:
    """One node as a call of its NumPy kernel."""

    def __init__(self, node: NodeView) -> None:
        kernel = lookup(node.domain, node.op_type)
        assert kernel is not None, f"{node.op} was not claimed"
        self.nodes: Sequence[NodeView] = (node,)
        self.inputs = [None if v is None else v.name for v in node.inputs]
        self.outputs = [None if v is None else v.name for v in node.outputs]
        self._fn = kernel.fn
        self.continues = kernel.continues
        self._attrs = dict(node.attrs)
        if kernel.wants_outputs:
            self._attrs["outputs"] = tuple(o is not None for o in node.outputs)
        if kernel.wants_constants and all(constant(node, i) is not None for i in kernel.wants_constants):
            self._attrs["prepared"] = {}

    def call(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run the kernel. Raises RuntimeException naming the node when it fails."""
        return self._run(inputs, {})

    def call_into(self, inputs: Sequence[Any], arrays: Sequence[Any]) -> Sequence[Any]:
        """See ContinuingUnit."""
        return self._run(inputs, {"into": tuple(arrays)})

    def _run(self, inputs: Sequence[Any], more: Mapping[str, Any]) -> Sequence[Any]:
        node = self.nodes[0]
        try:
            result = self._fn(*inputs, **self._attrs, **more)
        except GpurtError as e:
            e.node, e.op, e.provider = e.node or node.name, e.op or node.op, e.provider or "cpu"
            raise
        except Exception as e:
            shapes = ", ".join(_describe(x) for x in inputs)
            raise RuntimeException(
                f"the kernel failed on ({shapes}): {type(e).__name__}: {e}", node=node.name, op=node.op, provider="cpu"
            ) from e
        return result if isinstance(result, tuple) else (result,)


def _describe(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if isinstance(x, np.ndarray) else type(x).__name__
