"""The cpu provider's fused units compute what the nodes compute one by one."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import gpurt
from gpurt.errors import RuntimeException
from gpurt.graph.view import GraphView, NodeView, ValueView
from gpurt_cpu.blockwise import BLOCK
from gpurt_cpu.fusion import groups
from gpurt_cpu.ops.conv import convolve

node = helper.make_node


def _rng():
    return np.random.default_rng(3)


def _session(nodes, weights, inputs, outputs=("y",)):
    def info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    kept = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()]
    graph = helper.make_graph(
        nodes, "g", [info(n, s) for n, s in inputs.items()], [info(o, None) for o in outputs], kept
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return gpurt.InferenceSession(model.SerializeToString(), providers=["cpu"]), model


def _expected(model, feeds):
    return ReferenceEvaluator(model).run(None, feeds)


def _agree(nodes, weights, inputs, outputs=("y",), feeds=None):
    session, model = _session(nodes, weights, {n: [None] * len(s) for n, s in inputs.items()}, outputs)
    feeds = feeds or {n: _rng().standard_normal(s).astype(np.float32) for n, s in inputs.items()}
    before = {n: a.copy() for n, a in feeds.items()}
    for got, expected in zip(session.run(None, feeds), _expected(model, feeds), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    assert all(np.array_equal(before[n], a) for n, a in feeds.items()), "an input was overwritten"


@pytest.mark.parametrize("shape", [(1, 8, 5, 7), (2, 3, 0, 4), (1, 6, 150, 151), (3, 5, 90, 140)])
def test_chain_over_blocks(shape):
    channel = _rng().standard_normal((shape[1], 1, 1))
    nodes = [
        node("Mul", ["x", "c"], ["a"]),
        node("HardSigmoid", ["a"], ["b"]),
        node("Mul", ["b", "x"], ["d"]),
        node("Sum", ["d", "x", "z"], ["e"]),
        node("Clip", ["e", "low", "high"], ["f"]),
        node("Erf", ["f"], ["y"]),
    ]
    _agree(nodes, {"c": channel, "low": -1.5, "high": 2.0}, {"x": shape, "z": (shape[3],)})


def test_small_values_are_computed_once_and_broadcast():
    assert 2 * BLOCK < 80 * 1000
    nodes = [
        node("Exp", ["s"], ["t"]),
        node("Neg", ["t"], ["u"]),
        node("Add", ["u", "x"], ["v"]),
        node("Tanh", ["v"], ["y"]),
    ]
    _agree(nodes, {}, {"s": (80, 1), "x": (80, 1000)})


@pytest.mark.parametrize("group", [1, 4])
def test_scales_fold_into_a_convolution(group):
    rng = _rng()
    weights = {
        "w": rng.standard_normal((4, 4 // group, 3, 3)),
        "b": rng.standard_normal(4),
        "s": rng.uniform(0.5, 2, 4),
        "o": rng.standard_normal(4),
        "m": rng.standard_normal(4),
        "v": rng.uniform(0.5, 2, 4),
        "k": rng.standard_normal((1, 4, 1, 1)),
        "h": np.float32(0.5),
    }
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], group=group, pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"]),
        node("Mul", ["n", "k"], ["p"]),
        node("Sub", ["p", "h"], ["q"]),
        node("Add", ["q", "x"], ["r"]),
        node("Relu", ["r"], ["y"]),
    ]
    _agree(nodes, weights, {"x": (2, 4, 9, 11)})


def test_a_wanted_inner_value_is_not_swallowed():
    nodes = [node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["r"]), node("Add", ["r", "c"], ["y"])]
    _agree(nodes, {"w": _rng().standard_normal((2, 3, 1, 1))}, {"x": (1, 3, 6, 6)}, outputs=("c", "y"))


def test_a_residual_around_a_product_keeps_its_order():
    nodes = [node("Relu", ["x"], ["r"]), node("MatMul", ["r", "w"], ["m"]), node("Add", ["m", "r"], ["y"])]
    _agree(nodes, {"w": _rng().standard_normal((6, 6))}, {"x": (5, 6)})


def test_two_products_of_one_shape_are_not_mixed_up():
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["x", "v"], ["b"]),
        node("Sub", ["a", "b"], ["c"]),
        node("Mul", ["c", "b"], ["y"]),
    ]
    rng = _rng()
    _agree(nodes, {"w": rng.standard_normal((6, 6)), "v": rng.standard_normal((6, 6))}, {"x": (300, 6)})


def test_what_is_grouped():
    def value(name):
        return ValueView(name, np.dtype(np.float32), (None, None))

    def view(op, inputs, out):
        return NodeView(op, tuple(value(i) for i in inputs), (value(out),), name=out)

    nodes = (
        view("MatMul", "xw", "a"),
        view("Relu", "a", "b"),
        view("MatMul", "bv", "c"),
        view("Add", "cb", "d"),
        view("Softmax", "d", "e"),
        view("Exp", "e", "f"),
        view("Neg", "f", "g"),
    )
    found = groups(GraphView(nodes, (value("x"),), (value("f"), value("g"))))
    assert [[n.name for n in group] for group in found] == [["a", "b"], ["c", "d"], ["e"], ["f"], ["g"]]


def test_shapes_that_do_not_broadcast_name_the_node():
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", "z"], ["y"], name="sum")]
    session, _ = _session(nodes, {}, {"x": [None, None], "z": [None, None]})
    one = np.ones((2, 3), np.float32)
    with pytest.raises(RuntimeException, match="sum"):
        session.run(None, {"x": one, "z": np.ones((2, 4), np.float32)})
    assert session.run(None, {"x": one, "z": one})[0].shape == (2, 3)


CONVOLUTIONS = {
    "banded": ((2, 5, 9, 37), (5, 1, 3, 3), 5, (1, 1), (1, 1), [(1, 1), (1, 1)]),
    "banded strided": ((1, 4, 12, 40), (4, 1, 5, 3), 4, (2, 2), (1, 2), [(2, 1), (0, 3)]),
    "banded cropped": ((1, 4, 9, 9), (4, 1, 2, 3), 4, (1, 1), (1, 1), [(-1, 0), (0, -2)]),
    "depthwise": ((2, 4, 9, 11), (8, 1, 3, 2), 4, (2, 3), (2, 1), [(1, 2), (3, 0)]),
    "depthwise line": ((1, 6, 30), (6, 1, 5), 6, (2,), (2,), [(4, 4)]),
    "depthwise volume": ((1, 3, 6, 7, 8), (3, 1, 2, 3, 2), 3, (1, 2, 1), (1, 1, 2), [(1, 0)] * 3),
    "few filters": ((2, 16, 9, 10), (4, 16, 3, 3), 1, (1, 1), (1, 2), [(1, 1), (2, 0)]),
    "one channel": ((1, 1, 40), (20, 1, 8), 1, (4,), (1,), [(0, 0)]),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_against_their_definition(name):
    shape, filters, group, strides, dilations, pads = CONVOLUTIONS[name]
    rng = _rng()
    x, w = rng.standard_normal(shape), rng.standard_normal(filters)
    got = convolve(x.astype(np.float32), w.astype(np.float32), group, strides, dilations, pads)
    whole = np.pad(x, [(0, 0), (0, 0), *((max(b, 0), max(e, 0)) for b, e in pads)])
    index = (
        slice(None),
        slice(None),
        *(slice(max(-b, 0), d - max(-e, 0)) for (b, e), d in zip(pads, whole.shape[2:], strict=True)),
    )
    whole = whole[index]
    share = filters[0] // group
    expected = np.empty(got.shape)
    for m, at in ((m, at) for m in range(filters[0]) for at in np.ndindex(*got.shape[2:])):
        first = m // share * filters[1]
        window = tuple(
            slice(o * s, o * s + (k - 1) * d + 1, d)
            for o, s, k, d in zip(at, strides, filters[2:], dilations, strict=True)
        )
        part = whole[(slice(None), slice(first, first + filters[1]), *window)]
        expected[(slice(None), m, *at)] = (part * w[m]).reshape(shape[0], -1).sum(axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_agrees_with_the_general_cell(direction):
    # A clip that never bites takes the general way.
    rng, d = _rng(), 2 if direction == "bidirectional" else 1
    weights = {
        "w": rng.standard_normal((d, 20, 3)),
        "r": rng.standard_normal((d, 20, 5)),
        "b": rng.standard_normal((d, 40)),
    }
    feeds = {
        n: rng.standard_normal(s).astype(np.float32) for n, s in (("x", (6, 2, 3)), ("h", (d, 2, 5)), ("c", (d, 2, 5)))
    }
    found = []
    for extra in ({}, {"clip": 1e6}):
        nodes = [
            node(
                "LSTM",
                ["x", "w", "r", "b", "", "h", "c"],
                ["y", "yh", "yc"],
                hidden_size=5,
                direction=direction,
                **extra,
            )
        ]
        shapes = {n: list(a.shape) for n, a in feeds.items()}
        session, _ = _session(nodes, weights, shapes, ("y", "yh", "yc"))
        found.append(session.run(None, feeds))
        again = session.run(None, feeds)
        assert all(np.array_equal(a, b) for a, b in zip(found[-1], again, strict=True))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
