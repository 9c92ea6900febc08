"""Elementwise operators against NumPy and ONNX's own cases: values, dtypes, special values, broadcasting, placement."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cases import Case, node_cases

from gpurt.device.lowering import Ref
from gpurt.device.provider import DeviceProvider
from gpurt.device.steps import collapse
from gpurt.device.views import Strided
from gpurt.dtypes import to_onnx
from gpurt.graph.view import GraphView
from gpurt.provider import BufferRef, Operand, Refused
from gpurt.spec import Spec
from gpurt.testing.kernels import node_for, run_op

SPECIAL = [
    0.0,
    -0.0,
    np.inf,
    -np.inf,
    np.nan,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    1e-7,
    88.0,
    -88.0,
    30.0,
    -30.0,
    1e30,
    200.0,
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def reals(dtype: type, n: int = 203, seed: int = 0) -> np.ndarray:
    """Values of many magnitudes with special ones between them, which must not disturb their neighbours."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=n) * 10.0 ** rng.integers(-4, 3, n)).astype(dtype)
    x[rng.permutation(n)[: len(SPECIAL)]] = np.array(SPECIAL).astype(dtype)
    return x


def wholes(dtype: type, n: int = 203, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    x = rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True)
    x[::2] = rng.integers(max(info.min, -9), 9, len(x[::2])).astype(dtype)
    x[:4] = [info.min, info.max, 0, 1]
    return x


def agree(got: np.ndarray, want: np.ndarray, rtol: float, atol: float) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def sigmoid(x: np.ndarray) -> Any:
    return 1 / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> Any:
    return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> Any:
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softplus(x: np.ndarray) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


UNARY: dict[str, tuple[Callable[[np.ndarray], Any], dict[str, Any]]] = {
    "Abs": (np.abs, {}), "Neg": (np.negative, {}), "Sign": (np.sign, {}), "Floor": (np.floor, {}),
    "Ceil": (np.ceil, {}), "Round": (np.rint, {}), "Sqrt": (np.sqrt, {}), "Exp": (np.exp, {}), "Log": (np.log, {}),
    "Reciprocal": (np.reciprocal, {}), "Sin": (np.sin, {}), "Cos": (np.cos, {}), "Tan": (np.tan, {}),
    "Asin": (np.arcsin, {}), "Acos": (np.arccos, {}), "Atan": (np.arctan, {}), "Sinh": (np.sinh, {}),
    "Cosh": (np.cosh, {}), "Tanh": (np.tanh, {}), "Asinh": (np.arcsinh, {}), "Acosh": (np.arccosh, {}),
    "Atanh": (np.arctanh, {}), "Erf": (np.vectorize(math.erf, otypes=[np.float64]), {}), "IsNaN": (np.isnan, {}),
    "IsInf": (np.isneginf, {"detect_positive": 0}), "Relu": (lambda x: np.maximum(x, 0), {}),
    "LeakyRelu": (lambda x: np.where(x < 0, 0.3 * x, x), {"alpha": 0.3}),
    "Elu": (lambda x: np.where(x > 0, x, 1.5 * np.expm1(x)), {"alpha": 1.5}),
    "Celu": (lambda x: np.maximum(x, 0) + np.minimum(2 * np.expm1(x / 2), 0), {"alpha": 2.0}),
    "Selu": (lambda x: 1.5 * np.where(x > 0, x, 2 * np.expm1(x)), {"alpha": 2.0, "gamma": 1.5}),
    "Sigmoid": (sigmoid, {}), "HardSigmoid": (lambda x: np.clip(0.3 * x + 0.4, 0, 1), {"alpha": 0.3, "beta": 0.4}),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}), "Softplus": (softplus, {}),
    "Softsign": (lambda x: x / (1 + np.abs(x)), {}), "Mish": (lambda x: x * np.tanh(softplus(x)), {}),
    "ThresholdedRelu": (lambda x: np.where(x > 0.5, x, 0), {"alpha": 0.5}),
    "Swish": (lambda x: x * sigmoid(1.5 * x), {"alpha": 1.5}),
    "Shrink": (lambda x: np.where(x < -1.5, x + 0.5, np.where(x > 1.5, x - 0.5, 0)), {"lambd": 1.5, "bias": 0.5}),
    "Gelu": (gelu, {}),
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_function_of_float32(provider: DeviceProvider, op: str) -> None:
    fn, attrs = UNARY[op]
    x = reals(np.float32)
    (got,) = run_op(provider, op, [x], attrs)
    exact = np.asarray(fn(x.astype(np.float64)))
    want = exact if exact.dtype == bool else exact.astype(np.float32)
    agree(got, want, 2e-6, 1e-6 if op == "Gelu" else 3e-7)


