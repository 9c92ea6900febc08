"""Quantized models as exporters write them, with floats in between: integer operators where a provider wants them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from conftest import make_model
from optimizing import n, optimized

import gpurt
from gpurt import registry
from gpurt.provider import Device
from gpurt_cpu import CpuProvider

RNG = np.random.default_rng(2)
STEP = np.float32(0.05)


@pytest.fixture
def integral():
    """A provider like cpu that prefers integer operators."""

    class Integral(CpuProvider):
        name = "integral"
        prefers_integers = frozenset({"Conv", "Gemm", "MatMul", "AveragePool"}) | CpuProvider.prefers_integers

        def __init__(self, *args):
            super().__init__(*args)
            self.device = "integral:0"

        @classmethod
        def probe(cls):
            return [Device("integral:0", "NumPy, with a taste for integers")]

    registry.register(Integral)
    yield
    registry.unregister("integral")


class Quantized:
    """Writes the QDQ form: every operand dequantized, the result quantized and, for the graph's output, dequantized."""

    def __init__(self, kind=np.uint8):
        self.kind, self.nodes, self.constants = np.dtype(kind), [], {}

    def const(self, value, dtype):
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def conversion(self, op_type, x, scale, zero, dtype, **attrs):
        made = f"v{len(self.nodes)}"
        ins = [x, self.const(scale, np.float32), *([] if zero is None else [self.const(zero, dtype)])]
        self.nodes.append(n(op_type, ins, [made], made, **attrs))
        return made

    def feed(self, x, scale=0.02, zero=None):
        """A graph input of floats, quantized and dequantized."""
        zero = (128 if self.kind == np.uint8 else 3) if zero is None else zero
        q = self.conversion("QuantizeLinear", x, scale, zero, self.kind)
        return self.conversion("DequantizeLinear", q, scale, zero, self.kind)

    def weights(self, array, scale, zero=None, axis=None, dtype=np.int8):
        attrs = {} if axis is None else {"axis": axis}
        return self.conversion("DequantizeLinear", self.const(array, dtype), scale, zero, dtype, **attrs)

    def node(self, op_type, *ins, **attrs):
        made = f"v{len(self.nodes)}"
        self.nodes.append(n(op_type, list(ins), [made], made, **attrs))
        return made

    def result(self, x, scale=STEP, zero=None):
        zero = (128 if self.kind == np.uint8 else -2) if zero is None else zero
        q = self.conversion("QuantizeLinear", x, scale, zero, self.kind)
        self.nodes.append(n("DequantizeLinear", [q, self.const(scale, np.float32), self.const(zero, self.kind)], ["y"]))

    def model(self, shape):
        return make_model(self.nodes, {"x": (onnx.TensorProto.FLOAT, shape)}, ["y"], self.constants)


def ints(*shape, low=-90, high=90):
    return RNG.integers(low, high, shape)


def convolution(form="sums", per_filter=True, kind=np.uint8, **attrs):
    w = Quantized(kind)
    x = w.feed("x")
    scale = RNG.uniform(0.005, 0.01, 6).astype(np.float32) if per_filter else np.float32(0.008)
    zero = np.zeros(6, np.int8) if per_filter else np.int8(0)
    ins = [x, w.weights(ints(6, 4, 3, 3), scale, zero, 0 if per_filter else None)]
    if form == "sums":
        ins.append(w.weights(ints(6, low=-500, high=500), np.float32(0.02) * scale, None, 0 if per_filter else None,
                             np.int32))  # fmt: skip
    elif form == "floats":
        ins.append(w.const(RNG.standard_normal(6), np.float32))
    w.result(w.node("Conv", *ins, pads=[1, 1, 1, 1], **attrs))
    return w.model([2, 4, 9, 8])


def matmul(per_column=True, rank=2):
    w = Quantized()
    scale = RNG.uniform(0.005, 0.01, 5).astype(np.float32) if per_column else np.float32(0.008)
    b = ints(7, 5) if rank == 2 else ints(2, 7, 5)
    columns = w.weights(b, scale, np.zeros(np.shape(scale), np.int8), 1 if per_column else None)
    w.result(w.node("MatMul", w.feed("x"), columns))
    return w.model([2, 3, 7])


def gemm(form="sums", **attrs):
    w = Quantized(np.int8)
    ins = [w.feed("x"), w.weights(ints(5, 7), 0.008, 0)]
    if form == "sums":
        ins.append(w.weights(ints(5, low=-500, high=500), np.float32(0.02) * np.float32(0.008), 0, None, np.int32))
    w.result(w.node("Gemm", *ins, transB=1, **attrs))
    return w.model([4, 7])


def unary(op_type, **attrs):
    w = Quantized()
    w.result(w.node(op_type, w.feed("x"), **attrs))
    return w.model([1, 3, 6, 6])


def binary(op_type):
    w = Quantized()
    x = w.feed("x")
    w.result(w.node(op_type, x, w.weights(ints(3, 1, 1, low=0, high=255), 0.01, 120, None, np.uint8)))
    return w.model([1, 3, 6, 6])


