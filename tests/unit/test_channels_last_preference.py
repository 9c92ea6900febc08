"""What the device layer says of channels last: shares of a node's time, by kind of convolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gpurt.device.driver import DeviceInfo
from gpurt.device.preference import preference
from gpurt.graph.channels_last import DOMAIN
from gpurt.graph.view import NodeView
from gpurt.testing.kernels import node_for

CPU = DeviceInfo("a CPU", kernel_class="cpu", vector_width=16)


def conv(w, *, constant=True, **attrs) -> NodeView:
    x, filters = np.zeros((1, w[1] * attrs.get("group", 1), 16, 16), np.float32), np.zeros(w, np.float32)
    node = node_for("Conv", [x, filters], attrs)
    given = replace(node.inputs[1], const=filters if constant else None)
    return replace(node, inputs=(node.inputs[0], given))


def test_a_gpu_keeps_the_layout_of_the_model():
    assert preference(conv((64, 64, 3, 3)), replace(CPU, kernel_class="gpu")) == 0


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (conv((64, 64, 1, 1)), conv((64, 60, 3, 3))),
        (conv((64, 60, 3, 3)), conv((64, 64, 3, 3))),
        (conv((64, 64, 3, 3), strides=(2, 2)), conv((64, 64, 3, 3))),
        (conv((64, 64, 1, 1)), conv((64, 64, 1, 1), strides=(2, 2))),
        (conv((64, 64, 1, 1)), conv((64, 1, 3, 3), group=64)),
    ],
)
def test_what_gains_more(less, more):
    assert 0 < preference(less, CPU) < preference(more, CPU) < 1


def test_few_filters_leave_lanes_idle():
    assert preference(conv((2, 64, 3, 3)), CPU) < 0
    assert preference(conv((32, 2, 3, 3), group=16), CPU) < 0


def test_filters_that_are_computed_have_no_kernel():
    assert preference(conv((64, 64, 3, 3), constant=False), CPU) == 0


def test_what_has_channels_last_already_is_not_asked_twice():
    assert preference(replace(conv((64, 64, 3, 3)), domain=DOMAIN), CPU) == 0


def test_pools_go_along():
    pool = node_for("MaxPool", [np.zeros((1, 8, 9, 9), np.float32)], {"kernel_shape": (3, 3)})
    assert preference(pool, CPU) > 0