@pytest.mark.parametrize("op", ["Exp", "Tanh", "Erf", "Round", "Sin", "Pow", "Mod"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_function_of_other_reals(provider: DeviceProvider, op: str, dtype: type) -> None:
    x = reals(dtype)
    if op == "Pow":
        y = reals(dtype, seed=1)
        (got,) = run_op(provider, op, [np.abs(x), y])
        want = np.power(np.abs(x).astype(np.float64), y.astype(np.float64)).astype(dtype)
    elif op == "Mod":
        y = reals(dtype, seed=1)
        (got,) = run_op(provider, op, [x, y])
        want = np.mod(x.astype(np.float32 if dtype == np.float16 else dtype), y).astype(dtype)
    else:
        (got,) = run_op(provider, op, [x])
        want = np.asarray(UNARY[op][0](x.astype(np.float64))).astype(dtype)
    agree(got, want, 2e-3 if dtype == np.float16 else 1e-12, 1e-5 if dtype == np.float16 else 0)


@pytest.mark.parametrize(
    ("op", "fn"),
    [("Gelu", gelu), ("QuickGelu", lambda x: x * sigmoid(1.702 * x)), ("BiasGelu", None), ("FastGelu", None)],
)
def test_contrib_gelus(provider: DeviceProvider, op: str, fn: Callable[[np.ndarray], Any] | None) -> None:
    x, bias = np.linspace(-9, 9, 72, dtype=np.float32).reshape(9, 8), np.linspace(-1, 1, 8, dtype=np.float32)
    inputs = [x] if fn else [x, bias]
    (got,) = run_op(provider, op, inputs, domain="com.microsoft")
    fn = fn or (gelu if op == "BiasGelu" else gelu_tanh)
    agree(got, fn(sum(inputs).astype(np.float64)).astype(np.float32), 1e-5, 1e-6)


def truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        q = np.floor_divide(a, b)
        return q + ((q * b != a) & (b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)


WHOLE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "Add": (np.add, {}), "Mul": (np.multiply, {}), "Div": (truncated, {}), "Mod": (np.mod, {}),
    "Max": (np.maximum, {}), "LessOrEqual": (np.less_equal, {}), "Equal": (np.equal, {}),
}  # fmt: skip


@pytest.mark.parametrize("op", WHOLE)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_whole_numbers_wrap_and_divide_as_numpys(provider: DeviceProvider, op: str, dtype: type) -> None:
    fn, attrs = WHOLE[op]
    a, b = wholes(dtype), wholes(dtype, seed=1)
    (got,) = run_op(provider, op, [a, b], attrs)
    agree(got, np.asarray(fn(a, b)), 0, 0)


@pytest.mark.parametrize("op", ["Abs", "Sign", "Relu", "Neg", "BitwiseNot"])
@pytest.mark.parametrize("dtype", [np.int8, np.int64])
def test_whole_numbers_unary(provider: DeviceProvider, op: str, dtype: type) -> None:
    fn = {"Abs": np.abs, "Sign": np.sign, "Relu": lambda v: np.maximum(v, 0), "Neg": np.negative}.get(op, np.invert)
    x = wholes(dtype)
    agree(run_op(provider, op, [x])[0], np.asarray(fn(x)), 0, 0)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_shift_by_any_amount(provider: DeviceProvider, direction: str, dtype: type) -> None:
    bits = np.dtype(dtype).itemsize * 8
    x, by = wholes(dtype), np.resize(np.arange(bits + 3), 203).astype(dtype)
    by[5] = 255 if dtype == np.uint8 else -1
    (got,) = run_op(provider, "BitShift", [x, by], {"direction": direction})
    agree(got, (np.left_shift if direction == "LEFT" else np.right_shift)(x, by), 0, 0)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [("i4", "i4"), ("i8", "u2"), ("i4", "f4"), ("f4", "i8"), ("f4", "f4"), ("f4", "f8"), ("f2", "f4"), ("f8", "i4")],
)
def test_power_of_mixed_types(provider: DeviceProvider, base: str, exponent: str) -> None:
    x = np.resize(np.arange(1, 9), 40).astype(base)
    y = np.resize(np.arange(5), 40).astype(exponent) + (0.5 if exponent[0] == "f" and base[0] == "f" else 0)
    y = y.astype(exponent)
    (got,) = run_op(provider, "Pow", [x, y])
    wide = np.power(x.astype(np.float64), y.astype(np.float64))
    agree(got, wide.astype(base), 1e-3 if base == "f2" else 2e-6 if base == "f4" else 1e-13, 0)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, 1.0])
