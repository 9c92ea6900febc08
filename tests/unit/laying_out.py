"""What the tests of level layout share: a provider that prefers channels last, and what becomes of a model with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx
from regions import Net

import gpurt
from gpurt import registry
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import GraphView, NodeView
from gpurt.layout import channels_last
from gpurt.loader import load
from gpurt.optimizer import optimize
from gpurt.options import GraphOptimizationLevel
from gpurt.partitioner import Assigner, Decisions
from gpurt.provider import Capability
from gpurt.session.site import Evaluator
from gpurt_cpu.provider import CpuProvider

WINDOWS = ("Conv", "ConvTranspose")


class LastProvider(CpuProvider):
    """The host's kernels; its convolutions would rather have channels last, whatever that costs."""

    name: ClassVar[str] = "last"
    share: ClassVar[float] = 1000.0
    lacks: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.device = "last:0"

    def channels_last(self, node: NodeView) -> float:
        return self.share if node.op_type in WINDOWS else 0.0

    def get_capability(self, graph: GraphView) -> Capability:
        answer = super().get_capability(graph)
        lacking = {n.name: "no kernel" for n in graph.nodes if n.op in self.lacks}
        kept = [c for c in answer.claims if c[0] not in lacking]
        return Capability(kept, {**answer.refused, **lacking})


@dataclass
class Laid:
    """A model after level layout: operators with their domains in order, what explain() says, and the model."""

    ops: list[str]
    layouts: list[dict[str, Any]]
    misses: list[dict[str, str]]
    model: Any

    @property
    def transposes(self) -> int:
        return sum(entry["transposes"] for entry in self.layouts)

    def count(self, op: str) -> int:
        return self.ops.count(op)


def laid_out(model: onnx.ModelProto, provider: type[CpuProvider] = LastProvider, shapes: Any = None) -> Laid:
    """What level layout makes of a model."""
    loaded = load(model)
    providers = [provider(), registry.open_provider(registry.Request("cpu", None, {}))]
    evaluate = Evaluator(providers[1])
    level = GraphOptimizationLevel.ORT_ENABLE_ALL
    optimize(loaded.model, level, evaluate, loaded.names, providers=providers)
    decisions = Decisions()
    owners, groups = Assigner(loaded.model, providers, loaded.names, decisions).assign()
    channels_last(loaded.model, providers, owners, groups, loaded.names, shapes or {}, decisions)
    names = [n.name for n in loaded.model.graph.all_nodes()]
    assert sorted(names) == sorted(owners), "every node has an owner, and nothing else has"
    ops = [f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in loaded.model.graph.all_nodes()]
    return Laid(ops, decisions.layouts, decisions.misses, loaded.model)


def same_values(model: onnx.ModelProto, *feeds: dict[str, np.ndarray], tolerance: float = 1e-5) -> list[Any]:
    """Fail unless the model gives with channels last what it gives as it is; returns the layouts of the session."""
    plain = gpurt.InferenceSession(
        model, gpurt.SessionOptions(graph_optimization_level="disable_all"), providers=["cpu"]
    )
    turned = gpurt.InferenceSession(model, providers=["last", "cpu"])
    for feed in feeds:
        for want, got in zip(plain.run(None, feed), turned.run(None, feed), strict=True):
            assert got.shape == want.shape
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    return turned.explain().to_dict()["layouts"]


CONV = f"{DOMAIN}.Conv"


def check(net: Net, *outputs: str, transposes: int, feeds: Any = None) -> Laid:
    """Fail unless the values stay and so many Transposes are left; what became of the model."""
    model = net.model(*outputs)
    same_values(model, *(feeds or [net.feed()]))
    found = laid_out(model)
    assert found.transposes == transposes, found.layouts
    return found
