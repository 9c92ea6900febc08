"""Any graph, any assignment of nodes to devices: the same values as the host alone, and no copy too many."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from conftest import plugin, registered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from optimizing import optimized
from side_by_side import by_letter

import gpurt

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

UNARY, BINARY = ("Relu", "Neg"), ("Add", "Mul", "Sub")


@pytest.fixture(scope="module")
def devices():
    """Three simulated devices that claim the nodes whose name ends in their letter."""
    SimProvider = plugin().SimProvider

    def make(letter):
        class Part(SimProvider):
            name = f"sim{letter}"

            def get_capability(self, graph):
                return by_letter(super().get_capability(graph), letter)

        return Part

    parts = [make(letter) for letter in "abc"]
    with registered(*parts):
        yield [p.name for p in parts]


@st.composite
def graphs(draw):
    values = ["x0", "x1"]
    nodes = []
    for k in range(draw(st.integers(1, 14))):
        place = draw(st.sampled_from("abch"))
        if draw(st.booleans()):
            op, ins = draw(st.sampled_from(UNARY)), [draw(st.sampled_from(values))]
        else:
            op, ins = draw(st.sampled_from(BINARY)), [draw(st.sampled_from(values)) for _ in range(2)]
        nodes.append(helper.make_node(op, ins, [f"v{k}"], f"n{k}{place}"))
        values.append(f"v{k}")
    outputs = sorted(set(draw(st.lists(st.sampled_from(values[2:]), min_size=1, max_size=3))))
    return nodes, outputs


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs(), st.integers(0, 2**31))
def test_values_and_copies(devices, graph, seed):
    nodes, outputs = graph
    kind = TensorProto.FLOAT16
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info(n, kind, [2, 3]) for n in ("x0", "x1")],
            [helper.make_tensor_value_info(n, kind, [2, 3]) for n in outputs],
        ),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    feeds = {n: (rng.integers(-2, 3, (2, 3)) / 2).astype(np.float16) for n in ("x0", "x1")}
    session = gpurt.InferenceSession(model, GREEDY, providers=[*devices, "cpu"])
    plain = gpurt.SessionOptions(graph_optimization_level="disable_all", partitioning="greedy")
    want = gpurt.InferenceSession(model, plain, providers=["cpu"]).run(None, feeds)
    for _ in range(2):
        for got, expected in zip(session.run(None, feeds), want, strict=True):
            np.testing.assert_array_equal(got, expected)

    report = session.explain().to_dict()
    # The optimizer takes nodes out and merges equal ones: what is left of the graph says which copies it needs.
    _, _, left = optimized(model)
    assert sorted(n["name"] for n in report["nodes"]) == sorted(n.name for n in left.graph)
    home = {"x0": "cpu", "x1": "cpu"}
    needed = Counter()
    for node in left.graph:
        letter = node.name[-1]
        target = "cpu" if letter == "h" else f"sim{letter}:0"
        assert next(n["device"] for n in report["nodes"] if n["name"] == node.name) == target
        for name in {v.name for v in node.inputs}:
            if home[name] != target:
                needed[name, home[name], target] = 1
        home[node.outputs[0].name] = target
    for name in outputs:
        if home[name] != "cpu":
            needed[name, home[name], "cpu"] = 1
    assert Counter((c["value"], c["from"], c["to"]) for c in report["copies"]) == needed
    assert all(c["bytes"] == 12 for c in report["copies"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs(), st.integers(2, 4), st.randoms(use_true_random=False))
def test_values_under_cost_partitioning_with_pins(devices, graph, count, random):
    nodes, outputs = graph
    kind = TensorProto.FLOAT16
    model = helper.make_model(
        helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info(n, kind, [2, 3]) for n in ("x0", "x1")],
            [helper.make_tensor_value_info(n, kind, [2, 3]) for n in outputs],
        ),
        opset_imports=[helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    used = devices[: count - 1]
    able = {f"sim{letter}": letter for letter in "abc"}
    pins = {n.name: d for n in nodes for d in (*used, "cpu")
            if random.random() < 0.3 and (d == "cpu" or n.name.endswith(able[d]))}  # fmt: skip
    options = gpurt.SessionOptions(partitioning="cost", pins=pins, cache_dir=False, graph_optimization_level=0)
    session = gpurt.InferenceSession(model, options, providers=[*used, "cpu"])
    feeds = {n: np.array([[0.5, -1, 0], [1, -0.5, 1]], np.float16) for n in ("x0", "x1")}
    want = gpurt.InferenceSession(model, gpurt.SessionOptions(graph_optimization_level=0), providers=["cpu"])
    for got, expected in zip(session.run(None, feeds), want.run(None, feeds), strict=True):
        np.testing.assert_array_equal(got, expected)
    placed = {r["name"]: r["provider"] for r in session.explain().to_dict()["nodes"]}
    assert {n: placed[n] for n in pins} == pins