def test_power_by_a_known_number(provider: DeviceProvider, exponent: float) -> None:
    x = np.linspace(0.1, 7, 50, dtype=np.float32)
    (got,) = run_op(provider, "Pow", [x, np.float32(exponent).reshape(1)], constant=[1])
    agree(got, x ** np.float32(exponent), 1e-6, 0)


CASTS = [
    *(("f4", d) for d in ("f2", "f8", "i1", "u1", "i4", "i8", "u8", "?")), ("f2", "f4"), ("f2", "u1"), ("f8", "f2"),
    ("f8", "f4"), ("f8", "i4"), ("i8", "f4"), ("i8", "i4"), ("i8", "?"), ("u1", "f4"), ("i1", "u4"), ("?", "f4"),
    ("?", "f2"), ("?", "i8"), ("u8", "f8"), ("i4", "u1"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CASTS)
def test_cast_is_astype(provider: DeviceProvider, source: str, target: str) -> None:
    s, t = np.dtype(source), np.dtype(target)
    x = reals(s.type) if s.kind == "f" else wholes(np.int64).astype(s) if s.kind == "b" else wholes(s.type)
    if s.kind == "f" and t.kind in "iu":
        x = x[np.abs(x) < 1e9]  # what lies outside of the target is undefined, in C and in ONNX
    if t == np.float16:
        halves = np.arange(0, 65536, 7, dtype=np.uint16).view(np.float16).astype(np.float64)
        x = np.concatenate([x, *(halves * f for f in (1, 1 + 2.0**-11, 1 - 2.0**-12))]).astype(s)
    if s == np.float16:
        x = np.concatenate([x, np.float16([6e-8, -6e-8, 65504, 1e-6])]) if t.kind == "f" else x
    (got,) = run_op(provider, "Cast", [x], {"to": to_onnx(t)})
    np.testing.assert_array_equal(got, x.astype(t))
    assert got.dtype == t


def test_maximum_and_minimum_let_nan_win(provider: DeviceProvider) -> None:
    a, b, c = (reals(np.float32, seed=i) for i in range(3))
    agree(run_op(provider, "Max", [a, b, c])[0], np.maximum(np.maximum(a, b), c), 0, 0)
    agree(run_op(provider, "Min", [a, b, c])[0], np.minimum(np.minimum(a, b), c), 0, 0)
    agree(run_op(provider, "Mean", [a, b, c])[0], (a + b + c) / 3, 1e-6, 1e-6)


@pytest.mark.parametrize("bounds", [(-0.5, None), (None, 0.75), (-0.5, 0.75), (1.0, -1.0)])
@pytest.mark.parametrize("constant", [(), (1, 2)])
def test_clip(provider: DeviceProvider, bounds: tuple[float | None, ...], constant: tuple[int, ...]) -> None:
    x = reals(np.float32)
    given = [None if b is None else np.float32(b).reshape(()) for b in bounds]
    (got,) = run_op(provider, "Clip", [x, *given], constant=[i for i in constant if given[i - 1] is not None])
    want = x if bounds[0] is None else np.maximum(x, given[0])
    agree(got, want if bounds[1] is None else np.minimum(want, given[1]), 0, 0)


SHAPES = [
    [(), ()], [(), (1, 1)], [(1,), (7,)], [(5,), ()], [(3, 1), (1, 4)], [(2, 3, 4), (4,)], [(2, 3, 40), (3, 1)],
    [(2, 3, 4, 5), (3, 1, 5)], [(1, 6, 1, 9), (8, 1, 7, 1)], [(4, 0, 3), (1, 3)], [(0,), (1,)], [(3, 5000), (5000,)],
    [(2, 1, 3, 1, 2, 1, 2, 9), (1, 2, 1, 3, 2, 2, 1, 9)], [(2, 9, 3, 2, 17), (9, 1, 2, 1)], [(2, 20000), (2, 1)],
    [(1100, 3), (3,)],
]  # fmt: skip


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_broadcasting(provider: DeviceProvider, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in shapes)
    agree(run_op(provider, "Sub", [a, b])[0], np.asarray(a - b), 1e-6, 1e-6)
    agree(run_op(provider, "Sub", [b, a])[0], np.asarray(b - a), 1e-6, 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, np.uint8])
def test_where_of_any_type_broadcasts(provider: DeviceProvider, dtype: type) -> None:
    rng = np.random.default_rng(0)
    condition = rng.random((4, 1, 33)) > 0.5
    a, b = (rng.integers(0, 2 if dtype == np.bool_ else 99, s).astype(dtype) for s in ((5, 33), (1,)))
    (got,) = run_op(provider, "Where", [condition, a, b])
    agree(got, np.where(condition, a, b), 0, 0)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(provider: DeviceProvider, op: str) -> None:
    a, b = np.array([[True], [False]]), np.resize([True, False, False], 19)
    fn = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}[op]
    agree(run_op(provider, op, [a, b])[0], fn(a, b), 0, 0)
    agree(run_op(provider, "Not", [b])[0], ~b, 0, 0)


