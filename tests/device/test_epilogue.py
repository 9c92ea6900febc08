"""Elementwise nodes behind Conv, Gemm and MatMul: one kernel where that can be, the same values everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from sessions import GREEDY, f, kernels, model, n

import gpurt

CASES = {
    "bias, residual and Relu": (
        [n("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4), n("Add", ["c", "r"], ["d"]), n("Relu", ["d"], ["y"])],
        {"x": f(2, 5, 13, 17), "r": f(2, 7, 13, 17)},
        {"w": f(7, 5, 3, 3), "b": f(7)},
    ),
    "a scale for each channel": (
        [n("Conv", ["x", "w"], ["c"]), n("Mul", ["c", "s"], ["d"]), n("Add", ["d", "t"], ["e"]),
         n("HardSwish", ["e"], ["y"])],
        {"x": f(2, 5, 13, 17)},
        {"w": f(37, 5, 1, 1), "s": f(1, 37, 1, 1), "t": f(37, 1, 1)},
    ),
    "SiLU behind a depthwise convolution": (
        [n("Conv", ["x", "w"], ["c"], group=6, pads=[1] * 4), n("Sigmoid", ["c"], ["d"]), n("Mul", ["c", "d"], ["y"])],
        {"x": f(2, 6, 13, 17)},
        {"w": f(6, 1, 3, 3)},
    ),
    "Clip behind strides": (
        [n("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[1] * 4), n("Clip", ["c", "low", "high"], ["y"])],
        {"x": f(1, 6, 23, 37)},
        {"w": f(16, 6, 3, 3), "low": np.float32(0), "high": np.float32(6)},
    ),
    "bias, Gelu and residual": (
        [n("MatMul", ["x", "w"], ["c"]), n("Add", ["c", "b"], ["d"]), n("Gelu", ["d"], ["e"]),
         n("Add", ["e", "r"], ["y"])],
        {"x": f(2, 19, 40), "r": f(2, 19, 50)},
        {"w": f(40, 50), "b": f(50)},
    ),
    "one row": (
        [n("Gemm", ["x", "w", "b"], ["c"], transB=1), n("Tanh", ["c"], ["y"])],
        {"x": f(1, 40)},
        {"w": f(500, 40), "b": f(500)},
    ),
    "a mask that is the same for all heads": (
        [n("MatMul", ["x", "z"], ["c"]), n("Mul", ["c", "k"], ["d"]), n("Add", ["d", "m"], ["y"])],
        {"x": f(2, 3, 19, 40), "z": f(2, 3, 40, 19), "m": f(2, 1, 19, 19)},
        {"k": np.float32(0.125)},
    ),
    "the convolution's own input as residual": (
        [n("Conv", ["x", "w"], ["c"]), n("Add", ["c", "x"], ["y"])],
        {"x": f(1, 5, 13, 17)},
        {"w": f(5, 5, 1, 1)},
    ),
    "a vector": (
        [n("MatMul", ["x", "v"], ["c"]), n("Exp", ["c"], ["y"])],
        {"x": f(30, 40)},
        {"v": f(40)},
    ),
    "three axes": (
        [n("Conv", ["x", "w"], ["c"], pads=[1] * 6), n("Mul", ["c", "s"], ["y"])],
        {"x": f(2, 3, 5, 6, 7)},
        {"w": f(4, 3, 3, 3, 3), "s": f(4, 1, 1, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_product_finishes_its_results(provider, case):
    nodes, inputs, constants = CASES[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs)
    assert not [k for k in ran if k.startswith("ew_")]


APART = {
    "broadcast to more than the product has": (
        [n("Gemm", ["x", "w"], ["c"]), n("Mul", ["c", "r"], ["y"])],
        {"x": f(7, 40), "r": f(3, 7, 33)},
        {"w": f(40, 33)},
    ),
    "a mask along pixel rows, which vectors of columns cross": (
        [n("Conv", ["x", "w"], ["c"], pads=[1] * 4), n("Mul", ["c", "s"], ["y"])],
        {"x": f(2, 3, 6, 20), "s": f(2, 4, 1, 20)},
        {"w": f(4, 3, 3, 3)},
    ),
    "half precision, which is rounded between the nodes": (
        [n("MatMul", ["x", "w"], ["c"]), n("Relu", ["c"], ["d"]), n("Cast", ["d"], ["y"], to=TensorProto.FLOAT)],
        {"x": (np.arange(64).reshape(8, 8) % 5).astype(np.float16)},
        {"w": (np.arange(64).reshape(8, 8) % 3).astype(np.float16)},
    ),
}


@pytest.mark.parametrize("case", APART)
def test_what_does_not_fit_runs_apart(provider, case):
    nodes, inputs, constants = APART[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs)
    assert [k for k in ran if k.startswith("ew_")]


def test_a_product_that_others_read_too_is_stored(provider):
    inputs = {"x": f(5, 6)}
    nodes = [n("MatMul", ["x", "w"], ["c"]), n("Relu", ["c"], ["y"])]
    ran = kernels(provider, model(nodes, inputs, {"w": f(6, 7)}, ("y", "c")), inputs)
    assert [k for k in ran if k.startswith("ew_")]


def test_of_two_products_one_finishes_the_sum(provider):
    inputs = {"x": f(2, 5, 13, 17)}
    nodes = [n("Conv", ["x", "w"], ["c"]), n("Conv", ["x", "v"], ["d"]), n("Add", ["c", "d"], ["e"])]
    proto = model([*nodes, n("Relu", ["e"], ["y"])], inputs, {"w": f(37, 5, 1, 1), "v": f(37, 5, 1, 1)})
    ran = kernels(provider, proto, inputs)
    assert len([k for k in ran if k.startswith("gemm")]) == 2
    assert not [k for k in ran if k.startswith("ew_")]


def test_shapes_may_change_between_runs(provider):
    nodes = [n("MatMul", ["x", "w"], ["c"]), n("Add", ["c", "r"], ["y"])]
    proto = model(nodes, {"x": f(4, 6), "r": f(4, 7)}, {"w": f(6, 7)})
    for value in (*proto.graph.input,):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    session = gpurt.InferenceSession(
        proto, GREEDY, providers=[("opencl", {"kernel_class": provider.info.kernel_class}), "cpu"]
    )
    w = numpy_helper.to_array(proto.graph.initializer[0])
    for rows in (4, 1, 33, 4):
        x, r = f(rows, 6), f(rows, 7)
        np.testing.assert_allclose(session.run(None, {"x": x, "r": r})[0], x @ w + r, rtol=1e-4, atol=1e-5)
