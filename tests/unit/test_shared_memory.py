"""Devices that compute in the host's memory: no copy, and nobody sees memory that is used again."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_model, plugin, registered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from side_by_side import by_letter, graphs, model_of

import gpurt

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

n = helper.make_node
F16, BOOL, I64 = TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT64


@pytest.fixture(scope="module")
def sharing():
    """A simulated device in the host's memory, and one beside it; they claim the nodes with their letter."""
    SimProvider = plugin().SimProvider

    class Shared(SimProvider):
        name = "shared"
        letter = "s"

        shares_host = True

        def get_capability(self, graph):
            return by_letter(super().get_capability(graph), self.letter)

    class Apart(Shared):
        name = "apart"
        letter = "a"
        shares_host = False

    with registered(Shared, Apart):
        yield ["shared", "apart"]


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(graphs("sah"), st.integers(0, 2**31))
def test_values_are_those_of_the_host(sharing, graph, seed):
    nodes, outputs = graph
    model = model_of(nodes, outputs)
    rng = np.random.default_rng(seed)
    session = gpurt.InferenceSession(model, GREEDY, providers=[*sharing, "cpu"])
    alone = gpurt.InferenceSession(model, providers=["cpu"])
    kept = []
    for _ in range(3):
        feeds = {name: (rng.integers(-2, 3, (3, 3)) / 2).astype(np.float16) for name in ("x0", "x1")}
        kept.append((session.run(None, feeds), alone.run(None, feeds)))
    for got, want in kept:  # later runs change nothing that was handed out
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    moves = {(c["from"], c["to"]) for c in session.explain().to_dict()["copies"]}
    assert not moves & {("cpu", "shared:0"), ("shared:0", "cpu")}


def test_a_loop_carries_values_of_shared_memory(sharing):
    body = helper.make_graph(
        [n("Add", ["c", "x"], ["d"], "d_s"), n("Identity", ["d"], ["c2"], "c_h"), n("Identity", ["t"], ["t2"], "t_h")],
        "body",
        [
            helper.make_tensor_value_info("i", I64, []),
            helper.make_tensor_value_info("t", BOOL, []),
            helper.make_tensor_value_info("c", F16, [2, 2]),
        ],
        [helper.make_tensor_value_info("t2", BOOL, []), helper.make_tensor_value_info("c2", F16, [2, 2])],
    )
    model = make_model([n("Loop", ["k", "", "x"], ["y"], body=body)], {"x": (F16, [2, 2]), "k": (I64, [])}, ["y"])
    session = gpurt.InferenceSession(model, GREEDY, providers=[*sharing, "cpu"])
    x = np.arange(4, dtype=np.float16).reshape(2, 2)
    for trips in (0, 1, 4, 7):
        np.testing.assert_array_equal(session.run(None, {"x": x, "k": np.array(trips)})[0], (trips + 1) * x)


def test_a_sequence_of_views_outlives_the_plan(sharing):
    nodes = [
        n("Neg", ["x"], ["a"], "a_s"),
        n("SplitToSequence", ["a"], ["q"], "q_h", axis=0, keepdims=0),
        n("SequenceAt", ["q", "one"], ["y"], "y_h"),
    ]
    model = make_model(nodes, {"x": (F16, [2, 3])}, ["q", "y"], {"one": np.array(1)})
    session = gpurt.InferenceSession(model, GREEDY, providers=[*sharing, "cpu"])
    x = np.arange(6, dtype=np.float16).reshape(2, 3)
    sequence, y = session.run(None, {"x": x})
    session.run(None, {"x": x + 5})
    np.testing.assert_array_equal(np.stack(sequence), -x)
    np.testing.assert_array_equal(y, -x[1])
