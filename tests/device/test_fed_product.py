"""Elementwise nodes before products of matrices and pointwise convolutions: in their kernel where that pays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from sessions import f, kernels, model, n

import gpurt
from gpurt.device.ops.fed_product import MOST_WEIGHTS, STAGE
from gpurt.device.provider import DeviceProvider
from gpurt.graph.view import NodeView

Case = tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]

CASES: dict[str, Case] = {
    "scaled, shifted, at least zero": (
        [n("Mul", ["x", "s"], ["a"]), n("Add", ["a", "t"], ["b"]), n("Relu", ["b"], ["c"]),
         n("MatMul", ["c", "w"], ["y"])],
        {"x": f(70, 77)},
        {"s": f(77), "t": f(77), "w": f(77, 45)},
    ),
    "a gate for each row, and what follows": (
        [n("Mul", ["x", "g"], ["a"]), n("MatMul", ["a", "w"], ["b"]), n("Add", ["b", "t"], ["c"]),
         n("Tanh", ["c"], ["y"])],
        {"x": f(3, 30, 64), "g": f(3, 30, 1)},
        {"w": f(64, 33), "t": f(33)},
    ),
    "a sum of two, with bias": (
        [n("Add", ["x", "z"], ["a"]), n("Gemm", ["a", "w", "c"], ["y"], transB=1)],
        {"x": f(19, 40), "z": f(19, 40)},
        {"w": f(100, 40), "c": f(100)},
    ),
    "more rows than are ready at once": (
        [n("Abs", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])],
        {"x": f(3000, 100)},
        {"w": f(100, 17)},
    ),
    "one column too many for a vector": (
        [n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])],
        {"x": f(12, 9)},
        {"w": f(9, 25)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_comes_before_a_product_is_computed_in_its_kernel(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = CASES[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs)
    assert ran == ["fed_product" if provider.info.kernel_class == "cpu" else "gemm_gpu"]


APART: dict[str, Case] = {
    "rows longer than the room for them": (
        [n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])],
        {"x": f(2, STAGE)},
        {"w": f(STAGE, 3)},
    ),
    "weights that are read again and again": (
        [n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])],
        {"x": f(9, 512)},
        {"w": f(512, MOST_WEIGHTS // 512 + 16)},
    ),
    "numbers of a row that are broadcast within it": (
        [n("Exp", ["e"], ["a"]), n("Mul", ["x", "a"], ["b"]), n("MatMul", ["b", "w"], ["y"])],
        {"x": f(40, 24), "e": f(40, 1)},
        {"w": f(24, 16)},
    ),
    "batches with weights of their own": (
        [n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])],
        {"x": f(3, 12, 24)},
        {"w": f(3, 24, 16)},
    ),
    "a column": (
        [n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])],
        {"x": f(40, 24)},
        {"w": f(24, 1)},
    ),
    "nothing": ([n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])], {"x": f(5, 0)}, {"w": f(0, 3)}),
}


@pytest.mark.parametrize("case", APART)
def test_what_does_not_pay_or_fit_runs_apart(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = APART[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs, rtol=1e-4)
    assert "fed_product" not in ran
    assert bool([k for k in ran if k.startswith("ew_")]) == (case != "nothing")


def test_what_others_read_too_is_stored(provider: DeviceProvider) -> None:
    inputs = {"x": f(30, 20)}
    nodes = [n("Neg", ["x"], ["a"]), n("MatMul", ["a", "w"], ["b"]), n("Add", ["b", "a"], ["y"])]
    assert kernels(provider, model(nodes, inputs, {"w": f(20, 20)}), inputs)[0] == "ew_neg"


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions(provider: DeviceProvider, dtype: type) -> None:
    x = f(20, 40).astype(dtype)
    nodes = [n("Mul", ["x", "s"], ["a"]), n("MatMul", ["a", "w"], ["b"]), n("Cast", ["b"], ["y"], to=TensorProto.FLOAT)]
    weights = {"s": f(40).astype(dtype), "w": f(40, 24).astype(dtype)}
    ran = kernels(provider, model(nodes, {"x": x}, weights), {"x": x}, rtol=4e-3 if dtype == np.float16 else 1e-6)
    assert "fed_product" not in ran


def images(between: list[onnx.NodeProto], weights: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """A convolution, what stands behind it, and another one of `w`; `q` is an output, so it is nobody's epilogue."""
    inputs = {"x": f(2, 8, 14, 14), "g": f(2, 24, 1, 1)}
    nodes = [n("Conv", ["x", "v"], ["c"]), *between, n("Conv", ["b", "w", "k"], ["y"], **attributes)]
    return model(nodes, inputs, {"v": f(24, 8, 1, 1), "k": f(20), **weights}, ("y", "q"))


