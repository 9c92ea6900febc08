"""Transpose, Slice and Split before elementwise nodes: those read the parts where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sessions import GREEDY, f, kernels, model, n

import gpurt
from gpurt.device.provider import DeviceProvider


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


HALVES = n("Split", ["x"], ["a", "b"], axis=-1, num_outputs=2)
PART = n("Slice", ["x", "from", "to", "axes"], ["a"])

FOLDED: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "a gated linear unit": (
        [HALVES, n("Sigmoid", ["b"], ["c"]), n("Mul", ["a", "c"], ["y"])],
        {"x": f(3, 7, 90)},
        {},
    ),
    "halves of channels": (
        [n("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), n("Tanh", ["a"], ["c"]), n("Mul", ["b", "c"], ["y"])],
        {"x": f(2, 6, 5, 9)},
        {},
    ),
    "every second row from behind": (
        [n("Slice", ["x", "from", "to", "axes", "by"], ["a"]), n("Mul", ["a", "s"], ["b"]), n("Exp", ["b"], ["y"])],
        {"x": f(2, 9, 33), "s": f(2, 1, 1)},
        {"from": ints(-1), "to": ints(-10), "axes": ints(1), "by": ints(-2)},
    ),
    "heads": (
        [n("Transpose", ["x"], ["a"], perm=[0, 2, 1, 3]), n("Mul", ["a", "s"], ["y"])],
        {"x": f(2, 9, 3, 37)},
        {"s": f(3, 1, 37)},
    ),
    "a part, transposed": (
        [n("Slice", ["x", "from", "to", "axes"], ["t"]), n("Transpose", ["t"], ["a"], perm=[1, 0, 2]),
         n("Add", ["a", "a"], ["b"]), n("Neg", ["b"], ["y"])],
        {"x": f(4, 5, 40)},
        {"from": ints(3), "to": ints(31), "axes": ints(2)},
    ),
    "a whole and a part of it": (
        [PART, n("Add", ["a", "x"], ["y"])],
        {"x": f(6, 32)},
        {"from": ints(2), "to": ints(3), "axes": ints(0)},
    ),
    "softmax of a scaled part": (
        [PART, n("Mul", ["a", "k"], ["b"]), n("Softmax", ["b"], ["y"])],
        {"x": f(5, 6, 90)},
        {"from": ints(7), "to": ints(60), "axes": ints(2), "k": np.float32(0.5)},
    ),
    "the sum of products of halves": (
        [HALVES, n("Mul", ["a", "b"], ["c"]), n("ReduceSum", ["c", "last"], ["y"])],
        {"x": f(5, 90)},
        {"last": ints(-1)},
    ),
    "columns of a part": (
        [PART, n("Abs", ["a"], ["b"]), n("ReduceMax", ["b", "rows"], ["y"])],
        {"x": f(3, 20, 90)},
        {"from": ints(7), "to": ints(60), "axes": ints(2), "rows": ints(1)},
    ),
    "a normalised sum of halves that others read": (
        [HALVES, n("Add", ["a", "b"], ["c"]), n("LayerNormalization", ["c", "s"], ["d"]), n("Mul", ["d", "a"], ["e"]),
         n("Add", ["e", "c"], ["y"])],
        {"x": f(4, 5, 90)},
        {"s": f(45)},
    ),
    "a part behind a product": (
        [PART, n("MatMul", ["z", "w"], ["b"]), n("Mul", ["b", "a"], ["y"])],
        {"x": f(6, 90), "z": f(6, 20)},
        {"from": ints(7), "to": ints(60), "axes": ints(1), "w": f(20, 53)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDED)
def test_parts_are_read_where_they_are(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = FOLDED[case]
    assert len(kernels(provider, model(nodes, inputs, constants), inputs)) == 1


COPIED: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "a matrix, transposed": (
        [n("Transpose", ["x"], ["a"], perm=[1, 0]), n("Exp", ["a"], ["y"])],
        {"x": f(40, 40)},
        {},
    ),
    "short rows": (
        [PART, n("Exp", ["a"], ["y"])],
        {"x": f(40, 6)},
        {"from": ints(1), "to": ints(4), "axes": ints(1)},
    ),
    "one column": (
        [PART, n("Exp", ["a"], ["y"])],
        {"x": f(40, 6)},
        {"from": ints(1), "to": ints(2), "axes": ints(1)},
    ),
}


@pytest.mark.parametrize("case", COPIED)
def test_what_lies_too_far_apart_is_brought_in_order_first(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = COPIED[case]
    assert len(kernels(provider, model(nodes, inputs, constants), inputs)) == 2


def test_a_part_that_others_read_is_a_value_of_its_own(provider: DeviceProvider) -> None:
    inputs = {"x": f(5, 90)}
    nodes = [HALVES, n("Mul", ["a", "b"], ["y"]), n("ReduceMax", ["b"], ["z"])]
    assert len(kernels(provider, model(nodes, inputs, {}, ("y", "z")), inputs)) == 4


@pytest.mark.parametrize("shape", [(0, 90), (1, 90), (7, 0)])
def test_few_elements(provider: DeviceProvider, shape: tuple[int, ...]) -> None:
    inputs = {"x": f(*shape)}
    kernels(provider, model([HALVES, n("Mul", ["a", "b"], ["y"])], inputs, {}), inputs)


def test_shapes_may_change_between_runs(provider: DeviceProvider) -> None:
    proto = model([HALVES, n("Sigmoid", ["b"], ["c"]), n("Mul", ["a", "c"], ["y"])], {"x": f(3, 90)}, {})
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    options = {"kernel_class": provider.info.kernel_class}
    session = gpurt.InferenceSession(proto, GREEDY, providers=[("opencl", options), "cpu"])
    for rows in (3, 1, 50, 3):
        x = f(rows, 90)
        want = x[:, :45] / (1 + np.exp(-x[:, 45:]))
        np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-5, atol=1e-6)


def test_a_part_behind_a_product_that_is_joined_is_a_value_of_its_own(provider: DeviceProvider) -> None:
    inputs = {"x": f(6, 90), "z": f(6, 20)}
    nodes = [PART, n("MatMul", ["z", "w"], ["b"]), n("Mul", ["b", "a"], ["c"]), n("Relu", ["z"], ["d"]),
             n("Concat", ["c", "d"], ["y"], axis=1)]  # fmt: skip
    constants = {"from": ints(7), "to": ints(60), "axes": ints(1), "w": f(20, 53)}
    kernels(provider, model(nodes, inputs, constants), inputs)
