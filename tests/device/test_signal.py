"""DFT and STFT."""

from __future__ import annotations

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.ops.signal import radices
from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import run_op

RNG = np.random.default_rng(6)


# The host does so small an inverse: test_a_small_inverse_is_the_hosts.
CASES = [c for c in node_cases(["DFT", "STFT"]) if c.name != "test_dft_inverse"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    np.testing.assert_allclose(got, case.expected[0], rtol=max(case.rtol, 1e-4), atol=max(case.atol, 1e-4))


def test_a_small_inverse_is_the_hosts(provider: DeviceProvider) -> None:
    with pytest.raises(AssertionError, match="inverse transform of 200 numbers is done on the host"):
        run_op(provider, "DFT", [np.ones((1, 10, 10, 2), np.float32)], {"inverse": 1})


def pairs(z: np.ndarray) -> np.ndarray:
    return np.stack([z.real, z.imag], axis=-1)


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * max(np.abs(wanted).max(initial=0), 1e-9))


def test_radices() -> None:
    for n in [*range(1, 200), 1009, 1024, 44100, 65536]:
        assert np.prod(radices(n)) == n
    assert radices(4096) == [16, 16, 16]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17, 30, 97, 128, 360, 1000, 1024, 2018])
def test_lengths(provider: DeviceProvider, n: int) -> None:
    x = RNG.normal(size=(150, n, 2)).astype(np.float32)
    z = x[..., 0] + 1j * x[..., 1].astype(np.float64)
    close(run_op(provider, "DFT", [x])[0], pairs(np.fft.fft(z)), 1e-5)
    close(run_op(provider, "DFT", [x], {"inverse": 1})[0], pairs(np.fft.ifft(z)), 1e-5)
    half = run_op(provider, "DFT", [x[..., :1]], {"onesided": 1})[0]
    close(half, pairs(np.fft.rfft(x[..., 0])), 1e-5)
    (back,) = run_op(provider, "DFT", [half, np.array(n)], {"onesided": 1, "inverse": 1})
    close(back, x[..., :1], 1e-5)


@pytest.mark.parametrize("axis", [0, 1, -3, -2])
@pytest.mark.parametrize("length", [None, 5, 12])
@pytest.mark.parametrize("onesided", [0, 1])
def test_axes(provider: DeviceProvider, axis: int, length: int | None, onesided: int) -> None:
    x = RNG.normal(size=(8, 6, 7, 1)).astype(np.float32)
    inputs = [x, None if length is None else np.array(length), np.array(axis)]
    along = axis + 4 if axis < 0 else axis
    wanted = (np.fft.rfft if onesided else np.fft.fft)(x[..., 0], length, axis=along)
    close(run_op(provider, "DFT", inputs, {"onesided": onesided})[0], pairs(wanted), 1e-5)
    z = RNG.normal(size=(8, 6, 7, 2)).astype(np.float32)
    inputs[0] = z
    inverse = np.fft.irfft(z[..., 0] + 1j * z[..., 1], length, axis=along)[..., None]
    if not onesided:
        inverse = pairs(np.fft.ifft(z[..., 0] + 1j * z[..., 1], length, axis=along))
    close(run_op(provider, "DFT", inputs, {"onesided": onesided, "inverse": 1})[0], inverse, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("float64", 1e-12)])
def test_dtypes(provider: DeviceProvider, dtype: str, tolerance: float) -> None:
    x = RNG.normal(size=(2, 48, 1)).astype(dtype)
    (y,) = run_op(provider, "DFT", [x], {"onesided": 1})
    assert y.dtype == x.dtype
    close(y, pairs(np.fft.rfft(x[..., 0].astype(np.float64))), tolerance)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("frame", "window"), [(16, None), (None, 16), (16, 16), (20, 12), (12, 20)])
@pytest.mark.parametrize("step", [1, 5, 16])
def test_stft(provider: DeviceProvider, parts: int, frame: int | None, window: int | None, step: int) -> None:
    x = RNG.normal(size=(2, 50, parts)).astype(np.float32)
    weights = None if window is None else RNG.uniform(size=window).astype(np.float32)
    inputs = [x, np.array(step), weights, None if frame is None else np.array(frame)]
    (y,) = run_op(provider, "STFT", inputs, {"onesided": 2 - parts})
    n = frame or window
    z = x[..., 0] + (1j * x[..., 1] if parts == 2 else 0)
    shaped = np.ones(n) if weights is None else np.concatenate([weights, np.zeros(max(n - window, 0))])[:n]
    frames = np.stack([z[:, at : at + n] * shaped for at in range(0, 50 - n + 1, step)], axis=1)
    close(y, pairs((np.fft.rfft if parts == 1 else np.fft.fft)(frames)), 1e-5)
