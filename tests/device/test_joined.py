"""Concats whose inputs are written in place by what makes them: values, and how much is copied."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sessions import GREEDY, f, kernels, model, n

import gpurt
from gpurt.device.provider import DeviceProvider

COPIES = ("strided_copy", "copy_elements")


def branches(channels: int, parts: list[str]):
    """Nodes that make a Concat's inputs of a stem's result, and their weights.

    They are between two convolutions, so that the layout with channels last pays.
    """
    nodes = [n("Conv", ["x", "stem"], ["s"], pads=[1, 1, 1, 1])]
    constants = {"stem": f(channels, 3, 3, 3), "tail": f(16, 1, 1, 1)}
    names, width = [], 0
    for i, kind in enumerate(parts):
        made, size = f"p{i}", channels
        if kind.startswith("conv"):
            kernel, size = int(kind[4]), int(kind.rstrip("!").partition(":")[2] or 16)
            constants[f"w{i}"] = f(size, channels, kernel, kernel)
            constants[f"b{i}"] = f(size)
            raw = made if kind.endswith("!") else f"c{i}"
            nodes.append(n("Conv", ["s", f"w{i}", f"b{i}"], [raw], pads=[kernel // 2] * 4))
            if raw != made:
                nodes.append(n("Relu", [raw], [made]))
        elif kind == "depthwise":
            constants[f"w{i}"] = f(channels, 1, 3, 3)
            nodes += [n("Conv", ["s", f"w{i}"], [f"c{i}"], pads=[1] * 4, group=channels), n("Relu", [f"c{i}"], [made])]
        elif kind == "scaled":  # an epilogue that reads one number for each channel
            constants[f"w{i}"], constants[f"k{i}"] = f(size, channels, 1, 1), f(size, 1, 1)
            nodes += [n("Conv", ["s", f"w{i}"], [f"c{i}"]), n("Relu", [f"c{i}"], [f"d{i}"])]
            nodes.append(n("Mul", [f"d{i}", f"k{i}"], [made]))
        elif kind in ("MaxPool", "AveragePool"):
            nodes.append(n(kind, ["s"], [made], kernel_shape=[3, 3], pads=[1] * 4))
        else:
            made = "s"
        names.append(made)
        width += size
    constants["tail"] = f(16, width, 1, 1)
    nodes += [n("Concat", names, ["j"], axis=1), n("Conv", ["j", "tail"], ["y"])]
    return nodes, constants


def copies(found: list[str]) -> int:
    return sum(k in COPIES for k in found)


@pytest.mark.parametrize("provider", ["cpu"], indirect=True)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("channels", "parts"),
    [
        (16, ["conv1:16", "conv3:32"]),
        (32, ["conv1:64", "conv3:32", "conv5:16", "MaxPool"]),
        (48, ["conv1:32", "conv3:33", "AveragePool", "conv1:51"]),
        (72, ["depthwise", "conv3:81", "depthwise"]),
        (16, ["conv3:32!", "conv1:17!"]),
    ],
)
def test_parts_are_written_in_place(provider: DeviceProvider, batch, channels, parts):
    x = {"x": f(batch, 3, 20, 22)}
    nodes, constants = branches(channels, parts)
    found = kernels(provider, model(nodes, x, constants), x, rtol=1e-4)
    assert "conv_last" in found
    assert copies(found) == 1, found  # to the layout with channels last


@pytest.mark.parametrize("parts", [["conv1:64", "scaled", "conv3:64"], ["conv1:64", "input", "conv3:64"]])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_cannot_be_written_in_place_is_copied(provider: DeviceProvider, batch, parts):
    x = {"x": f(batch, 3, 20, 22)}
    nodes, constants = branches(64, parts)
    found = kernels(provider, model(nodes, x, constants), x, rtol=1e-4)
    if provider.info.kernel_class == "cpu":
        assert "conv_last" in found
        assert copies(found) == 2  # the other one is to the layout with channels last


@pytest.mark.parametrize("provider", ["gpu"], indirect=True)
def test_one_image_in_the_other_layout_is_joined_too(provider: DeviceProvider):
    nodes, constants = branches(16, ["conv1:16", "conv3:32", "conv5:8"])
    one, two = ({"x": f(batch, 3, 12, 15)} for batch in (1, 2))
    assert copies(kernels(provider, model(nodes, one, constants), one, rtol=1e-4)) == 0
    assert copies(kernels(provider, model(nodes, two, constants), two, rtol=1e-4)) == 3


def test_a_part_that_others_read_stays_a_value_of_its_own(provider: DeviceProvider):
    x = {"x": f(2, 3, 10, 10)}
    nodes, constants = branches(16, ["conv1:16", "conv3:16"])
    nodes += [n("Sigmoid", ["p0"], ["z"])]
    kernels(provider, model(nodes, x, constants, ["y", "z"]), x, rtol=1e-4)
    constants["twice"] = f(4, 48, 1, 1)
    nodes = [*nodes[:-1], n("Concat", ["p0", "p1", "p0"], ["k"], axis=1), n("Conv", ["k", "twice"], ["z"])]
    kernels(provider, model(nodes, x, constants, ["y", "z"]), x, rtol=1e-4)


def test_products_of_one_row_are_joined(provider: DeviceProvider):
    x = {"x": f(1, 40)}
    constants = {"v": f(40, 24), "w": f(40, 17)}
    nodes = [
        n("MatMul", ["x", "v"], ["a"]),
        n("MatMul", ["x", "w"], ["b"]),
        n("Tanh", ["b"], ["c"]),
        n("Concat", ["a", "c"], ["y"], axis=1),
    ]
    assert copies(kernels(provider, model(nodes, x, constants), x)) == 0
    many = {"x": f(3, 40)}
    assert copies(kernels(provider, model(nodes, many, constants), many)) == 2


def test_open_sizes_are_planned_once(provider: DeviceProvider):
    nodes, constants = branches(16, ["conv1:16", "conv3:16", "MaxPool"])
    proto = model(nodes, {"x": f(1, 3, 8, 8)}, constants)
    for i, name in enumerate(("n", "", "h", "w")):
        if name:
            proto.graph.input[0].type.tensor_type.shape.dim[i].dim_param = name
    options = {"kernel_class": provider.info.kernel_class}
    session = gpurt.InferenceSession(proto, GREEDY, providers=[("opencl", options), "cpu"])
    alone = gpurt.InferenceSession(proto, providers=["cpu"])
    for shape in ((1, 3, 8, 9), (2, 3, 12, 12), (1, 3, 30, 17), (3, 3, 9, 8)):
        x = {"x": f(*shape)}
        got, want = session.run(None, x)[0], alone.run(None, x)[0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_fewer_launches_and_the_names_of_all_nodes(provider: DeviceProvider):
    x = {"x": f(1, 3, 16, 16)}
    nodes, constants = branches(16, ["conv1:16", "conv3:16"])
    options = {"kernel_class": provider.info.kernel_class}
    session = gpurt.InferenceSession(model(nodes, x, constants), GREEDY, providers=[("opencl", options), "cpu"])
    fused = Counter(len(r["fused_from"]) for r in session.explain().to_dict()["nodes"] if r.get("fused_from"))
    assert fused[5] == 1  # two convolutions, two activations, one Concat
