"""Normalisations against NumPy and ONNX's own cases."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import node_for, run_op

OPS = (
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization",
    "MeanVarianceNormalization", "LRN", "BatchNormalization",
)  # fmt: skip
_CASES = [c for c in node_cases(OPS) if not c.attrs.get("training_mode")]
MS = "com.microsoft"
TOLERANCE = {"float32": 2e-5, "float16": 5e-3, "float64": 1e-6}


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    results = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for got, want in zip(results, case.expected, strict=True):
        assert want is not None
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def normalized(x: np.ndarray, axes: tuple[int, ...], eps: float, *, rms: bool = False) -> np.ndarray:
    wide = x.astype(np.float64)
    if not rms:
        wide = wide - wide.mean(axis=axes, keepdims=True)
    return wide / np.sqrt(np.square(wide).mean(axis=axes, keepdims=True) + eps)


def close(got: np.ndarray, want: np.ndarray, dtype: str) -> None:
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_layer_normalization(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(0)
    for shape, axis in [((3, 5), -1), ((4, 100), 1), ((2, 3, 43), 1), ((2, 2300), 1), ((3, 1), 1), ((0, 8), 1)]:
        x = (rng.standard_normal(shape) * 3 + 7).astype(dtype)
        scale, bias = (rng.uniform(0.5, 2, shape[axis:]).astype(dtype) for _ in range(2))
        axes = tuple(range(axis % x.ndim, x.ndim))
        y, mean, deviation = run_op(provider, "LayerNormalization", [x, scale, bias], {"axis": axis}, outputs=3)
        close(y, normalized(x, axes, 1e-5) * scale + bias, dtype)
        if x.size:
            np.testing.assert_allclose(mean, x.astype(float).mean(axis=axes, keepdims=True), rtol=1e-5)
            np.testing.assert_allclose(
                deviation, 1 / np.sqrt(x.astype(float).var(axis=axes, keepdims=True) + 1e-5), rtol=1e-4
            )
    (y,) = run_op(provider, "LayerNormalization", [x, scale], {"axis": 1})
    close(y, normalized(x, (1,), 1e-5) * scale, dtype)


def test_layer_normalization_with_one_scale(provider: DeviceProvider) -> None:
    x = np.random.default_rng(1).standard_normal((3, 50)).astype(np.float32)
    scale, bias = np.array([2], np.float32), np.array([[3]], np.float32)
    (y,) = run_op(provider, "LayerNormalization", [x, scale, bias])
    close(y, normalized(x, (1,), 1e-5) * 2 + 3, "float32")


def test_layer_normalization_with_broadcasting_scale(provider: DeviceProvider) -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    scale, bias = rng.standard_normal((4, 1)).astype(np.float32), rng.standard_normal((3, 1, 5)).astype(np.float32)
    (y,) = run_op(provider, "LayerNormalization", [x, scale, bias], {"axis": 1})
    close(y, normalized(x, (1, 2), 1e-5) * scale + bias, "float32")


@pytest.mark.parametrize("op", ["RMSNormalization", "SimplifiedLayerNormalization"])
def test_rms_normalization(provider: DeviceProvider, op: str) -> None:
    rng = np.random.default_rng(2)
    for dtype, scale_dtype in [("float32", "float32"), ("float16", "float32"), ("float32", "float16")]:
        for shape in [(3, 50), (2, 3, 9)]:
            x = rng.standard_normal(shape).astype(dtype)
            scale = rng.uniform(0.5, 2, shape[-1:]).astype(scale_dtype)
            domain = MS if op.startswith("S") else ""
            (y,) = run_op(provider, op, [x, scale], {"epsilon": 1e-3}, domain=domain)
            close(y, normalized(x, (-1,), 1e-3, rms=True) * scale, scale_dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_skip_layer_normalization(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(3)
    for shape, skip_shape in [((2, 3, 50), (2, 3, 50)), ((2, 3, 12), (3, 12)), ((4, 33), (1, 33))]:
        x = rng.standard_normal(shape).astype(dtype)
        skip = rng.standard_normal(skip_shape).astype(dtype)
        gamma, beta, bias = (rng.uniform(0.5, 2, shape[-1:]).astype(dtype) for _ in range(3))
        y, _, _, total = run_op(
            provider, "SkipLayerNormalization", [x, skip, gamma, beta, bias], {"epsilon": 1e-5}, domain=MS, outputs=4
        )
        want = (x.astype(float) + skip + bias).astype(dtype)
        close(total, want, dtype)
        close(y, normalized(want, (-1,), 1e-5) * gamma + beta, dtype)
        (y,) = run_op(provider, "SkipSimplifiedLayerNormalization", [x, skip, gamma], domain=MS)
        close(y, normalized(x.astype(float) + skip, (-1,), 1e-12, rms=True) * gamma, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_by_channel(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(4)
    for shape in [(2, 4, 5, 5), (1, 6, 77), (2, 4, 3, 1, 9), (3, 2, 1)]:
        x = (rng.standard_normal(shape) + 1).astype(dtype)
        scale, bias, mean = (rng.uniform(0.5, 2, shape[1]).astype(dtype) for _ in range(3))
        wide = (1, -1) + (1,) * (x.ndim - 2)
        s, b = scale.reshape(wide), bias.reshape(wide)
        (y,) = run_op(provider, "InstanceNormalization", [x, scale, bias])
        close(y, normalized(x, tuple(range(2, x.ndim)), 1e-5) * s + b, dtype)
        (y,) = run_op(provider, "GroupNormalization", [x, scale, bias], {"num_groups": 2, "epsilon": 1e-3})
        want = normalized(x.reshape(shape[0], 2, -1), (2,), 1e-3).reshape(shape) * s + b
        close(y, want, dtype)
        (y,) = run_op(provider, "BatchNormalization", [x, scale, bias, mean, scale], {"epsilon": 1e-3})
        close(y, (x.astype(float) - mean.reshape(wide)) / np.sqrt(s.astype(float) + 1e-3) * s + b, dtype)


def test_batch_normalization_of_features_and_mixed_types(provider: DeviceProvider) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((5, 20)).astype(np.float16)
    scale, bias, mean, var = (rng.uniform(0.5, 2, 20).astype(np.float32) for _ in range(4))
    (y,) = run_op(provider, "BatchNormalization", [x, scale, bias, mean, var])
    close(y, (x.astype(float) - mean) / np.sqrt(var + 1e-5) * scale + bias, "float16")


def test_training_is_refused(provider: DeviceProvider) -> None:
    x, p = np.zeros((1, 2, 3), np.float32), np.ones(2, np.float32)
    node = node_for("BatchNormalization", [x, p, p, p, p], {"training_mode": 1})
    assert "inference" in (provider.table.refusal(node, provider.info) or "")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_lp_and_mean_variance(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(6)
    for shape, axis in [((3, 50), 1), ((2, 5, 17), 1), ((4, 3), 0)]:
        x = rng.standard_normal(shape).astype(dtype)
        x[tuple(0 if i != axis else slice(None) for i in range(x.ndim))] = 0
        for p in (1, 2):
            norm = np.linalg.norm(x.astype(float), p, axis, keepdims=True)
            want = np.divide(x, norm, out=np.zeros(shape), where=norm != 0)
            close(run_op(provider, "LpNormalization", [x], {"axis": axis, "p": p})[0], want, dtype)
    for shape, axes in [((2, 3, 4, 5), (0, 2, 3)), ((2, 3, 9), (1,)), ((2, 3, 9), (2,)), ((2, 3, 2, 5, 2), (0, 2, 4))]:
        x = rng.standard_normal(shape).astype(dtype)
        close(run_op(provider, "MeanVarianceNormalization", [x], {"axes": axes})[0], normalized(x, axes, 0), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lrn(provider: DeviceProvider, dtype: str) -> None:
    rng = np.random.default_rng(7)
    for shape, size in [((2, 7, 3, 4), 3), ((1, 4, 30), 4), ((1, 3, 2, 2), 9)]:
        x = rng.standard_normal(shape).astype(dtype)
        wide = np.square(x.astype(float))
        total = np.zeros(shape)
        for k in range(shape[1]):
            low, high = max(0, k - (size - 1) // 2), min(shape[1], k + size // 2 + 1)
            total[:, k] = wide[:, low:high].sum(axis=1)
        (y,) = run_op(provider, "LRN", [x], {"size": size, "alpha": 0.3, "beta": 0.6, "bias": 1.5})
        close(y, x / (1.5 + 0.3 / size * total) ** 0.6, dtype)
