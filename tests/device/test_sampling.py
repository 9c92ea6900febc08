"""GridSample, AffineGrid, DeformConv, the pools over regions, MaxUnpool, Col2Im and BitCast."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.helper
import pytest
from cases import Case, node_cases
from onnx.reference import ReferenceEvaluator

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

RNG = np.random.default_rng(5)
OPS = ["BitCast", "GridSample", "AffineGrid", "RoiAlign", "MaxUnpool", "Col2Im", "DeformConv"]


@pytest.mark.parametrize("case", node_cases(OPS), ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    assert got.dtype == case.expected[0].dtype
    np.testing.assert_allclose(got, case.expected[0], rtol=max(case.rtol, 1e-5), atol=max(case.atol, 1e-5))


def reference(op: str, inputs: list[np.ndarray | None], attrs: dict[str, Any], opset: int = 22) -> np.ndarray:
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    node = onnx.helper.make_node(op, names, ["y"], **attrs)
    given = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in given.items()
    ]
    graph = onnx.helper.make_graph([node], "g", values, [onnx.helper.make_empty_tensor_value_info("y")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return ReferenceEvaluator(model).run(None, given)[0]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(provider: DeviceProvider, mode: str, padding: str, align: int) -> None:
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": align}
    shapes = [((2, 3, 4, 5), (3, 2))]
    if padding == "reflection" and mode != "cubic":
        shapes += [((1, 2, 3, 2, 4), (2, 1, 3)), ((1, 1, 6), (7,))]
    for x_shape, places in shapes:
        x = RNG.normal(size=x_shape).astype(np.float32)
        grid = RNG.uniform(-2.5, 2.5, (x_shape[0], *places, len(places))).astype(np.float32)
        (y,) = run_op(provider, "GridSample", [x, grid], attrs)
        np.testing.assert_allclose(y, reference("GridSample", [x, grid], attrs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "rtol"), [("float16", 1e-2), ("float64", 1e-5)])
def test_grid_sample_dtypes(provider: DeviceProvider, dtype: str, rtol: float) -> None:
    x = RNG.normal(size=(1, 70, 4, 5)).astype(dtype)
    grid = RNG.uniform(-1, 1, (1, 2, 2, 2)).astype(dtype)
    (y,) = run_op(provider, "GridSample", [x, grid], {"align_corners": 1})
    wanted = reference("GridSample", [x.astype(np.float32), grid.astype(np.float32)], {"align_corners": 1})
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, wanted, rtol=rtol, atol=rtol)


def test_grid_sample_far_outside(provider: DeviceProvider) -> None:
    x = np.full((1, 1, 2, 3), np.inf, np.float32)
    grid = np.array([[1e30, 0], [-np.inf, 0], [np.nan, np.nan], [0, 5]], np.float32).reshape(1, 4, 1, 2)
    (y,) = run_op(provider, "GridSample", [x, grid], {})
    np.testing.assert_array_equal(y.reshape(-1), 0)
    for padding in ("border", "reflection"):
        (y,) = run_op(provider, "GridSample", [np.ones_like(x), grid], {"padding_mode": padding})
        np.testing.assert_allclose(y.reshape(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("align", [0, 1])
def test_affine_grid(provider: DeviceProvider, dtype: str, align: int) -> None:
    for size in ([3, 1, 4, 5], [2, 1, 3, 2, 4]):
        theta = RNG.normal(size=(size[0], len(size) - 2, len(size) - 1)).astype(dtype)
        inputs = [theta, np.array(size)]
        (y,) = run_op(provider, "AffineGrid", inputs, {"align_corners": align})
        wanted = reference("AffineGrid", inputs, {"align_corners": align})
        rtol, atol = (1e-2, 1e-3) if dtype == "float16" else (1e-5, 1e-6)
        np.testing.assert_allclose(y, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    ("group", "sets", "stride", "dilation", "mask", "bias"),
    [(1, 1, 1, 1, False, False), (2, 1, 2, 1, True, True), (1, 2, 1, 2, True, False), (2, 4, 1, 1, False, True)],
)
def test_deform_conv(provider: DeviceProvider, group, sets, stride, dilation, mask, bias) -> None:
    x = RNG.normal(size=(2, 4, 7, 6)).astype(np.float32)
    w = RNG.normal(size=(6, 4 // group, 3, 2)).astype(np.float32)
    out = [(7 + 2 - dilation * 2 - 1) // stride + 1, (6 + 1 - dilation - 1) // stride + 1]
    offset = RNG.uniform(-3, 3, (2, sets * 12, *out)).astype(np.float32)
    inputs = [x, w, offset, None, None]
    if bias:
        inputs[3] = RNG.normal(size=6).astype(np.float32)
    if mask:
        inputs[4] = RNG.normal(size=(2, sets * 6, *out)).astype(np.float32)
    attrs = {
        "group": group, "offset_group": sets, "strides": [stride] * 2, "dilations": [dilation] * 2,
        "pads": [1, 0, 1, 1], "kernel_shape": [3, 2],
    }  # fmt: skip
    (y,) = run_op(provider, "DeformConv", inputs, attrs, constant=[1])
    np.testing.assert_allclose(y, reference("DeformConv", inputs, attrs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_deform_conv_without_offsets_is_conv(provider: DeviceProvider, dtype: str) -> None:
    # three axes, and images in turns
    from gpurt.device.ops import sampling

    x = RNG.normal(size=(3, 2, 4, 5, 6)).astype(dtype)
    w = RNG.normal(size=(3, 2, 2, 3, 2)).astype(dtype)
    attrs = {"strides": [1, 2, 1], "pads": [1, 0, 1, 0, 1, 0]}
    (wanted,) = run_op(provider, "Conv", [x, w], attrs)
    offset = np.zeros((3, 12 * 3, *wanted.shape[2:]), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_COLUMN_BYTES", 1)
        (y,) = run_op(provider, "DeformConv", [x, w, offset], attrs)
    rtol, atol = (1e-2, 1e-2) if dtype == "float16" else (1e-4, 1e-5)
    np.testing.assert_allclose(y, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transform", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize(("ratio", "dtype"), [(0, "float32"), (2, "float32"), (0, "float16")])
def test_roi_align(provider: DeviceProvider, mode: str, transform: str, ratio: int, dtype: str) -> None:
    x = RNG.normal(size=(2, 11, 8, 9)).astype(dtype)
    corners = RNG.integers(-8, 40, (5, 2, 2)) / 4  # exact in half precision
    rois = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(dtype)
    images = RNG.integers(0, 2, 5)
    attrs = {
        "mode": mode, "coordinate_transformation_mode": transform, "sampling_ratio": ratio, "output_height": 3,
        "output_width": 2, "spatial_scale": 1.5,
    }  # fmt: skip
    (y,) = run_op(provider, "RoiAlign", [x, rois, images], attrs)
    wanted = reference("RoiAlign", [x.astype(np.float64), rois.astype(np.float64), images], attrs)
    tolerance = 5e-3 if dtype == "float16" else 1e-4
    np.testing.assert_allclose(y, wanted, rtol=tolerance, atol=tolerance)


def max_roi_pool(x: np.ndarray, rois: np.ndarray, bins: tuple[int, int], scale: float) -> np.ndarray:
    y = np.zeros((len(rois), x.shape[1], *bins), x.dtype)
    for r, roi in enumerate(rois):
        left, top, right, bottom = (int(np.floor(v * scale + 0.5)) for v in roi[1:].astype(np.float64))
        spans = []
        for begin, end, count, limit in ((top, bottom, bins[0], x.shape[2]), (left, right, bins[1], x.shape[3])):
            size = max(end - begin + 1, 1)
            edges = [(i * size // count + begin, -(-(i + 1) * size // count) + begin) for i in range(count)]
            spans.append([(min(max(a, 0), limit), min(max(b, 0), limit)) for a, b in edges])
        for i, (y0, y1) in enumerate(spans[0]):
            for j, (x0, x1) in enumerate(spans[1]):
                if y0 < y1 and x0 < x1:
                    y[r, :, i, j] = x[int(roi[0]), :, y0:y1, x0:x1].max((1, 2))
    return y


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_max_roi_pool(provider: DeviceProvider, dtype: str) -> None:
    x = RNG.normal(size=(2, 3, 9, 10)).astype(dtype)
    corners = RNG.integers(0, 18, (6, 2, 2))
    rois = np.concatenate([RNG.integers(0, 2, (6, 1)), corners.min(1), corners.max(1)], axis=1).astype(dtype)
    attrs = {"pooled_shape": [3, 4], "spatial_scale": 0.5}
    (y,) = run_op(provider, "MaxRoiPool", [x, rois], attrs)
    np.testing.assert_array_equal(y, max_roi_pool(x, rois, (3, 4), 0.5))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
@pytest.mark.parametrize("shape", [None, [2, 3, 9, 7]])
def test_max_unpool(provider: DeviceProvider, dtype: str, shape: list[int] | None) -> None:
    x = RNG.normal(size=(2, 3, 8, 6)).astype(dtype)
    pooled, places = run_op(provider, "MaxPool", [x], {"kernel_shape": [2, 2], "strides": [2, 2]}, outputs=2)
    inputs = [pooled, places] + ([] if shape is None else [np.array(shape)])
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2]}
    (y,) = run_op(provider, "MaxUnpool", inputs, attrs)
    np.testing.assert_array_equal(y, reference("MaxUnpool", inputs, attrs))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32", "float64"])
@pytest.mark.parametrize(
    ("image", "block", "attrs"),
    [
        ([9], [3], {"strides": [2]}),
        ([5, 6], [2, 3], {"pads": [1, 0, 0, 2], "dilations": [2, 1]}),
        ([4, 3, 5], [2, 1, 3], {"strides": [2, 1, 1], "pads": [0, 1, 1, 1, 0, 0]}),
    ],
)
def test_col2im(provider: DeviceProvider, dtype: str, image, block, attrs) -> None:
    rank = len(image)
    strides, dilations = attrs.get("strides", [1] * rank), attrs.get("dilations", [1] * rank)
    pads = attrs.get("pads", [0] * 2 * rank)
    blocks = [
        (image[i] + pads[i] + pads[rank + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)
    ]
    x = RNG.integers(-9, 9, (2, 3 * int(np.prod(block)), int(np.prod(blocks)))).astype(dtype)
    inputs = [x, np.array(image), np.array(block)]
    (y,) = run_op(provider, "Col2Im", inputs, attrs)
    np.testing.assert_array_equal(y, reference("Col2Im", inputs, attrs, 18))


def test_empty(provider: DeviceProvider) -> None:
    x = np.zeros((2, 3, 4, 5), np.float32)
    (y,) = run_op(provider, "GridSample", [x, np.zeros((2, 0, 3, 2), np.float32)], {})
    assert y.shape == (2, 3, 0, 3)
    none = np.zeros(0, np.int64)
    (y,) = run_op(provider, "RoiAlign", [x, np.zeros((0, 4), np.float32), none], {"output_height": 2})
    assert y.shape == (0, 3, 2, 1)
