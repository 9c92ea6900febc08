"""Conversion to and from the floats of one or two bytes and the integers of a few bits, bit by bit as ml_dtypes."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import onnx.helper as oh
import pytest
from cases import Case, node_cases

import gpurt
from gpurt.device.provider import DeviceProvider
from gpurt.dtypes import to_onnx
from gpurt.testing.kernels import run_op
from gpurt_cpu.ops.cast import cast_to

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

FLOATS = (
    "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn",
)  # fmt: skip
INTEGERS = ("int4", "uint4", "int2", "uint2")
_NARROW = {np.dtype(n) for n in (*FLOATS, *INTEGERS)}
_CASES = [
    c
    for c in node_cases(("Cast", "CastLike"))
    if {a.dtype for a in (*c.inputs, *c.expected) if a is not None} & _NARROW
]


def bits(x: np.ndarray) -> np.ndarray:
    """What memory holds."""
    return x.view(f"u{x.dtype.itemsize}")


def every(dtype: np.dtype) -> np.ndarray:
    """All values of a type, in the order of their codes."""
    count = 1 << {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}.get(dtype.name, 8 * dtype.itemsize)
    return np.arange(count, dtype=f"u{dtype.itemsize}").view(dtype)


def floats(dtype: np.dtype) -> np.ndarray:
    """Values of the type, what lies halfway between and beside that, extremes, and floats of all sizes."""
    values = every(dtype).astype(np.float32)
    values = np.sort(values[np.isfinite(values)])
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    beside = [np.nextafter(middles, np.float32(end)) for end in (np.inf, -np.inf)]
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 3e38, -3e38, 1e-42])
    anything = np.random.default_rng(0).integers(0, 2**32, 5003, dtype=np.uint32).view(np.float32)
    return np.concatenate([values, middles, *beside, special, anything])


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    (got,) = run_op(provider, case.op, case.inputs, case.attrs)
    (wanted,) = case.expected
    assert wanted is not None
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got.astype(np.float32), wanted.astype(np.float32))


@pytest.mark.parametrize("saturate", [1, 0])
@pytest.mark.parametrize("name", FLOATS)
def test_rounding(provider: DeviceProvider, name: str, saturate: int) -> None:
    dtype = np.dtype(name)
    for mode in ("up", "down", "nearest") if name.endswith("e8m0fnu") else ("up",):
        attrs = {"to": to_onnx(dtype), "saturate": saturate, "round_mode": mode}
        x = floats(dtype)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            sources = [x, x.astype(np.float16), np.arange(-700, 700, dtype=np.int32)]
            wanted = [cast_to(s, dtype, saturate=bool(saturate), round_mode=mode) for s in sources]
        for source, y in zip(sources, wanted, strict=True):
            (got,) = run_op(provider, "Cast", [source], attrs)
            np.testing.assert_array_equal(bits(got), bits(y))


@pytest.mark.parametrize("name", [*FLOATS, *INTEGERS])
def test_widening(provider: DeviceProvider, name: str) -> None:
    x = every(np.dtype(name))
    for wide in (np.float32, np.float16):
        (got,) = run_op(provider, "Cast", [x], {"to": to_onnx(np.dtype(wide))})
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(got, x.astype(np.float32).astype(wide))


@pytest.mark.parametrize("name", INTEGERS)
def test_low_bits(provider: DeviceProvider, name: str) -> None:
    for x in (np.arange(-300, 300, dtype="i2"), np.linspace(-50, 50, 333, dtype="f4"), np.arange(256, dtype="u1")):
        (got,) = run_op(provider, "Cast", [x], {"to": to_onnx(np.dtype(name))})
        np.testing.assert_array_equal(bits(got), bits(cast_to(x, np.dtype(name))))


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "int4"])
def test_movement(provider: DeviceProvider, name: str) -> None:
    x = np.resize(every(np.dtype(name)), (4, 6, 5))
    (y,) = run_op(provider, "Transpose", [x], {"perm": (2, 0, 1)})
    np.testing.assert_array_equal(bits(y), bits(x).transpose(2, 0, 1))
    (y,) = run_op(provider, "Reshape", [x, np.array([-1, 5])])
    np.testing.assert_array_equal(bits(y), bits(x).reshape(-1, 5))
    if name == "bfloat16":  # these operators take no type that is narrower
        (y,) = run_op(provider, "Concat", [x, x[:, :2]], {"axis": 1})
        np.testing.assert_array_equal(bits(y), np.concatenate([bits(x), bits(x[:, :2])], 1))
        (y,) = run_op(provider, "Gather", [x, np.array([3, 0])], {"axis": 1})
        np.testing.assert_array_equal(bits(y), bits(x)[:, [3, 0]])
        (y,) = run_op(provider, "Pad", [x, np.array([0, 1, 0, 1, 0, 2])], {})
        np.testing.assert_array_equal(bits(y), np.pad(bits(x), ((0, 1), (1, 0), (0, 2))))


@pytest.mark.parametrize("kernel_class", ["cpu", "gpu"])
def test_bfloat16_model_stays_on_the_device(provider: DeviceProvider, kernel_class: str) -> None:
    rng, bf16 = np.random.default_rng(0), ml_dtypes.bfloat16
    w = rng.standard_normal((16, 8)).astype(bf16)
    weights = oh.make_tensor("w", oh.TensorProto.BFLOAT16, w.shape, w.tobytes(), raw=True)
    nodes = [
        oh.make_node("MatMul", ["x", "w"], ["a"]),
        oh.make_node("Relu", ["a"], ["b"]),
        oh.make_node("Transpose", ["b"], ["y"], perm=[1, 0]),
    ]
    graph = oh.make_graph(
        nodes, "g", [oh.make_tensor_value_info("x", oh.TensorProto.BFLOAT16, [5, 16])],
        [oh.make_tensor_value_info("y", oh.TensorProto.BFLOAT16, [8, 5])], [weights],
    )  # fmt: skip
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 22)])
    session = gpurt.InferenceSession(model, GREEDY, providers=[("opencl", {"kernel_class": kernel_class})])
    x = rng.standard_normal((5, 16)).astype(bf16)
    (y,) = session.run(None, {"x": x})
    wanted = np.maximum(x.astype(np.float32) @ w.astype(np.float32), 0).T
    assert y.dtype == bf16
    np.testing.assert_allclose(y.astype(np.float32), wanted, rtol=2**-7, atol=1e-3)