AFFINE = [n("Abs", ["c"], ["p"]), n("MaxPool", ["p"], ["q"], kernel_shape=[2, 2]), n("Mul", ["q", "s"], ["r"]),
          n("Add", ["r", "t"], ["z"]), n("Relu", ["z"], ["b"])]  # fmt: skip
GATED = [n("MaxPool", ["c"], ["q"], kernel_shape=[2, 2]), n("Mul", ["q", "g"], ["b"])]
CHANNELS = {"s": f(24, 1, 1), "t": f(24, 1, 1)}


@pytest.mark.parametrize("provider", ["cpu"], indirect=True)
@pytest.mark.parametrize(
    ("between", "kernel", "attributes", "fed"),
    [
        (AFFINE, 1, {}, True),
        (GATED, 1, {}, True),
        (AFFINE, 3, {"pads": [1, 1, 1, 1]}, False),
        (AFFINE, 1, {"strides": [2, 2]}, False),
        (AFFINE, 1, {"pads": [1, 1, 0, 0]}, False),
    ],
)
def test_pointwise_convolutions(
    provider: DeviceProvider, monkeypatch: pytest.MonkeyPatch, between: Any, kernel: int, attributes: Any, fed: bool
) -> None:
    def eager(_: DeviceProvider, node: NodeView) -> float:
        return 1000.0 if node.op_type == "Conv" else 0.0

    monkeypatch.setattr(DeviceProvider, "channels_last", eager)
    used = CHANNELS if between is AFFINE else {}
    proto = images(between, {"w": f(20, 24, kernel, kernel), **used}, **attributes)
    inputs = {"x": f(2, 8, 14, 14), "g": f(2, 24, 1, 1)}
    ran = kernels(provider, proto, inputs, rtol=1e-4)
    assert ("fed_product" in ran) == fed
    assert bool([k for k in ran if k.startswith("ew_")]) != fed


@pytest.mark.parametrize("activated", [False, True])
def test_a_gate_is_computed_behind_the_product_that_it_comes_from(provider: DeviceProvider, activated: bool) -> None:
    """Once for each row, and not again for each element that it is broadcast to; also where the product goes on."""
    inputs = {"x": f(40, 24), "z": f(40, 12)}
    nodes = [n("MatMul", ["z", "v"], ["a"]), n("HardSigmoid", ["a"], ["b"]), n("Mul", ["x", "b"], ["c"]),
             n("Relu", ["c"], ["d"]), n("MatMul", ["d" if activated else "c", "w"], ["y"])]  # fmt: skip
    if not activated:
        del nodes[3]
    ran = kernels(provider, model(nodes, inputs, {"v": f(12, 1), "w": f(24, 16)}), inputs)
    assert len(ran) == 2
    assert not [k for k in ran if k.startswith("ew_")]


def test_numbers_of_rows_may_change(provider: DeviceProvider) -> None:
    proto = model(
        [n("Relu", ["x"], ["a"]), n("MatMul", ["a", "w"], ["y"])], {"x": f(4, 20)}, {"w": f(20, 30)}
    )  # fmt: skip
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    options = {"kernel_class": provider.info.kernel_class}
    given = gpurt.SessionOptions(partitioning="greedy")
    session = gpurt.InferenceSession(proto, given, providers=[("opencl", options), "cpu"])
    reference = gpurt.InferenceSession(proto, providers=["cpu"])
    for rows in (4, 5, 6, 40, 41, 1, 4):
        want = reference.run(None, {"x": (x := f(rows, 20))})[0]
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=2e-5, atol=1e-5)
