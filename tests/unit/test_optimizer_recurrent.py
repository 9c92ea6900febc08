"""Recurrent layers written as loops: tf2onnx's Loop of Keras' cells, Scan; and loops that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from optimizing import Writer, optimized, same_values

F, I64, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
SIZE, HIDDEN = 3, 4


def value(name: str, kind: int = F, dims: Any = ()) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, dims)


def lstm_cell(w: Writer, x: str, h: str, c: str, *, joined: bool = False) -> tuple[str, str]:
    """Keras' LSTM cell; joined as TensorFlow's older one: one product, gates in another order, a bias of its own."""
    if joined:
        z = w.Add(w.MatMul(w.Concat(x, h, axis=1), w.weight(SIZE + HIDDEN, 4 * HIDDEN)), w.weight(4 * HIDDEN))
        i, g, f, o = w.Split(z, axis=1, num_outputs=4, _outputs=4)
        f = w.Add(f, 1.0)
    else:
        z = w.Add(w.MatMul(x, w.weight(SIZE, 4 * HIDDEN)), w.MatMul(h, w.weight(HIDDEN, 4 * HIDDEN)))
        i, f, g, o = w.Split(w.Add(z, w.weight(4 * HIDDEN)), axis=1, num_outputs=4, _outputs=4)
    after = w.Add(w.Mul(w.Sigmoid(f), c), w.Mul(w.Sigmoid(i), w.Tanh(g)))
    return w.Mul(w.Sigmoid(o), w.Tanh(after)), after


def gru_cell(w: Writer, x: str, h: str) -> str:
    """Keras' GRU cell with the reset gate after the product."""
    mine = w.Add(w.MatMul(x, w.weight(SIZE, 3 * HIDDEN)), w.weight(3 * HIDDEN))
    theirs = w.Add(w.MatMul(h, w.weight(HIDDEN, 3 * HIDDEN)), w.weight(3 * HIDDEN))
    xz, xr, xh = w.Split(mine, axis=1, num_outputs=3, _outputs=3)
    hz, hr, hh = w.Split(theirs, axis=1, num_outputs=3, _outputs=3)
    z, r = w.Sigmoid(w.Add(xz, hz)), w.Sigmoid(w.Add(xr, hr))
    fresh = w.Tanh(w.Add(xh, w.Mul(r, hh)))
    return w.Add(w.Mul(z, h), w.Mul(w.Sub(1.0, z), fresh))


def keras_loop(kind: str = "LSTM", *, ends: str = "", backwards: bool = False, counts: bool = False) -> Writer:
    """A layer of Keras as tf2onnx writes it, for x of (batch, steps, size): all hidden states y and the last one z."""
    w = Writer()
    rows = w.Transpose("x", perm=[1, 0, 2])
    steps = w.Squeeze(w.Slice(w.Cast(w.Shape(rows), to=TensorProto.INT32), [0], [1], [0]), [0])
    zeros = w.Expand(0.0, w.Concat(w.Slice(w.Shape("x"), [0], [1], [0]), [HIDDEN], axis=0))
    b = Writer("in_")
    x_t = b.Gather(rows, b.Sub(b.Sub(b.Cast("limit", to=I64), 1), "place") if backwards else "place", axis=0)
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    made = lstm_cell(b, x_t, "h", "c") if kind == "LSTM" else (gru_cell(b, x_t, "h"),)
    place = b.Add("place", 1, _out="place_next")
    seen = b.Cast(place, to=F)
    limit = b.Cast("limit", to=F) if not ends else b.constant(2.0)
    b.And(b.Less(b.Cast("step", to=F), b.Cast("limit", to=F)), b.Less(seen, limit), _out="going_next")
    b.Identity("limit", _out="limit_next")
    outs = [b.Identity(m, _out=f"{s}_next") for s, m in zip(states, made, strict=True)]
    b.Identity(made[0], _out="all")
    two = [value(s, F, [None, HIDDEN]) for s in states]
    body = helper.make_graph(
        b.nodes,
        "body",
        [value("step", I64), value("going", B), value("place", I64), *two, value("limit", TensorProto.INT32)],
        [value("going_next", B), value("place_next", I64), *[value(o, F, [None, HIDDEN]) for o in outs],
         value("limit_next", TensorProto.INT32), value("all", F, [None, HIDDEN])],
        [onnx.numpy_helper.from_array(a, k) for k, a in b.constants.items()],
    )  # fmt: skip
    inputs = [w.Cast(steps, to=I64), w.Less(0.0, w.Cast(steps, to=F)), np.array(0), *[zeros] * len(states), steps]
    outputs = w.Loop(*inputs, body=body, _outputs=3 + len(states))
    w.Transpose(outputs[-1], perm=[1, 0, 2], _out="y")
    w.Identity(outputs[0] if counts else outputs[1], _out="z")
    return w


