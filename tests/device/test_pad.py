"""Pad in all modes, against numpy.pad over the cropped input."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op


@pytest.mark.parametrize("case", node_cases(["Pad"]), ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    np.testing.assert_allclose(got, case.expected[0], rtol=1e-6)


def padded(x: np.ndarray, pads: tuple[int, ...], mode: str, value: float) -> np.ndarray:
    half = len(pads) // 2
    sides = list(zip(pads[:half], pads[half:], strict=True))
    x = x[tuple(slice(max(-b, 0), n - max(-e, 0)) for n, (b, e) in zip(x.shape, sides, strict=True))]
    grown = [(max(b, 0), max(e, 0)) for b, e in sides]
    return np.pad(x, grown, mode, **({"constant_values": value} if mode == "constant" else {}))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize(
    ("shape", "pads"),
    [
        ((5,), (2, 3)),
        ((3, 4), (0, 2, 0, 1)),
        ((3, 4), (2, 0, 1, 0)),
        ((2, 3, 4, 5), (0, 0, 2, 1, 0, 0, 1, 2)),
        ((2, 3, 4, 5), (0, 1, 0, 0, 0, 2, 0, 0)),
        ((2, 3, 4, 5), (1, -1, 0, 3, 0, 1, -2, -1)),
        ((4, 5), (-1, -1, -1, 0)),
        ((4, 5), (-1, 0, -1, 0)),
        ((3, 2), (7, 9, 8, 10)),
        ((1, 3), (4, 0, 0, 0)),
        ((2, 6000), (1, 3000, 1, 5000)),
    ],
)
def test_pad(provider: DeviceProvider, mode: str, shape: tuple[int, ...], pads: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    (y,) = run_op(provider, "Pad", [x, np.array(pads), np.array(7.5, np.float32)], {"mode": mode})
    np.testing.assert_array_equal(y, padded(x, pads, mode, 7.5))


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "int64", "float64"])
def test_pad_axes_and_types(provider: DeviceProvider, dtype: str) -> None:
    x = np.ones((2, 3, 4), dtype)
    (y,) = run_op(provider, "Pad", [x, np.array([1, 2, 3, 0]), None, np.array([-1, 0])])
    np.testing.assert_array_equal(y, np.pad(x, [(2, 0), (0, 0), (1, 3)]))


def test_pad_of_an_empty_tensor(provider: DeviceProvider) -> None:
    (y,) = run_op(provider, "Pad", [np.empty((0, 2), np.float32), np.array([1, 0, 1, 0]), np.array([3], np.float32)])
    np.testing.assert_array_equal(y, np.full((2, 2), 3))
