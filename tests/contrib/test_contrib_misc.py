"""What com.microsoft had before the standard, and some that the standard lacks, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, both, close, codes, near, ours, quick

from gpurt.errors import GpurtError

SEED = st.integers(0, 1 << 20)


@quick
@given(SEED, st.sampled_from(["bilinear", "nearest"]))
def test_crop_and_resize(seed, mode):
    rng = np.random.default_rng(seed)
    n, c, h, w = (int(d) for d in rng.integers(1, 7, 4))
    rois = rng.uniform(-0.3, 1.3, (4, 4)).astype(np.float32)
    batch = rng.integers(0, n, 4).astype(np.int32)
    size = rng.integers(1, 6, 2).astype(np.int32)
    attrs = {"mode": mode, "extrapolation_value": 2.5}
    close("CropAndResize", [array(rng, n, c, h, w), rois, batch, size], attrs)


def test_crop_and_resize_takes_whole_boxes():
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    rois = np.array([[0, 0, 1, 1], [1, 1, 0, 0]], np.float32)
    batch, size = np.zeros(2, np.int32), np.array([3, 4], np.int32)
    for mode in ("bilinear", "nearest"):
        ((got, wanted),) = both("CropAndResize", [x, rois, batch, size], {"mode": mode})
        near(got, wanted)
        near(got[0], x[0])


@quick
@given(SEED, st.sampled_from([np.float32, np.int64, np.bool_]), st.sampled_from([np.int32, np.int64]))
def test_gather_nd(seed, dtype, index_type):
    rng = np.random.default_rng(seed)
    shape = tuple(int(d) for d in rng.integers(1, 5, 3))
    depth = int(rng.integers(1, 4))
    indices = np.stack([rng.integers(0, shape[i], (2, 3)) for i in range(depth)], axis=-1).astype(index_type)
    close("GatherND", [rng.integers(0, 9, shape).astype(dtype), indices], tol=0)


@quick
@given(SEED, st.integers(-4, 4), st.booleans(), st.booleans())
def test_trilu(seed, k, upper, left_out):
    rng = np.random.default_rng(seed)
    x = array(rng, *rng.integers(1, 5, 3))
    close("Trilu", [x] if left_out else [x, np.array(k)], {"upper": int(upper)}, tol=0)


@quick
@given(SEED, st.sampled_from(["constant", "reflect", "edge"]), st.booleans())
def test_pad(seed, mode, nested):
    rng = np.random.default_rng(seed)
    x = array(rng, *rng.integers(2, 6, 3))
    pads = rng.integers(0, 2, 6)
    inputs = [x, pads[None] if nested else pads]
    close("Pad", [*inputs, np.float32([1.5])] if mode == "constant" else inputs, {"mode": mode}, tol=0)


@quick
@given(SEED)
def test_unique(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, rng.integers(1, 20)).astype(np.float32)
    for got, wanted in both("Unique", [x], {}, 3):
        np.testing.assert_array_equal(got, wanted)


@quick
@given(SEED, st.sampled_from([np.float32, np.float64]))
def test_inverse(seed, dtype):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    x = array(rng, 2, 3, n, n, dtype=dtype) + np.eye(n, dtype=dtype) * 4
    close("Inverse", [x], tol=1e-4)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_cdist(metric):
    rng = np.random.default_rng(0)
    close("CDist", [array(rng, 5, 7), array(rng, 4, 7)], {"metric": metric}, tol=2e-5)


@pytest.mark.parametrize("axis", [-2, 0, 1, 2])
def test_expand_dims(axis):
    close("ExpandDims", [np.ones((2, 3), np.float32), np.array(axis, np.int32)], tol=0)


def test_range():
    close("Range", [np.float32(1), np.float32(7), np.float32(1.5)])
    close("Range", [np.int32(3), np.int32(7)])


@quick
@given(SEED, st.sampled_from(["bilinear", "nearest", "bicubic"]), st.sampled_from(["zeros", "border", "reflection"]))
def test_grid_sample(seed, mode, padding):
    rng = np.random.default_rng(seed)
    x, grid = array(rng, 2, 3, 5, 4), rng.uniform(-1.2, 1.2, (2, 3, 6, 2)).astype(np.float32)
    if mode == "bicubic" and padding == "border":
        padding = "zeros"  # ONNX Runtime and the standard's own definition differ there
    attrs = {"mode": mode, "padding_mode": padding, "align_corners": int(rng.integers(0, 2))}
    close("GridSample", [x, grid], attrs, tol=1e-4)


def test_is_all_finite():
    x = np.array([1, 2, np.inf], np.float32)
    for value, attrs in ((False, {}), (True, {"isnan_only": 1}), (False, {"isinf_only": 1})):
        assert ours("IsAllFinite", [x[:2], x], attrs)[0] == value


def test_integers():
    rng = np.random.default_rng(1)
    a, b = codes(rng, np.uint8, 3, 4), codes(rng, np.uint8, 4)
    (got,) = ours("MulInteger", [a, np.uint8(3), b, np.uint8(200)])
    np.testing.assert_array_equal(got, (a.astype(np.int32) - 3) * (b.astype(np.int32) - 200))
    (got,) = ours("ReduceSumInteger", [a], {"axes": [1], "keepdims": 0})
    assert got.dtype == np.uint32
    np.testing.assert_array_equal(got, a.sum(axis=1))


def test_refusals():
    one = np.ones((1, 1, 2, 2), np.float32)
    boxes = [np.zeros((1, 4), np.float32), np.zeros(1, np.int32), np.ones(2, np.int32)]
    with pytest.raises(GpurtError, match="mode is 'cubic'"):
        ours("CropAndResize", [one, *boxes], {"mode": "cubic"})
    with pytest.raises(GpurtError, match="singular"):
        ours("Inverse", [np.zeros((2, 2), np.float32)])
    with pytest.raises(GpurtError, match="metric is 'cosine'"):
        ours("CDist", [one[0, 0], one[0, 0]], {"metric": "cosine"})
