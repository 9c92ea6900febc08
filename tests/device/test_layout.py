"""Regions of channels last on a device: what stands between convolutions is right there too, and stays there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from regions import BETWEEN, DYNAMIC, Net

import gpurt
from gpurt.device.provider import DeviceProvider
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import NodeView

pytestmark = pytest.mark.parametrize("provider", ["cpu"], indirect=True)  # the class that has the kernels

CHOSEN = {"partitioning": "greedy"}  # so that no rate of this machine decides


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions are turned whatever the Transposes around them cost."""

    def channels_last(_: DeviceProvider, node: NodeView) -> float:
        return 1000.0 if node.op_type == "Conv" else 0.0

    monkeypatch.setattr(DeviceProvider, "channels_last", channels_last)


def same(model: onnx.ModelProto, *feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Fail unless the device gives what the host gives; what explain() says."""
    plain = gpurt.SessionOptions(graph_optimization_level="disable_all")
    host = gpurt.InferenceSession(model, plain, providers=["cpu"])
    device = gpurt.InferenceSession(
        model, gpurt.SessionOptions(**CHOSEN), providers=[("opencl", {"kernel_class": "cpu"}), "cpu"]
    )
    for feed in feeds:
        (want,), (got,) = host.run(None, feed), device.run(None, feed)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    return device.explain().to_dict()


@pytest.mark.parametrize("what", BETWEEN)
def test_stands_between_convolutions(provider: DeviceProvider, what: str) -> None:
    net = Net(1, 8, 12, 12)
    told = same(net.model(net.conv(BETWEEN[what](net, net.conv("x", 8, 16)), 16, 8)), net.feed())
    (layout,) = told["layouts"]
    assert layout["preferred"] == 2
    assert layout["kept"] == 0
    assert {n["provider"] for n in told["nodes"]} == {"opencl"}
    if not any(o in what for o in ("InstanceNormalization", "LpPool")):  # they have no such kernel
        assert layout["transposes"] == 2


@pytest.mark.parametrize("what", DYNAMIC)
def test_open_sizes(provider: DeviceProvider, what: str) -> None:
    net = Net("n", 3, "h", "w")
    model = net.model(DYNAMIC[what](net))
    same(model, *(net.feed(*shape) for shape in [(1, 3, 16, 16), (3, 3, 10, 12), (1, 3, 9, 17), (1, 3, 16, 16)]))


def test_what_the_device_refuses_when_it_plans_runs_on_the_host_with_channels_last(provider: DeviceProvider) -> None:
    net = Net(8, 8, 3, 3)
    filters = net.add("Sigmoid", "x")  # computed, so that nothing can be packed
    told = same(net.model(net.add("Relu", net.add("Conv", net.conv("x", 8, 8), filters))), net.feed())
    moved = [n for n in told["nodes"] if n["op_type"] == "Conv" and n["provider"] == "cpu"]
    assert [(n["domain"], list(n["refused"].values())) for n in moved] == [
        (DOMAIN, ["Conv with channels last and filters that are computed"])
    ]
