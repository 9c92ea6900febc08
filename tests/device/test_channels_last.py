"""Convolutions and pools with channels last against sums in double precision and the pools of the other layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_conv import conv

import gpurt
from gpurt.device.ops.channels_last.winograd import Blocks
from gpurt.device.ops.conv_shape import geometry
from gpurt.device.provider import DeviceProvider
from gpurt.graph.channels_last import DOMAIN, to_first, to_last
from gpurt.testing.kernels import node_for, run_op

RNG = np.random.default_rng(3)


pytestmark = pytest.mark.parametrize("provider", ["cpu"], indirect=True)  # the class the kernels are made for


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(to_last(x.ndim)))


def first(x: np.ndarray) -> np.ndarray:
    return x.transpose(to_first(x.ndim))


def check_conv(provider: DeviceProvider, x: np.ndarray, w: np.ndarray, attrs: dict[str, Any]) -> None:
    b = f(len(w))
    for bias in (b, None):
        inputs = [last(x), w] if bias is None else [last(x), w, bias]
        (y,) = run_op(provider, "Conv", inputs, attrs, domain=DOMAIN, constant=(1, 2))
        want = conv(x.astype(np.float64), w.astype(np.float64), bias, attrs)
        np.testing.assert_allclose(first(y), want, rtol=1e-5, atol=2e-5 * np.abs(want).max(initial=1))


@pytest.mark.parametrize(
    ("x", "w", "attrs"),
    [
        ((1, 3, 17, 19), (5, 3, 3, 3), {}),
        ((2, 16, 13, 13), (64, 16, 1, 1), {}),
        ((1, 3, 30, 31), (24, 3, 7, 7), {"strides": (2, 2), "pads": (3, 3, 3, 3)}),
        ((2, 20, 9, 11), (88, 20, 3, 3), {"strides": (2, 1), "pads": (1, 0, 2, 1)}),
        ((1, 7, 12, 12), (40, 7, 3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
        ((2, 12, 8, 8), (30, 4, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),
        ((1, 64, 7, 7), (112, 64, 5, 5), {"pads": (2, 2, 2, 2)}),
        ((3, 10, 21), (17, 10, 4), {"strides": (3,), "auto_pad": "SAME_UPPER"}),
        ((1, 4, 5, 3), (16, 4, 5, 3), {}),
        ((1, 5, 2, 2), (33, 5, 3, 3), {"pads": (4, 4, 4, 4)}),
        ((0, 4, 5, 5), (8, 4, 3, 3), {}),
    ],
)
def test_direct(provider: DeviceProvider, x: tuple[int, ...], w: tuple[int, ...], attrs: dict[str, Any]) -> None:
    check_conv(provider, f(*x), f(*w), attrs)


@pytest.mark.parametrize("channels", [(32, 32), (48, 96), (128, 16), (16, 80)])
@pytest.mark.parametrize("size", [(20, 20), (1, 37), (31, 18)])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 1, 0)])
def test_winograd(
    provider: DeviceProvider, channels: tuple[int, int], size: tuple[int, int], pads: tuple[int, ...]
) -> None:
    if size[0] + pads[0] + pads[2] < 3:
        size = (3, size[1])
    x, w = f(2, channels[0], *size), f(channels[1], channels[0], 3, 3)
    check_conv(provider, x, w, {"pads": pads})


def test_winograd_is_taken_where_it_pays(provider: DeviceProvider) -> None:
    def blocks(x: tuple[int, ...], w: tuple[int, ...], **attrs: Any) -> Blocks | None:
        node = node_for("Conv", [np.zeros(x, np.float32), np.zeros(w, np.float32)], attrs)
        return Blocks.of(geometry(node, x, w), provider.info)

    assert blocks((1, 64, 56, 56), (64, 64, 3, 3), pads=(1, 1, 1, 1))
    assert blocks((1, 128, 28, 28), (128, 128, 3, 3), pads=(1, 1, 1, 1))
    assert not blocks((1, 512, 7, 7), (512, 512, 3, 3), pads=(1, 1, 1, 1))  # four tiles, and 36 times the filters
    assert not blocks((1, 64, 56, 56), (64, 64, 3, 3), strides=(2, 2))
    assert not blocks((1, 60, 56, 56), (64, 60, 3, 3))
    assert not blocks((1, 64, 56, 56), (64, 64, 3, 3), dilations=(2, 2))
    assert not blocks((1, 64, 56, 56), (64, 32, 3, 3), group=2)


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 8, 12, 16, 24, 40, 129])
@pytest.mark.parametrize(
    "attrs",
    [
        {"pads": (1, 1, 1, 1)},
        {"strides": (2, 2), "pads": (1, 0, 1, 1)},
        {"dilations": (2, 2)},
        {"pads": (5, 5, 5, 5)},
    ],
    ids=["same", "strides", "dilations", "wide pads"],
)
def test_depthwise(provider: DeviceProvider, channels: int, attrs: dict[str, Any]) -> None:
    check_conv(provider, f(2, channels, 11, 14), f(channels, 1, 3, 5), {**attrs, "group": channels})


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("channels", [1, 5, 8, 24, 64])
@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (2, 3), "strides": (2, 3), "ceil_mode": 1},
        {"kernel_shape": (3, 2), "dilations": (2, 3), "pads": (1, 0, 0, 1), "count_include_pad": 1},
        {"kernel_shape": (3, 3), "strides": (2, 2), "auto_pad": "SAME_LOWER", "count_include_pad": 1},
    ],
    ids=["strides", "ceil", "dilations", "same"],
)
def test_pools(provider: DeviceProvider, op: str, channels: int, attrs: dict[str, Any]) -> None:
    if op == "MaxPool":
        attrs = {k: v for k, v in attrs.items() if k != "count_include_pad"}
    x = f(2, channels, 13, 16)
    (y,) = run_op(provider, op, [last(x)], attrs, domain=DOMAIN)
    (want,) = run_op(provider, op, [x], attrs)
    np.testing.assert_allclose(first(y), want, rtol=1e-6, atol=1e-6)


def test_pool_over_one_axis(provider: DeviceProvider) -> None:
    x = f(2, 6, 19)
    (y,) = run_op(provider, "MaxPool", [last(x)], {"kernel_shape": (4,), "strides": (3,)}, domain=DOMAIN)
    (want,) = run_op(provider, "MaxPool", [x], {"kernel_shape": (4,), "strides": (3,)})
    np.testing.assert_array_equal(first(y), want)


def test_filters_that_are_computed_are_refused(provider: DeviceProvider) -> None:
    from gpurt.provider import Refused

    with pytest.raises(Refused, match="computed"):
        run_op(provider, "Conv", [f(1, 5, 5, 3), f(4, 3, 3, 3)], domain=DOMAIN)


@pytest.mark.parametrize(
    ("w", "attrs"),
    [((32, 32, 3, 3), {"pads": [1] * 4}), ((40, 32, 1, 1), {}), ((32, 1, 3, 3), {"group": 32, "pads": [1] * 4})],
    ids=["winograd", "direct", "depthwise"],
)
def test_what_follows_is_done_before_the_store(
    provider: DeviceProvider, w: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    n, x, filters, b = helper.make_node, f(2, 19, 23, 32), f(*w), f(w[0], 1, 1)
    nodes = [
        n("Transpose", ["x"], ["p"], perm=[0, 3, 1, 2]),
        n("Conv", ["p", "w"], ["c"], **attrs),
        n("HardSwish", ["c"], ["r"]),
        n("Conv", ["p", "v"], ["d"], **attrs),
        n("Mul", ["d", "b"], ["e"]),
        n("Add", ["e", "r"], ["s"]),
        n("Relu", ["s"], ["t"]),
        n("Transpose", ["t"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, k) for k, a in {"w": filters, "v": -filters, "b": b}.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = gpurt.SessionOptions(partitioning="greedy")
    session = gpurt.InferenceSession(proto, options, providers=[("opencl", {"kernel_class": "cpu"}), "cpu"])
    (got,) = session.run(None, {"x": x})
    (want,) = gpurt.InferenceSession(proto, providers=["cpu"]).run(None, {"x": x})
    np.testing.assert_allclose(got, want, atol=3e-5 * np.abs(want).max())
    (plan,) = session._runner.plans()
    kernels = [k for step in plan._draft.steps if hasattr(step, "plan") for k in step.plan.kernels]
    assert [k.endswith("_last") for k in kernels] == [True, True]


@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((2, 64, 5, 7), {"size": 5}),
        ((1, 37, 3, 3), {"size": 4, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
        ((1, 16, 9), {"size": 3, "alpha": 0.1}),
        ((1, 3, 4, 4), {"size": 7, "alpha": 1.0}),
        ((3, 5, 2, 2), {"size": 1, "alpha": 1.0, "beta": 2.0}),
    ],
)
def test_local_response(provider: DeviceProvider, shape: tuple[int, ...], attrs: dict[str, Any]) -> None:
    x = f(*shape)
    (y,) = run_op(provider, "LRN", [last(x)], attrs, domain=DOMAIN)
    (want,) = run_op(provider, "LRN", [x], attrs)
    np.testing.assert_allclose(first(y), want, rtol=2e-5, atol=1e-6)
