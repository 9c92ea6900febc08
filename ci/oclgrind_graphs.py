# ruff: noqa: SLF001 - the units of a session are inside
"""Graphs for ci/oclgrind.py: kernels with prologues and epilogues, views of inputs, parts that a Concat joins.

Each is loaded as a session does it, and its units run one by one, with a buffer of its exact size for every value.
Persistent programs are not among them: they work with addresses of the host, which the simulator does not know.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ci.venv import ROOT

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from gpurt import InferenceSession
    from gpurt.provider import Provider

JOINED = {
    "convolutions": (16, ["conv1:16", "conv3:33"]),
    "convolutions without epilogue and pools": (9, ["conv3:7!", "MaxPool", "conv1:17", "AveragePool"]),
    "depthwise": (24, ["depthwise", "conv3:17", "depthwise"]),
    "a scale for each channel and the input itself": (16, ["conv1:16", "scaled", "input"]),
}


class Graph(NamedTuple):
    """A model and what it is run with; `kind` stands for the operator in tables."""

    name: str
    kind: str
    model: bytes
    feeds: Mapping[str, np.ndarray]
    weights: int

    @property
    def title(self) -> str:
        """What --op looks at."""
        return self.kind

    @property
    def elements(self) -> int:
        """How many elements go in."""
        return sum(x.size for x in self.feeds.values()) + self.weights


def graphs() -> Iterator[Graph]:
    """The graphs of the tests of fusion on devices, and larger ones of the same kinds."""
    folder = str(ROOT / "tests" / "device")
    if folder not in sys.path:
        sys.path.append(folder)
    import numpy as np
    import test_epilogue
    import test_fed_product
    import test_joined
    import test_pool_chains
    import test_prologue
    import test_views
    from sessions import f, model, n

    tables = {
        "epilogues": (test_epilogue.CASES, test_epilogue.APART, test_prologue.BEHIND, test_pool_chains.BEHIND),
        "prologues": (
            test_prologue.CASES,
            test_prologue.APART,
            test_fed_product.CASES,
            test_fed_product.APART,
            test_pool_chains.BEFORE,
        ),
        "views": (test_views.FOLDED, test_views.COPIED),
    }
    for kind, parts in tables.items():
        for name, (nodes, inputs, constants) in ((k, v) for table in parts for k, v in table.items()):
            yield _graph(name, kind, model(nodes, inputs, constants, opset=23), inputs)
    for batch in (1, 2):
        for name, (channels, made) in JOINED.items():
            x = {"x": f(batch, 3, 5, 5)}
            nodes, constants = test_joined.branches(channels, made)
            yield _graph(f"{name}, batch {batch}", "joined", model(nodes, x, constants), x)
    nodes = [n("Mul", ["x", "x"], ["a"]), n("ReduceSum", ["a", "last"], ["b"]), n("Sqrt", ["b"], ["y"])]
    x = {"x": f(1, 9001)}
    yield _graph("one long row", "prologues", model(nodes, x, {"last": np.array([-1], np.int64)}), x)


def _graph(name: str, kind: str, proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Graph:
    import onnx

    weights = sum(onnx.numpy_helper.to_array(w).size for w in proto.graph.initializer)
    return Graph(name, kind, proto.SerializeToString(), feeds, weights)


def run_graph(graph: Graph, options: Mapping[str, Any], prepare: Callable[[Provider], None]) -> None:
    """Run a graph on the device of these options; `prepare` gets its provider before anything is computed.

    Raises AssertionError where what comes out is not close to what the host alone computes.
    """
    import numpy as np

    import gpurt

    session = gpurt.InferenceSession(
        graph.model,
        gpurt.SessionOptions(partitioning="greedy", cache_dir=False, log_severity_level=3),
        providers=[("opencl", dict(options)), "cpu"],
    )
    prepare(session._providers[0])
    got = _units(session, graph.feeds)
    want = gpurt.InferenceSession(graph.model, providers=["cpu"]).run(None, graph.feeds)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * max(np.abs(other).max(initial=0), 1))


def _units(session: InferenceSession, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """Outputs of a session's units, run one after the other."""
    from gpurt.partitioner import UnitItem
    from gpurt.testing.kernels import run_unit

    compiled = session._compiled
    values: dict[str | None, Any] = {None: None, **compiled.constants, **feeds}
    for item in compiled.items:
        assert isinstance(item, UnitItem), "the graphs have no control flow"
        unit = item.unit
        inputs = [values[name] for name in unit.inputs]
        if hasattr(unit, "call"):
            results = unit.call(inputs)
        else:
            known = [i for i, name in enumerate(unit.inputs) if name in compiled.constants]
            results = run_unit(session._providers[item.provider], unit, inputs, known, poison=False)
        values.update(zip(unit.outputs, results, strict=False))
    return [values[name] for name in compiled.outputs]
