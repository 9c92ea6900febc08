"""BatchNormalization takes in what scales or shifts its channels, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from optimizing import model_of, n, optimized, same_values

from gpurt.options import GraphOptimizationLevel

RNG = np.random.default_rng(6)


def drawn(*shape: int) -> np.ndarray:
    return (RNG.random(shape) + 0.5).astype(np.float32)


NORM = n("BatchNormalization", ["x", "s", "b", "m", "v"], ["a"], "norm")
WEIGHTS = {name: drawn(6) for name in "sbmv"}


def operators(nodes: list, weights: dict[str, np.ndarray], **fed: np.ndarray) -> list[str]:
    """What is left of a model at level basic, which gives the same values."""
    inputs = {"x": drawn(2, 6, 5, 4), **fed}
    model = model_of(nodes, inputs, weights)
    same_values(model, inputs)
    return optimized(model, GraphOptimizationLevel.ORT_ENABLE_BASIC)[0]


@pytest.mark.parametrize("op_type", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), ()])
def test_a_constant_for_each_channel(op_type: str, shape: tuple[int, ...]) -> None:
    nodes = [NORM, n(op_type, ["a", "c"], ["y"])]
    assert operators(nodes, {**WEIGHTS, "c": drawn(*shape)}) == ["BatchNormalization"]


def test_a_chain_as_caffe_s_scale_layers_leave_it() -> None:
    nodes = [NORM, n("Mul", ["a", "c"], ["p"]), n("Add", ["d", "p"], ["q"]), n("Relu", ["q"], ["y"])]
    assert operators(nodes, {**WEIGHTS, "c": drawn(6, 1, 1), "d": drawn(6, 1, 1)}) == ["BatchNormalization", "Relu"]


@pytest.mark.parametrize(
    ("op_type", "operands", "c"),
    [
        ("Mul", ["a", "c"], drawn(5, 4)),
        ("Add", ["a", "c"], drawn(4)),
        ("Div", ["a", "c"], np.zeros((6, 1, 1), np.float32)),
        ("Div", ["c", "a"], drawn(6, 1, 1)),
        ("Sub", ["c", "a"], drawn(6, 1, 1)),
        ("Mul", ["a", "c"], np.full((6, 1, 1), 3e38, np.float32)),
        ("Add", ["a", "c"], drawn(1, 1, 6, 1, 1)),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow", "ignore:invalid value")
def test_what_is_no_constant_for_each_channel_stays(op_type: str, operands: list[str], c: np.ndarray) -> None:
    assert operators([NORM, n(op_type, operands, ["y"])], {**WEIGHTS, "c": c}) == ["BatchNormalization", op_type]


def test_a_normalization_that_others_read_stays() -> None:
    nodes = [NORM, n("Mul", ["a", "c"], ["p"]), n("Add", ["a", "p"], ["y"])]
    assert operators(nodes, {**WEIGHTS, "c": drawn(6, 1, 1)}) == ["BatchNormalization", "Mul", "Add"]


def test_a_scale_that_is_fed_stays() -> None:
    weights = {**{k: v for k, v in WEIGHTS.items() if k != "s"}, "c": drawn(6, 1, 1)}
    assert operators([NORM, n("Mul", ["a", "c"], ["y"])], weights, s=drawn(6)) == ["BatchNormalization", "Mul"]