SEQUENCE = {"x": (F, ["batch", "steps", SIZE])}


def sequence(steps: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((2, steps, SIZE)).astype(np.float32)}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_loop_of_keras(kind):
    model = keras_loop(kind).model(SEQUENCE, ["y", "z"])
    ops, _, _ = optimized(model)
    assert kind in ops
    assert "Loop" not in ops
    assert "Loop" in optimized(model, disabled=["RecurrentLoopFusion"])[0]
    for steps in (5, 1):
        same_values(model, sequence(steps))


@pytest.mark.parametrize("joined", [False, True])
def test_a_scan(joined):
    b = Writer("in_")
    h, c = lstm_cell(b, "x_t", "h", "c", joined=joined)
    for name, made in (("h_next", h), ("c_next", c), ("all", h)):
        b.Identity(made, _out=name)
    dims = [2, HIDDEN]
    body = helper.make_graph(
        b.nodes,
        "body",
        [value("h", F, dims), value("c", F, dims), value("x_t", F, [2, SIZE])],
        [value("h_next", F, dims), value("c_next", F, dims), value("all", F, dims)],
        [onnx.numpy_helper.from_array(a, k) for k, a in b.constants.items()],
    )
    w = Writer()
    outputs = w.Scan("h0", "c0", "x", body=body, num_scan_inputs=1, _outputs=3)
    w.Identity(outputs[2], _out="y")
    w.Identity(outputs[1], _out="z")
    model = w.model({"x": (F, [5, 2, SIZE]), "h0": (F, dims), "c0": (F, dims)}, ["y", "z"])
    ops, _, _ = optimized(model)
    assert "LSTM" in ops
    assert "Scan" not in ops
    rng = np.random.default_rng(2)
    shapes = {"x": (5, 2, SIZE), "h0": dims, "c0": dims}
    same_values(model, {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"ends": "early"}, "may end it before"),
        ({"backwards": True}, "next row"),
        ({"counts": True}, "neither a state nor"),
    ],
)
def test_loops_that_are_no_layer(how, reason):
    model = keras_loop(**how).model(SEQUENCE, ["y"] if "counts" not in how else ["y", "z"])
    ops, report, _ = optimized(model)
    assert "Loop" in ops
    assert any(reason in m.reason for m in report.misses if m.rule == "RecurrentLoopFusion"), report.misses
    same_values(model, sequence())


def test_what_a_loop_hands_on_is_read_from_outside():
    b = Writer("in_")
    b.Add("sum", b.Mul("weight", "weight"), _out="sum_next")
    b.Identity("weight", _out="weight_next")
    b.Identity("going", _out="going_next")
    body = helper.make_graph(
        b.nodes,
        "body",
        [value("step", I64), value("going", B), value("sum", F, [2]), value("weight", F, [2])],
        [value("going_next", B), value("sum_next", F, [2]), value("weight_next", F, [2])],
    )
    w = Writer()
    total, weight = w.Loop(3, True, "x", np.array([2, 3], np.float32), body=body, _outputs=2)
    w.Add(total, weight, _out="y")
    model = w.model({"x": (F, [2])})
    _, report, _ = optimized(model)
    assert any(a.name == "LoopInvariants" for a in report.applied)
    same_values(model, {"x": np.ones(2, np.float32)})
