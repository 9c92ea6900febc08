"""Which elementwise operators run as steps of a chain, and how each writes into memory that it is given."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from gpurt.graph.view import NodeView, ValueView
from gpurt_cpu.blockwise import Compute, Step
from gpurt_cpu.ops import lookup
from gpurt_cpu.ops.elementwise import ERF, horner
from gpurt_cpu.ops.table import Array

_UNARY: Final[dict[str, np.ufunc]] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Exp": np.exp,
    "Floor": np.floor,
    "Log": np.log,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    "Round": np.rint,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
}
_BINARY: Final[dict[str, np.ufunc]] = {
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Sub": np.subtract,
    "Sum": np.add,
}
# Their kernels make temporaries, which are as small as a block here.
_BY_KERNEL: Final = frozenset(
    [
        "Celu",
        "Elu",
        "Erf",
        "Gelu",
        "HardSwish",
        "LeakyRelu",
        "Mish",
        "PRelu",
        "Selu",
        "Softplus",
        "Softsign",
        "Swish",
        "ThresholdedRelu",
    ]
)
_ZERO: Final = np.zeros((), np.float32)
_ONE: Final = np.ones((), np.float32)
_HALF: Final = np.full((), 1 / 2, np.float32)
_INFINITE: Final = np.full((), np.inf, np.float32)

# erf(x / sqrt(2)) = tanh(x P(x^2)); and what Gelu's approximation has in that place.
_GELU: Final = tuple(np.float32(c / (math.sqrt(2) * 2**k)) for k, c in reversed(list(enumerate(reversed(ERF)))))
_GELU_TANH: Final = tuple(np.float32(c * math.sqrt(2 / math.pi)) for c in (0.044715, 1.0))

X: Final = -1
"""The input of a program."""

Program = Sequence[tuple[Compute, tuple[int, ...]]]
"""Computations in order, each with its arguments: results of earlier ones by number, or the input."""


def compute_for(node: NodeView) -> tuple[Compute, int] | None:
    """How a node of float32 arrays computes, and how many of its inputs it reads; None if it is no step of a chain.

    Nodes of Max, Min and Sum with more than two inputs are computed two by two.
    """
    if node.domain or any(v is not None and v.dtype != np.float32 for v in (*node.inputs, *node.outputs)):
        return None
    kind = node.op_type
    if kind in _UNARY:
        return partial(_unary, _UNARY[kind]), 1
    if kind in _BINARY and len(node.inputs) >= 2:
        return partial(_binary, _BINARY[kind]), len(node.inputs)
    if kind == "Relu":
        return partial(_bounded, _ZERO, _INFINITE), 1  # faster than maximum
    if kind == "Sigmoid":
        return _sigmoid, 1
    if kind == "HardSigmoid":
        alpha, beta = np.float32(node.attr("alpha", 0.2)), np.float32(node.attr("beta", 0.5))
        return partial(_hard_sigmoid, alpha, beta, _ONE), 1
    if kind == "Clip":
        return _clip(node)
    if kind == "Pow":
        return _power(node)
    kernel = lookup("", kind) if kind in _BY_KERNEL else None
    if kernel is None:
        return None
    return partial(_kernel, partial(kernel.fn, **node.attrs)), len(node.inputs)


def program_for(node: NodeView) -> Program | None:
    """A function of one input that is more than one pass over memory, as steps whose intermediates are scratch."""
    kind = node.op_type
    if kind == "HardSwish":
        return ((partial(_hard_sigmoid, np.float32(1 / 6), _HALF, _ONE), (X,)), (_times, (X, 0)))
    if kind == "Swish" and node.attr("alpha", 1.0) == 1:
        return ((_sigmoid, (X,)), (_times, (X, 0)))
    if kind == "Erf":
        return ((_square, (X,)), (partial(_polynomial, ERF), (0,)), (_tanh_of_product, (1, X)))
    if kind == "Gelu" and node.attr("approximate", "none") == "none":
        return ((_square, (X,)), (partial(_polynomial, _GELU), (0,)), (_gate_of_product, (1, X)), (_times, (X, 2)))
    if kind == "Gelu":
        return ((_square, (X,)), (partial(_polynomial, _GELU_TANH), (0,)), (_gate_of_product, (1, X)), (_times, (X, 2)))
    return None


def constant(node: NodeView, position: int) -> Array | None:
    """Content of an input that is an initializer, or None."""
    value: ValueView | None = node.inputs[position] if position < len(node.inputs) else None
    return None if value is None else value.const


def _clip(node: NodeView) -> tuple[Compute, int] | None:
    bounds: list[Array | None] = []
    for position in (1, 2):
        given = position < len(node.inputs) and node.inputs[position] is not None
        content = constant(node, position)
        if given and (content is None or content.size != 1):
            return None
        bounds.append(None if content is None else content.reshape(()))
    return partial(_bounded, bounds[0], bounds[1]), 1


def _power(node: NodeView) -> tuple[Compute, int] | None:
    exponent = constant(node, 1)
    if exponent is None or exponent.size != 1 or exponent.ndim > (_rank(node.inputs[0]) or 0):
        return None
    ufunc = {2.0: np.square, 0.5: np.sqrt, 1.0: np.positive, -1.0: np.reciprocal}.get(float(exponent.reshape(())))
    return None if ufunc is None else (partial(_unary, ufunc), 1)


def _rank(value: ValueView | None) -> int | None:
    return None if value is None else value.rank


def _unary(ufunc: np.ufunc, args: Sequence[Array], out: Array) -> None:
    ufunc(args[0], out=out)


def _binary(ufunc: np.ufunc, args: Sequence[Array], out: Array) -> None:
    ufunc(args[0], args[1], out=out)


def _bounded(low: Array | None, high: Array | None, args: Sequence[Array], out: Array) -> None:
    x = args[0]
    if low is not None and high is not None:
        np.clip(x, low, high, out=out)
        return
    if low is not None:
        x = np.maximum(x, low, out=out)
    if high is not None:
        x = np.minimum(x, high, out=out)
    if x is not out:
        np.copyto(out, x)


def _sigmoid(args: Sequence[Array], out: Array) -> None:
    np.negative(args[0], out=out)
    np.exp(out, out=out)
    np.add(out, _ONE, out=out)
    np.reciprocal(out, out=out)


def _hard_sigmoid(alpha: Any, beta: Any, high: Any, args: Sequence[Array], out: Array) -> None:
    np.multiply(args[0], alpha, out=out)
    np.add(out, beta, out=out)
    np.clip(out, _ZERO, high, out=out)


def _times_plus(args: Sequence[Array], out: Array) -> None:
    np.multiply(args[0], args[1], out=out)
    np.add(out, args[2], out=out)


def with_scaled_gates(steps: Sequence[Step], constants: Mapping[int, Array]) -> list[Step]:
    """The steps, with a positive number that the product with a hard sigmoid is multiplied by in that sigmoid."""
    readers = Counter(a for s in steps for a in s.args)
    made = {s.result: i for i, s in enumerate(steps)}
    out = list(steps)
    gone: set[int] = set()
    for i, scale in enumerate(steps):
        at = made.get(scale.args[0])
        if scale.compute is not affine or at is None or out[at].compute is not _times:
            continue
        x, gate = out[at].args
        source = made.get(gate)
        factor, shift = (constants.get(a) for a in scale.args[1:])
        if source is None or readers[gate] > 1 or readers[scale.args[0]] > 1 or factor is None or shift is None:
            continue
        compute = out[source].compute
        positive = factor.size == 1 and factor.reshape(-1)[0] > 0
        if not positive or not isinstance(compute, partial) or compute.func is not _hard_sigmoid:
            continue
        by = factor.reshape(())
        alpha, beta, high = (np.float32(c * by) for c in compute.args)
        inner = partial(_hard_sigmoid, alpha, beta, high)
        out[source] = replace(out[source], compute=inner)
        out[i] = replace(scale, compute=_times_plus, args=(x, gate, scale.args[2]))
        gone.add(at)
    return [s for i, s in enumerate(out) if i not in gone]


def _square(args: Sequence[Array], out: Array) -> None:
    np.square(args[0], out=out)


def _times(args: Sequence[Array], out: Array) -> None:
    np.multiply(args[0], args[1], out=out)


def _polynomial(coefficients: Sequence[np.float32], args: Sequence[Array], out: Array) -> None:
    horner(args[0], out, coefficients)


def _tanh_of_product(args: Sequence[Array], out: Array) -> None:
    np.multiply(args[0], args[1], out=out)
    np.tanh(out, out=out)


def _gate_of_product(args: Sequence[Array], out: Array) -> None:
    """``(1 + tanh(a b)) / 2``."""
    _tanh_of_product(args, out)
    np.multiply(out, _HALF, out=out)
    np.add(out, _HALF, out=out)


def affine(args: Sequence[Array], out: Array) -> None:
    """``x * scale + shift``."""
    np.multiply(args[0], args[1], out=out)
    np.add(out, args[2], out=out)


def _kernel(fn: Callable[..., Any], args: Sequence[Array], out: Array) -> None:
    np.copyto(out, fn(*args))
