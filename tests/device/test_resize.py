"""Resize in all its modes, against ONNX's reference evaluator."""

from __future__ import annotations

import numpy as np
import onnx.helper
import pytest
from cases import Case, node_cases
from onnx.reference import ReferenceEvaluator

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("case", node_cases(["Resize"]), ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    np.testing.assert_allclose(got, case.expected[0], rtol=case.rtol, atol=1e-5)


def reference(x: np.ndarray, scales: np.ndarray | None, sizes: np.ndarray | None, attrs: dict) -> np.ndarray:
    inputs = {"x": x, "scales": scales, "sizes": sizes}
    names = ["x", "", "scales" if scales is not None else "", "sizes" if sizes is not None else ""]
    node = onnx.helper.make_node("Resize", names, ["y"], **attrs)
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in inputs.items()
        if v is not None
    ]
    graph = onnx.helper.make_graph([node], "g", values, [onnx.helper.make_empty_tensor_value_info("y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)])
    return ReferenceEvaluator(model).run(None, {n: v for n, v in inputs.items() if v is not None})[0]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "coordinates", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize(("shape", "scales"), [((2, 3, 5, 7), (1, 1, 1.7, 0.6)), ((2, 5, 4, 3), (1, 2, 3, 1))])
def test_scales(provider: DeviceProvider, mode: str, coordinates: str, shape, scales) -> None:
    x = RNG.normal(size=shape).astype(np.float32)
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    wanted = reference(x, np.array(scales, np.float32), None, attrs)
    (y,) = run_op(provider, "Resize", [x, None, np.array(scales, np.float32)], attrs)
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "int64"])
def test_nearest_modes(provider: DeviceProvider, nearest: str, dtype: str) -> None:
    x = RNG.integers(0, 2, (1, 2, 4, 6)).astype(dtype)
    attrs = {"mode": "nearest", "nearest_mode": nearest}
    sizes = np.array([1, 2, 8, 4])
    (y,) = run_op(provider, "Resize", [x, None, None, sizes], attrs)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, reference(x.astype(np.float32), None, sizes, attrs))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((2, 3, 4), (4, 5, 3)), ((1, 2, 3, 4, 5), (1, 2, 5, 3, 9)), ((3, 2, 4), (5, 2, 6)), ((6,), (9,))],
)
def test_one_to_three_axes(provider: DeviceProvider, mode: str, shape, sizes) -> None:
    x = RNG.normal(size=shape).astype(np.float64)
    (y,) = run_op(provider, "Resize", [x, None, None, np.array(sizes)], {"mode": mode})
    np.testing.assert_allclose(y, reference(x, None, np.array(sizes), {"mode": mode}), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "int32"])
def test_linear_dtypes(provider: DeviceProvider, dtype: str) -> None:
    x = RNG.integers(0, 100, (2, 6, 8)).astype(dtype)
    sizes = np.array([2, 12, 5])
    (y,) = run_op(provider, "Resize", [x, None, None, sizes], {"mode": "linear"})
    wanted = reference(x.astype(np.float32), None, sizes, {"mode": "linear"})
    np.testing.assert_allclose(y, wanted.astype(dtype), rtol=1e-3, atol=0 if dtype == "float16" else 1)


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("uint8", 0, 255), ("int8", -128, 127), ("int16", -(2**15), 2**15 - 1)]
)
def test_cubic_saturates(provider: DeviceProvider, dtype: str, least: int, most: int) -> None:
    x = np.array([least, most, least, most, most, least], dtype)
    (y,) = run_op(provider, "Resize", [x, None, None, np.array([40])], {"mode": "cubic"})
    wanted = reference(x.astype(np.float32), None, np.array([40]), {"mode": "cubic"}).clip(least, most)
    assert {y.min(), y.max()} == {least, most}
    np.testing.assert_allclose(y.astype(np.float32), np.trunc(wanted), atol=1)
