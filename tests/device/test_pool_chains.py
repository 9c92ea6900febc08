"""Elementwise nodes around pools over windows: in their kernel, with the same values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from sessions import f, kernels, model, n

from gpurt.device.provider import DeviceProvider
from gpurt.graph.view import NodeView

HALF = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
BEHIND: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    "a factor and a shift for each channel": (
        [n("MaxPool", ["x"], ["a"], **HALF), n("Mul", ["a", "s"], ["b"]), n("Add", ["b", "t"], ["y"])],
        {"x": f(2, 5, 17, 19)},
        {"s": f(5, 1, 1), "t": f(5, 1, 1)},
    ),
    "an activation": (
        [n("AveragePool", ["x"], ["a"], **HALF), n("HardSwish", ["a"], ["y"])],
        {"x": f(1, 3, 9, 40)},
        {},
    ),
    "a sum with another tensor": (
        [n("LpPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2]), n("Add", ["a", "z"], ["y"])],
        {"x": f(2, 3, 8, 6), "z": f(2, 3, 4, 3)},
        {},
    ),
    "signals": (
        [n("MaxPool", ["x"], ["a"], kernel_shape=[5], strides=[3]), n("Tanh", ["a"], ["y"])],
        {"x": f(2, 3, 70)},
        {},
    ),
    "windows wider than a line": (
        [n("MaxPool", ["x"], ["a"], kernel_shape=[1, 300]), n("Neg", ["a"], ["y"])],
        {"x": f(1, 2, 2, 320)},
        {},
    ),
}


@pytest.mark.parametrize("case", BEHIND)
def test_what_comes_behind_a_pool_is_computed_in_its_kernel(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = BEHIND[case]
    assert kernels(provider, model(nodes, inputs, constants), inputs) == ["pool"]


BEFORE: dict[str, tuple[list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]] = {
    what: (
        [n("Mul", ["x", "s"], ["a"]), n("Relu", ["a"], ["b"]), n(what, ["b"], ["c"], **HALF), n("Abs", ["c"], ["y"])],
        {"x": f(2, 5, 17, 19)},
        {"s": f(5, 1, 1)},
    )
    for what in ("MaxPool", "AveragePool")
}


@pytest.mark.parametrize("case", BEFORE)
def test_what_comes_before_a_pool_of_a_gpu_is_computed_in_its_kernel(provider: DeviceProvider, case: str) -> None:
    nodes, inputs, constants = BEFORE[case]
    ran = kernels(provider, model(nodes, inputs, constants), inputs)
    assert ran == (["ew_mul_relu", "pool"] if provider.info.kernel_class == "cpu" else ["pool"])


APART = {
    "in many windows": [n("Neg", ["x"], ["a"]), n("MaxPool", ["a"], ["y"], kernel_shape=[3, 3])],
    "costly": [n("Exp", ["x"], ["a"]), n("MaxPool", ["a"], ["y"], **HALF)],
    "read by others": [n("Neg", ["x"], ["a"]), n("MaxPool", ["a"], ["b"], **HALF), n("ReduceMax", ["a"], ["m"]),
                       n("Add", ["b", "m"], ["y"])],
}  # fmt: skip


@pytest.mark.parametrize("case", APART)
def test_what_does_not_pay_runs_apart(provider: DeviceProvider, case: str) -> None:
    inputs = {"x": f(1, 2, 9, 10)}
    assert kernels(provider, model(APART[case], inputs, {}), inputs)[0].startswith("ew_")


def test_places_of_maxima_are_of_what_is_pooled(provider: DeviceProvider) -> None:
    inputs = {"x": f(2, 3, 8, 9)}
    nodes = [n("Neg", ["x"], ["a"]), n("MaxPool", ["a"], ["y", "i"], kernel_shape=[2, 2], strides=[2, 2])]
    nodes.append(n("Cast", ["i"], ["z"], to=TensorProto.FLOAT))
    kernels(provider, model(nodes, inputs, {}, ("y", "z")), inputs)


@pytest.mark.parametrize("provider", ["cpu"], indirect=True)
@pytest.mark.parametrize("channels", [3, 5, 8, 21, 40])
@pytest.mark.parametrize("what", ["MaxPool", "AveragePool"])
def test_channels_last(
    provider: DeviceProvider, monkeypatch: pytest.MonkeyPatch, channels: int, what: str
) -> None:  # fmt: skip
    def eager(_: DeviceProvider, node: NodeView) -> float:
        return 1000.0 if node.op_type == "Conv" else 0.0

    monkeypatch.setattr(DeviceProvider, "channels_last", eager)
    nodes = [
        n("Conv", ["x", "v"], ["c"]),
        n("GlobalAveragePool", ["c"], ["g"]),
        n("Sigmoid", ["g"], ["s"]),
        n("Mul", ["c", "s"], ["a"]),
        n(what, ["a"], ["b"], **HALF),
        n("Mul", ["b", "t"], ["d"]),
        n("Relu", ["d"], ["e"]),
        n("Conv", ["e", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    inputs = {"x": f(2, 4, 13, 12)}
    weights = {"v": f(channels, 4, 1, 1), "t": f(channels, 1, 1), "w": f(6, channels, 3, 3)}
    ran = kernels(provider, model(nodes, inputs, weights), inputs, rtol=1e-4)
    assert "pool_last" in ran
    assert not [k for k in ran if k.startswith("ew_")]