_CASES = [
    c
    for c in node_cases(
        ["PRelu", "Sum", "Mod", "CastLike", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Less", "Greater",
         "GreaterOrEqual", "Dropout", "Gelu", "Div"]
    )
    if not any(a is not None and a.dtype.kind in "VO" for a in (*c.inputs, *c.expected))
    and not any(f"_{t}" in c.name for t in ("uint16", "uint32", "uint64", "int16", "int8", "double", "FLOAT8"))
    and "training" not in c.name
]  # fmt: skip


@pytest.mark.parametrize("case", _CASES, ids=[c.name for c in _CASES])
def test_onnx_case(provider: DeviceProvider, case: Case) -> None:
    got = run_op(provider, case.op, case.inputs, case.attrs, outputs=len(case.expected))
    for value, want in zip(got, case.expected, strict=True):
        if want is not None:
            agree(value, want, max(case.rtol, 1e-6), case.atol)


def test_dropout_in_training_is_refused(provider: DeviceProvider) -> None:
    with pytest.raises(Refused, match="training"):
        run_op(provider, "Dropout", [np.ones(3, np.float32), np.float32(0.5), np.array(True)])
    y, mask = run_op(provider, "Dropout", [np.ones((5, 30), np.float32)], outputs=2)
    assert mask.all()
    assert (y == 1).all()


def test_bounds_that_are_no_numbers_are_refused(provider: DeviceProvider) -> None:
    with pytest.raises(Refused, match="bound 1 has 3 elements"):
        run_op(provider, "Clip", [np.ones(3, np.float32), np.ones(3, np.float32)])


@pytest.mark.parametrize("shift", [1, 3])
def test_tensors_begin_at_any_element(provider: DeviceProvider, shift: int) -> None:
    a, b = np.arange(45, dtype=np.float32).reshape(3, 15), np.arange(15, dtype=np.float32)
    node = node_for("Add", [a, b])
    graph = GraphView((node,), (), (node.outputs[0],))  # type: ignore[arg-type]
    (unit,) = provider.compile(graph)
    plan = unit.plan([Spec.of(a), Spec.of(b)])  # type: ignore[union-attr]
    stream = provider.stream()
    refs = []
    for content in (a, b, np.zeros(45, np.float32)):
        space = BufferRef(provider.driver.alloc(content.nbytes + 64), 0, content.nbytes + 64)
        provider.write(space, np.full(space.nbytes // 4, -7, np.float32), stream)
        refs.append(BufferRef(space.buffer, shift * 4, content.nbytes))
        provider.write(refs[-1], np.ascontiguousarray(content), stream)
    assert plan.bind is not None
    for step in plan.bind(refs).steps:
        step(stream)
    whole = np.empty(45 + 16, np.float32)
    provider.read(whole, BufferRef(refs[2].buffer, 0, whole.nbytes), stream)
    provider.synchronize(stream)
    np.testing.assert_array_equal(whole[shift : shift + 45].reshape(3, 15), a + b)
    assert (whole[:shift] == -7).all()
    assert (whole[shift + 45 :] == -7).all()


def test_collapse_merges_what_all_operands_walk_alike() -> None:
    def walk(shape: tuple[int, ...], *operands: tuple[int, ...]) -> tuple[list[int], list[tuple[int, ...]]]:
        return collapse(shape, [Ref(Spec(np.dtype(np.float32), dims), Operand("in")) for dims in operands])

    assert walk((2, 3, 4), (2, 3, 4), (2, 3, 4)) == ([24], [(1,), (1,)])
    assert walk((2, 3, 4), (2, 3, 4), (4,)) == ([6, 4], [(4, 1), (0, 1)])
    assert walk((2, 3, 4), (2, 3, 4), (3, 1)) == ([2, 3, 4], [(12, 4, 1), (0, 1, 0)])
    assert walk((1, 3, 1, 4), (3, 1, 1), (1, 4)) == ([3, 4], [(1, 0), (0, 1)])
    assert walk((1, 1), (1,), ()) == ([1], [(0,), (0,)])
    part = Strided(Spec(np.dtype(np.float32), (2, 3, 4)), Operand("in"), 5, (24, 8, 1))
    assert collapse((2, 3, 4), [part]) == ([6, 4], [(8, 1)])