FUSED = {
    "conv, scales of filters": (convolution(), "QLinearConv"),
    "conv, one scale": (convolution(per_filter=False), "QLinearConv"),
    "conv without bias": (convolution("none"), "QLinearConv"),
    "conv, bias of floats": (convolution("floats"), "QLinearConv"),
    "conv, signed, strided": (convolution(kind=np.int8, strides=[2, 2]), "QLinearConv"),
    "matmul, scales of columns": (matmul(), "QLinearMatMul"),
    "matmul, one scale": (matmul(per_column=False), "QLinearMatMul"),
    "matmul, batches": (matmul(per_column=False, rank=3), "QLinearMatMul"),
    "gemm": (gemm(), "QGemm"),
    "gemm without bias": (gemm("none"), "QGemm"),
    "add": (binary("Add"), "QLinearAdd"),
    "mul": (binary("Mul"), "QLinearMul"),
    "sigmoid": (unary("Sigmoid"), "QLinearSigmoid"),
    "leaky": (unary("LeakyRelu", alpha=0.2), "QLinearLeakyRelu"),
    "average": (unary("GlobalAveragePool"), "QLinearGlobalAveragePool"),
    "pool": (unary("AveragePool", kernel_shape=[2, 2]), "QLinearAveragePool"),
}


FLOATS = {"Add", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid"}


def run(model, providers, **options):
    session = gpurt.InferenceSession(model, gpurt.SessionOptions(**options), providers=providers)
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return session.run(None, {"x": x})[0], [r["op_type"] for r in session.explain().to_dict()["nodes"]]


@pytest.mark.parametrize("case", FUSED)
def test_integer_operators_where_they_are_preferred(integral, case):
    model, operator = FUSED[case]
    got, operators = run(model, ["integral", "cpu"])
    assert any(o.endswith(operator) for o in operators)
    assert sum(o in ("DequantizeLinear", "QuantizeLinear") for o in operators) <= 2  # at the graph's ends
    assert not {"Conv", "Gemm", "MatMul", *FLOATS} & set(operators)
    want, _ = run(model, ["cpu"], graph_optimization_level="disable_all")
    assert np.abs(got - want).max() <= STEP * 1.01  # where rounding decides, the next number
    assert np.mean(np.abs(got - want) > STEP / 2) < 0.02


@pytest.mark.parametrize("case", FUSED)
def test_floats_where_they_are_faster(case):
    model, operator = FUSED[case]
    assert operator not in optimized(model)[0]  # for no provider in particular
    wanted = operator.removeprefix("QLinear") in CpuProvider.prefers_integers
    assert (operator in run(model, ["cpu"])[1]) == wanted


def _other_units():
    w = Quantized()
    ins = [w.feed("x"), w.weights(ints(6, 4, 3, 3), 0.008, 0), w.weights(ints(6), 0.1, 0, None, np.int32)]
    w.result(w.node("Conv", *ins))
    return w.model([1, 4, 9, 8])


def _channels():
    w = Quantized()
    ins = [w.feed("x"), w.weights(ints(6, 4, 3, 3), np.full(4, 0.008), np.zeros(4), 1)]
    w.result(w.node("Conv", *ins))
    return w.model([1, 4, 9, 8])


def _sixteen_bits():
    w = Quantized(np.uint16)
    w.result(w.node("MatMul", w.feed("x", zero=30000), w.weights(ints(7, 5), 0.008, 0)), zero=30000)
    return w.model([3, 7])


def _rows():
    w = Quantized()
    w.result(w.node("MatMul", w.feed("x"), w.weights(ints(7, 5), np.full(7, 0.008), np.zeros(7), 0)))
    return w.model([3, 7])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_other_units(), "units of the sums"),
        (_channels(), "scale differs along an axis"),
        (_rows(), "scale differs along an axis"),
        (_sixteen_bits(), "not of bytes"),
        (gemm(alpha=0.5), "factors of its own"),
    ],
)
def test_what_an_integer_operator_cannot_say_stays(integral, model, reason):
    options = gpurt.SessionOptions()
    session = gpurt.InferenceSession(model, options, providers=["integral", "cpu"])
    report = session.explain().to_dict()
    assert not any("QLinear" in r["op_type"] or "QGemm" in r["op_type"] for r in report["nodes"])
    assert any(reason in miss["reason"] for miss in report["near_misses"])
    want, _ = run(model, ["cpu"], graph_optimization_level="disable_all")
    np.testing.assert_allclose(run(model, ["integral", "cpu"])[0], want, atol=1e-4)


def test_a_value_that_others_read_keeps_its_conversion(integral):
    w = Quantized()
    x = w.feed("x")
    w.result(w.node("MatMul", x, w.weights(ints(7, 5), 0.008, 0)))
    w.nodes.append(n("Neg", [x], ["z"]))
    model = make_model(w.nodes, {"x": (onnx.TensorProto.FLOAT, [3, 7])}, ["y", "z"], w.constants)
    operators = run(model, ["integral", "cpu"])[1]
    assert "QLinearMatMul" in operators
    assert "Neg" in operators
