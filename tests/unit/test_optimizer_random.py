"""Any graph, any level: the optimized model gives what the model as it is gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from conftest import make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from optimizing import n, optimized, same_values

from gpurt.optimizer import optimize
from gpurt.options import GraphOptimizationLevel

LEVELS = ("basic", "extended", "layout", "all")
F32 = TensorProto.FLOAT


class Graph:
    """A graph that grows: every value has a known shape, so that every node fits."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def numbers(self, *shape: int) -> str:
        # Zeros and ones now and then: what makes identities out of operators.
        made = {"random": self.rng.uniform(0.5, 2, shape), "zero": np.zeros(shape), "one": np.ones(shape)}
        return self.constant(made[self.draw(st.sampled_from(sorted(made)))])

    def add(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attrs: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(n(op_type, inputs, [name], f"n{len(self.nodes)}", **attrs))
        self.shapes[name] = shape
        return name

    def value(self, rank: int | None = None) -> str | None:
        fitting = [v for v, s in self.shapes.items() if rank is None or len(s) == rank]
        # The newest half of the time, for chains that rules can find.
        return self.draw(st.sampled_from([fitting[-1], *fitting])) if fitting else None


def unary(g: Graph) -> None:
    x = g.value()
    g.add(g.draw(st.sampled_from(["Relu", "Neg", "Identity", "Sigmoid", "Dropout", "Abs"])), [x], g.shapes[x])


def clip(g: Graph) -> None:
    x = g.value()
    low, high = sorted(g.draw(st.tuples(st.sampled_from([-1.0, 0.0, 0.5]), st.sampled_from([-0.5, 0.25, 6.0]))))
    g.add("Clip", [x, g.constant(low), g.constant(high)], g.shapes[x])


def with_constant(g: Graph) -> None:
    x = g.value()
    shape = g.shapes[x]
    kept = [d if g.draw(st.booleans()) else 1 for d in shape[g.draw(st.integers(0, len(shape))) :]]
    k = g.numbers(*kept)
    op = g.draw(st.sampled_from(["Add", "Mul", "Sub", "Add", "Mul"]))
    g.add(op, [x, k] if g.draw(st.booleans()) else [k, x], shape)


def binary(g: Graph) -> None:
    x = g.value()
    same = [v for v, s in g.shapes.items() if s == g.shapes[x]]
    g.add(g.draw(st.sampled_from(["Add", "Mul", "Max", "Sum"])), [x, g.draw(st.sampled_from(same))], g.shapes[x])


def transpose(g: Graph) -> None:
    x = g.value()
    perm = g.draw(st.permutations(range(len(g.shapes[x]))))
    g.add("Transpose", [x], tuple(g.shapes[x][p] for p in perm), perm=perm)


def reshape(g: Graph) -> None:
    x = g.value()
    shape = g.shapes[x]
    size = int(np.prod(shape))
    kind = g.draw(st.sampled_from(["flat", "same", "split", "unsqueeze", "shape"]))
    if kind == "unsqueeze" and len(shape) < 5:
        axis = g.draw(st.integers(-len(shape) - 1, len(shape)))
        at = axis + len(shape) + 1 if axis < 0 else axis
        g.add("Unsqueeze", [x, g.constant([axis], np.int64)], (*shape[:at], 1, *shape[at:]))
    elif kind == "shape":
        made = g.add("Shape", [x], (len(shape),))
        del g.shapes[made]  # it is no float
        g.add("Reshape", [x, made], shape)
    else:
        flat, split = [-1, shape[-1]] if shape else [1], [2, -1] if size % 2 == 0 else [1, -1]
        target = {"flat": flat, "split": split}.get(kind, list(shape))
        known = int(np.prod([t for t in target if t != -1]))
        g.add("Reshape", [x, g.constant(target, np.int64)], tuple(size // known if t == -1 else t for t in target))


def conv(g: Graph) -> None:
    x = g.value(4)
    if x is None or min(g.shapes[x][2:]) < 1:
        return
    batch, channels, *space = g.shapes[x]
    out = g.draw(st.integers(1, 3))
    w = g.constant(g.rng.uniform(-1, 1, (out, channels, 3, 3)))
    bias = [g.numbers(out)] if g.draw(st.booleans()) else []
    y = g.add("Conv", [x, w, *bias], (batch, out, *space), pads=[1, 1, 1, 1])
    if g.draw(st.booleans()):
        parameters = [g.constant(g.rng.uniform(0.5, 1.5, out)) for _ in range(4)]
        g.add("BatchNormalization", [y, *parameters], g.shapes[y])
    else:
        k = g.numbers(*g.draw(st.sampled_from([(), (1,), (out, 1, 1), (1, out, 1, 1), (1, 1, 1)])))
        g.add(g.draw(st.sampled_from(["Add", "Mul"])), [y, k], g.shapes[y])


def matmul(g: Graph) -> None:
    x = g.value(2)
    if x is None:
        return
    rows, inner = g.shapes[x]
    w = g.constant(g.rng.uniform(-1, 1, (inner, 3)))
    y = g.add(g.draw(st.sampled_from(["MatMul", "Gemm"])), [x, w], (rows, 3))
    k = g.numbers(*g.draw(st.sampled_from([(3,), (1, 3), (rows, 1), (1,)])))
    g.add(g.draw(st.sampled_from(["Add", "Mul"])), [y, k], (rows, 3))


def slice_all(g: Graph) -> None:
    x = g.value()
    if not g.shapes[x]:
        return
    size = g.shapes[x][0]
    end = g.draw(st.sampled_from([size, 2**31 - 1, max(size - 1, 1)]))
    limits = [g.constant([i], np.int64) for i in (0, end, 0)]
    g.add("Slice", [x, *limits], (min(end, size), *g.shapes[x][1:]))


def quantize(g: Graph) -> None:
    x = g.value()
    s, z = g.constant(g.draw(st.sampled_from([0.05, 0.1]))), g.constant(3, np.uint8)
    q = g.add("QuantizeLinear", [x, s, z], g.shapes[x])
    del g.shapes[q]
    g.add("DequantizeLinear", [q, s, z], tuple(g.shapes[x]))


def formula(g: Graph) -> None:
    """What level extended makes one operator of, whole or with something else in it."""
    x = g.value()
    shape = g.shapes[x]
    other = g.draw(st.sampled_from([x, x, *[v for v, s in g.shapes.items() if s == shape]]))
    match g.draw(st.sampled_from(["Sigmoid", "HardSigmoid", "Erf", "LayerNorm"])):
        case "Erf":
            erf = g.add("Erf", [g.add("Div", [other, g.constant(1.4142135)], shape)], shape)
            bell = g.add("Add", [erf, g.constant(1)], shape)
            g.add("Mul", [g.add("Mul", [x, bell], shape), g.constant(0.5)], shape)
        case "LayerNorm":
            if shape:
                axes = g.constant([-1], np.int64)
                mean = g.add("ReduceMean", [other, axes], (*shape[:-1], 1))
                centered = g.add("Sub", [x, mean], shape)
                square = g.add("Mul", [centered, centered], shape)
                variance = g.add("ReduceMean", [square, axes], (*shape[:-1], 1))
                root = g.add("Sqrt", [g.add("Add", [variance, g.constant(0.1)], (*shape[:-1], 1))], (*shape[:-1], 1))
                scaled = g.add("Mul", [g.add("Div", [centered, root], shape), g.numbers(shape[-1])], shape)
                g.add("Add", [scaled, g.numbers(shape[-1])], shape)
        case gate:
            attrs = {"alpha": 1 / 6, "beta": 0.5} if gate == "HardSigmoid" else {}
            g.add("Mul", [x, g.add(gate, [other], shape, **attrs)], shape)


STEPS = (unary, clip, with_constant, with_constant, binary, transpose, reshape, conv, matmul, slice_all, formula)


@st.composite
def models(draw: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    g = Graph(draw)
    inputs = {"x": (2, 3, 4, 4), "u": (4, 6)}
    g.shapes.update(inputs)
    for _ in range(draw(st.integers(1, 12))):
        draw(st.sampled_from(STEPS))(g)
    # Quantization amplifies a last bit that differs to a whole step, so it comes after everything else, once.
    if draw(st.booleans()):
        moves = {"Transpose", "Reshape", "Unsqueeze", "Shape", "Slice"}
        exact = moves | {"Relu", "Neg", "Identity", "Dropout", "Abs", "Clip"}
        if all(node.op_type in exact for node in g.nodes):
            quantize(g)
    if not g.nodes:
        unary(g)
    made = [v for v in g.shapes if v not in inputs]
    outputs = sorted({made[-1], *draw(st.lists(st.sampled_from(made), max_size=2))})
    dynamic = draw(st.booleans())
    given_inputs = {k: (F32, [f"{k}0", *s[1:]] if dynamic else list(s)) for k, s in inputs.items()}
    model = make_model(g.nodes, given_inputs, outputs, g.constants)
    feeds = {k: g.rng.uniform(-2, 2, s).astype(np.float32) for k, s in inputs.items()}
    return model, feeds


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models(), st.sampled_from(LEVELS))
def test_values_stay(case: Any, level: str) -> None:
    model, feeds = case
    same_values(model, feeds, level=level)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models())
def test_optimizing_twice_changes_nothing_more(case: Any) -> None:
    ops, report, model = optimized(case[0])
    assert report.rounds < 10
    again = optimize(model, GraphOptimizationLevel.ORT_ENABLE_ALL, lambda *_: None)
    assert [node.op_type for node in model.graph] == ops
    assert not again.removed
