"""Elementwise nodes before reductions, softmax and normalisations: one kernel where that can be, the same values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from sessions import GREEDY, f, kernels, model, n

import gpurt
from gpurt.device.provider import DeviceProvider

LAST = np.array([-1], np.int64)

CASES: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "mean of squares": (
        [n("Mul", ["x", "x"], ["a"]), n("ReduceMean", ["a", "axes"], ["y"])],
        {"x": f(6, 77)},
        {"axes": LAST},
    ),
    "rows around their maximum": (
        [n("Sub", ["x", "m"], ["a"]), n("Exp", ["a"], ["b"]), n("ReduceSum", ["b", "axes"], ["y"])],
        {"x": f(3, 5, 45), "m": f(3, 5, 1)},
        {"axes": LAST},
    ),
    "a bias for each row's element and one for each image": (
        [n("Add", ["x", "b"], ["a"]), n("Add", ["a", "s"], ["c"]), n("ReduceMax", ["c", "axes"], ["y"], keepdims=0)],
        {"x": f(3, 5, 45), "b": f(45), "s": f(3, 1, 1)},
        {"axes": LAST},
    ),
    "columns": (
        [n("Mul", ["x", "w"], ["a"]), n("Tanh", ["a"], ["b"]), n("ReduceSum", ["b", "axes"], ["y"])],
        {"x": f(2, 19, 45)},
        {"axes": np.array([1], np.int64), "w": f(19, 1)},
    ),
    "whole columns and their ends": (
        [n("Mul", ["x", "w"], ["a"]), n("ReduceL2", ["a", "axes"], ["y"])],
        {"x": f(300, 75), "w": f(75)},
        {"axes": np.array([0], np.int64)},
    ),
    "all of it, in parts": (
        [n("Sub", ["x", "z"], ["a"]), n("Abs", ["a"], ["b"]), n("ReduceMean", ["b"], ["y"], keepdims=0)],
        {"x": f(4, 300, 301), "z": f(4, 300, 301)},
        {},
    ),
    "several runs of axes": (
        [n("Add", ["x", "b"], ["a"]), n("Relu", ["a"], ["c"]), n("ReduceSumSquare", ["c", "axes"], ["y"])],
        {"x": f(2, 3, 5, 7), "b": f(3, 1, 1)},
        {"axes": np.array([0, 2], np.int64)},
    ),
    "scaled and gated images": (
        [n("Mul", ["x", "g"], ["a"]), n("HardSwish", ["a"], ["b"]), n("GlobalAveragePool", ["b"], ["y"])],
        {"x": f(2, 5, 7, 9), "g": f(2, 5, 1, 1)},
        {},
    ),
    "scale and mask": (
        [n("Mul", ["x", "k"], ["a"]), n("Add", ["a", "m"], ["b"]), n("Softmax", ["b"], ["y"])],
        {"x": f(2, 3, 19, 45), "m": f(2, 1, 1, 45)},
        {"k": np.float32(0.125)},
    ),
    "a mask of booleans": (
        [n("Where", ["m", "x", "low"], ["a"]), n("Softmax", ["a"], ["y"])],
        {"x": f(2, 3, 19, 45), "m": np.arange(19 * 45).reshape(19, 45) % 3 > 0},
        {"low": np.float32(-1e9)},
    ),
    "softmax of few": (
        [n("Neg", ["x"], ["a"]), n("Softmax", ["a"], ["y"])],
        {"x": f(70, 5)},
        {},
    ),
    "softmax along columns": (
        [n("Add", ["x", "b"], ["a"]), n("Softmax", ["a"], ["y"], axis=1)],
        {"x": f(2, 19, 75), "b": f(19, 1)},
        {},
    ),
    "logarithm of softmax": (
        [n("Div", ["x", "t"], ["a"]), n("LogSoftmax", ["a"], ["y"])],
        {"x": f(9, 133)},
        {"t": np.float32(0.7)},
    ),
    "layer normalisation of a sum": (
        [n("Add", ["x", "r"], ["a"]), n("Add", ["a", "b"], ["c"]), n("LayerNormalization", ["c", "s", "t"], ["y"])],
        {"x": f(2, 9, 77), "r": f(2, 9, 77)},
        {"b": f(77), "s": f(77), "t": f(77)},
    ),
    "layer normalisation of short rows": (
        [n("Add", ["x", "r"], ["a"]), n("LayerNormalization", ["a", "s"], ["y"])],
        {"x": f(300, 5), "r": f(5)},
        {"s": f(5)},
    ),
    "root mean square": (
        [n("Add", ["x", "r"], ["a"]), n("RMSNormalization", ["a", "s"], ["y"])],
        {"x": f(2, 9, 77), "r": f(9, 77)},
        {"s": f(77)},
    ),
    "instances": (
        [n("Mul", ["x", "g"], ["a"]), n("InstanceNormalization", ["a", "s", "t"], ["y"])],
        {"x": f(2, 5, 7, 9), "g": f(5, 1, 1)},
        {"s": f(5), "t": f(5)},
    ),
    "groups of channels": (
        [n("Add", ["x", "r"], ["a"]), n("GroupNormalization", ["a", "s", "t"], ["y"], num_groups=2)],
        {"x": f(2, 6, 7, 9), "r": f(2, 6, 7, 9)},
        {"s": f(6), "t": f(6)},
    ),
    "types that change": (
        [n("Less", ["i", "k"], ["a"]), n("Cast", ["a"], ["b"], to=TensorProto.FLOAT), n("Mul", ["b", "x"], ["c"]),
         n("ReduceSum", ["c", "axes"], ["y"])],
        {"i": (np.arange(6 * 77) % 5).astype(np.int32).reshape(6, 77), "x": f(6, 77)},
        {"k": np.array(3, np.int32), "axes": LAST},
    ),
}  # fmt: skip


def opset(case: str) -> int:
    """RMSNormalization came with 23."""
    return 23 if case == "root mean square" else 21


@pytest.mark.parametrize("case", CASES)
def test_what_comes_before_is_computed_in_the_kernel(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = CASES[case]
    ran = kernels(provider, model(nodes, inputs, constants, opset=opset(case)), inputs)
    assert not [k for k in ran if k.startswith("ew_")]
    assert len(ran) <= 2


APART: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "broadcast within a row": (
        [n("Mul", ["x", "w"], ["a"]), n("ReduceSum", ["a", "axes"], ["y"])],
        {"x": f(2, 5, 6, 7)},
        {"w": f(6, 1), "axes": np.array([2, 3], np.int64)},
    ),
    "a channel's number within a group": (
        [n("Add", ["x", "r"], ["a"]), n("GroupNormalization", ["a", "s", "t"], ["y"], num_groups=2)],
        {"x": f(2, 6, 7, 9), "r": f(6, 1, 1)},
        {"s": f(6), "t": f(6)},
    ),
    "costly numbers that repeat": (
        [n("Exp", ["e"], ["a"]), n("Add", ["x", "a"], ["b"]), n("ReduceSum", ["b", "axes"], ["y"])],
        {"x": f(9, 5, 33), "e": f(33)},
        {"axes": LAST},
    ),
    "nothing": (
        [n("Neg", ["x"], ["a"]), n("ReduceSum", ["a", "axes"], ["y"])],
        {"x": f(3, 0)},
        {"axes": LAST},
    ),
    "two passes over the data": (
        [n("Neg", ["x"], ["a"]), n("ReduceLogSumExp", ["a", "axes"], ["y"])],
        {"x": f(3, 40)},
        {"axes": LAST},
    ),
}


@pytest.mark.parametrize("case", APART)
def test_what_does_not_fit_runs_apart(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = APART[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs)
    assert bool([k for k in ran if k.startswith("ew_")]) == (case != "nothing")


@pytest.mark.parametrize("outputs", [("y", "a"), ("y", "z")])
def test_what_others_read_too_is_stored(provider: DeviceProvider, outputs: tuple[str, ...]) -> None:
    inputs = {"x": f(5, 66)}
    nodes = [n("Exp", ["x"], ["a"]), n("ReduceSum", ["a", "axes"], ["y"]), n("Div", ["a", "y"], ["z"])]
    proto = model(nodes[: 3 if "z" in outputs else 2], inputs, {"axes": LAST}, outputs)
    assert kernels(provider, proto, inputs)[0] == "ew_exp"


def test_half_precision(provider: DeviceProvider) -> None:
    x, b = f(4, 100).astype(np.float16), f(100).astype(np.float16)
    nodes = [
        n("Add", ["x", "b"], ["a"]),
        n("ReduceMean", ["a", "axes"], ["c"]),
        n("Mul", ["x", "k"], ["d"]),
        n("Softmax", ["d"], ["e"]),
        n("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
        n("Cast", ["e"], ["z"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": x, "b": b}, {"axes": LAST, "k": np.float16(0.5)}, ("y", "z"))
    ran = kernels(provider, proto, {"x": x, "b": b}, rtol=2e-3)
    assert [k for k in ran if k.startswith("ew_")] == ["ew_cast"] * 2


def test_double_precision(provider: DeviceProvider) -> None:
    x = f(4, 100).astype(np.float64)
    nodes = [
        n("Mul", ["x", "x"], ["a"]),
        n("ReduceMean", ["a", "axes"], ["b"]),
        n("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    ran = kernels(provider, model(nodes, {"x": x}, {"axes": LAST}), {"x": x})
    assert [k for k in ran if k.startswith("ew_")] == ["ew_cast"]


def test_shapes_may_change_between_runs(provider: DeviceProvider) -> None:
    nodes = [n("Add", ["x", "r"], ["a"]), n("LayerNormalization", ["a", "s"], ["b"]), n("Mul", ["b", "r"], ["c"]),
             n("Softmax", ["c"], ["y"], axis=1)]  # fmt: skip
    proto = model(nodes, {"x": f(2, 4, 20), "r": f(4, 20)}, {"s": f(20)})
    for value in proto.graph.input:
        for dim, name in zip(
            value.type.tensor_type.shape.dim,
            "nml"[-len(value.type.tensor_type.shape.dim) - 1 : -1] or "m",
            strict=False,
        ):
            dim.dim_param = name
    options = {"kernel_class": provider.info.kernel_class}
    session = gpurt.InferenceSession(proto, GREEDY, providers=[("opencl", options), "cpu"])
    reference = gpurt.InferenceSession(proto, providers=["cpu"])
    for rows, length in ((2, 4), (1, 1), (3, 33), (2, 4)):
        feeds = {"x": f(rows, length, 20), "r": f(length, 20)}
        want = reference.run(None, feeds)[0]
        np.testing.assert_allclose(session.run(None, feeds)[0], want, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kept", [True, False])
def test_the_sum_of_a_skip_connection_is_stored_by_the_normalisation(provider: DeviceProvider, kept: bool) -> None:
    inputs = {"x": f(2, 9, 77), "k": f(9, 77)}
    outs = ["y", "", "", "s"] if kept else ["y"]
    node = n("SkipLayerNormalization", ["x", "k", "g", "b", "c"], outs, domain="com.microsoft")
    proto = model([node], inputs, {"g": f(77), "b": f(77), "c": f(77)}, [o for o in outs if o])
    assert kernels(provider, proto, inputs) == ["normalize_rows"]


BEHIND: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "inverse deviation": (
        [n("Mul", ["x", "x"], ["a"]), n("ReduceMean", ["a", "axes"], ["b"]), n("Add", ["b", "e"], ["c"]),
         n("Sqrt", ["c"], ["d"]), n("Reciprocal", ["d"], ["y"])],
        {"x": f(6, 77)},
        {"axes": LAST, "e": np.float32(1e-3)},
    ),
    "columns and a factor for each": (
        [n("ReduceSum", ["x", "axes"], ["b"]), n("Mul", ["b", "w"], ["c"]), n("Tanh", ["c"], ["y"])],
        {"x": f(3, 30, 77)},
        {"axes": np.array([1], np.int64), "w": f(77)},
    ),
    "in parts": (
        [n("ReduceLogSumExp", ["x", "axes"], ["b"], keepdims=0), n("Neg", ["b"], ["y"])],
        {"x": f(2, 100000)},
        {"axes": LAST},
    ),
    "pooled": (
        [n("Relu", ["x"], ["a"]), n("GlobalAveragePool", ["a"], ["b"]), n("Mul", ["b", "w"], ["c"]),
         n("HardSigmoid", ["c"], ["y"])],
        {"x": f(2, 5, 7, 9)},
        {"w": f(5, 1, 1)},
    ),
    "groups of channels and SiLU": (
        [n("GroupNormalization", ["x", "s", "t"], ["a"], num_groups=2), n("Sigmoid", ["a"], ["b"]),
         n("Mul", ["a", "b"], ["y"])],
        {"x": f(2, 6, 7, 9)},
        {"s": f(6), "t": f(6)},
    ),
    "instances, a shift for each channel and Relu": (
        [n("InstanceNormalization", ["x", "s", "t"], ["a"]), n("Add", ["a", "u"], ["b"]), n("Relu", ["b"], ["y"])],
        {"x": f(2, 6, 7, 9)},
        {"s": f(6), "t": f(6), "u": f(6, 1, 1)},
    ),
    "a row's normalisation between two sums": (
        [n("Add", ["x", "r"], ["a"]), n("LayerNormalization", ["a", "s"], ["b"]), n("Mul", ["b", "m"], ["c"]),
         n("Add", ["c", "x"], ["y"])],
        {"x": f(2, 9, 77), "r": f(2, 9, 77)},
        {"s": f(77), "m": f(77)},
    ),
    "attention's weights": (
        [n("Mul", ["x", "k"], ["a"]), n("Softmax", ["a"], ["b"]), n("Where", ["m", "b", "z"], ["y"])],
        {"x": f(2, 3, 19, 45), "m": np.arange(19 * 45).reshape(19, 45) % 3 > 0},
        {"k": np.float32(0.3), "z": np.float32(0)},
    ),
    "logarithm along columns": (
        [n("LogSoftmax", ["x"], ["a"], axis=1), n("Neg", ["a"], ["b"]), n("Mul", ["b", "w"], ["y"])],
        {"x": f(2, 19, 75), "w": f(19, 75)},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BEHIND)
def test_what_comes_behind_is_computed_in_the_kernel(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = BEHIND[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs)
    assert not [k for k in ran if k.startswith("ew_")]
    assert len(ran) <= 4


def test_what_broadcasts_a_reduction_again_is_a_kernel_of_its_own(provider: DeviceProvider) -> None:
    inputs = {"x": f(6, 77), "z": f(6, 5)}
    nodes = [n("ReduceSum", ["z", "axes"], ["a"]), n("Add", ["a", "x"], ["y"])]
    assert len(kernels(provider, model(nodes, inputs, {"axes": LAST}), inputs)) == 2


WANTED = {
    "read later": ([n("Add", ["a", "b"], ["y"])], ("y",)),
    "an output": ([n("Neg", ["b"], ["y"])], ("y", "a")),
    "not read before its own normalisation": ([n("Mul", ["b", "x"], ["c"]), n("Add", ["c", "a"], ["y"])], ("y",)),
}


@pytest.mark.parametrize("case", WANTED)
def test_a_normalised_sum_is_stored_for_others(provider: DeviceProvider, case: str) -> None:
    after, outputs = WANTED[case]
    inputs = {"x": f(2, 9, 77), "r": f(2, 9, 77)}
    nodes = [n("Add", ["x", "r"], ["a"]), n("LayerNormalization", ["a", "s", "t"], ["b"]), *after]
    ran = kernels(provider, model(nodes, inputs, {"s": f(77), "t": f(77)}, outputs), inputs)
    assert ran[0] == "normalize_rows"
    assert len(ran) <= 2


def test_a_sum_that_is_read_before_its_normalisation_is_a_kernel_of_its_own(provider: DeviceProvider) -> None:
    inputs = {"x": f(2, 9, 77), "r": f(2, 9, 77)}
    nodes = [
        n("Add", ["x", "r"], ["a"]),
        n("ReduceMax", ["a"], ["m"]),
        n("LayerNormalization", ["a", "s"], ["b"]),
        n("Mul", ["b", "m"], ["y"]),
    ]
    assert kernels(provider, model(nodes, inputs, {"s": f(77)}), inputs)[0] == "ew_add"
