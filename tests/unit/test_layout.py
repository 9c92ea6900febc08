"""Level layout on hand-made regions: how many Transposes are left, and that the values stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from laying_out import CONV, LastProvider, check, laid_out, same_values
from regions import BETWEEN, DYNAMIC, INT, Net

from gpurt import registry
from gpurt.graph.channels_last import DOMAIN


@pytest.fixture(autouse=True)
def last() -> Iterator[None]:
    registry.register(LastProvider)
    yield
    registry.unregister("last")


# --- regions


def test_residual_blocks_leave_one_transpose_in_and_one_out():
    net = Net(1, 16, 32, 32)
    found = check(net, net.block(net.block("x", 16), 16), transposes=2)
    assert found.count(CONV) == 4
    assert found.count("Transpose") == 2


def test_pooling_to_a_vector_leaves_none_behind():
    net = Net(2, 16, 32, 32)
    pooled = net.add("GlobalAveragePool", net.block("x", 16))
    y = net.add("Gemm", net.add("Flatten", pooled), net.drawn(16, 10), net.drawn(10))
    found = check(net, y, transposes=1)
    assert found.count("ReduceMean") == 1


def test_weights_of_a_product_are_permuted_instead_of_an_image():
    for transposed in (0, 1):
        net = Net(2, 8, 16, 16)
        x = net.add("MaxPool", net.block("x", 8), kernel_shape=[4, 4], strides=[4, 4])
        weights = net.drawn(5, 128) if transposed else net.drawn(128, 5)
        check(net, net.add("Gemm", net.add("Flatten", x), weights, transB=transposed), transposes=1)


def test_squeeze_and_excitation():
    net = Net(1, 16, 24, 24)
    x = net.conv("x", 16, 32)
    gate = net.add("Relu", net.conv(net.add("GlobalAveragePool", x), 32, 8, 1))
    gate = net.add("HardSigmoid", net.conv(gate, 8, 32, 1))
    found = check(net, net.conv(net.add("Mul", x, gate), 32, 16), transposes=2)
    assert found.count(CONV) == 4


def test_branches_that_meet_in_a_concat():
    net = Net(1, 16, 20, 20)
    x = net.conv("x", 16, 16)
    pooled = net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    mean = net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    parts = [net.conv(x, 16, 8, 1), net.conv(pooled, 16, 4, 1), net.conv(mean, 16, 4), net.conv(x, 16, 8, 5)]
    found = check(net, net.add("Concat", *parts, axis=1), transposes=2)
    assert found.count(f"{DOMAIN}.MaxPool") == 1
    assert found.count(f"{DOMAIN}.AveragePool") == 1


def test_encoder_and_decoder_with_a_skip():
    net = Net(1, 8, 32, 32)
    high = net.add("Relu", net.conv("x", 8, 16))
    low = net.conv(net.add("MaxPool", high, kernel_shape=[2, 2], strides=[2, 2]), 16, 32)
    up = net.add("Resize", low, "", net.constant([1, 1, 2, 2]), mode="linear")
    learned = net.add("ConvTranspose", low, net.drawn(32, 8, 2, 2), strides=[2, 2])
    found = check(net, net.conv(net.add("Concat", high, up, learned, axis=1), 56, 8), transposes=2)
    assert found.count(f"{DOMAIN}.ConvTranspose") == 1


def shuffled(net: Net, x: str, channels: int, groups: int, size: Any) -> str:
    parts = net.constant([-1, groups, channels // groups, *size], np.int64)
    split = net.add("Transpose", net.add("Reshape", x, parts), perm=[0, 2, 1, 3, 4])
    return net.add("Reshape", split, net.constant([-1, channels, *size], np.int64))


def test_shuffled_channels_stay_in_the_region():
    net = Net(2, 12, 16, 16)
    x = shuffled(net, net.conv("x", 12, 24, 1), 24, 3, (16, 16))
    found = check(net, net.conv(net.conv(x, 24, 24, group=24), 24, 12, 1), transposes=2)
    assert found.count("Transpose") == 3  # the shuffle's own, along the last axis, is one of them


def test_dense_blocks_with_normalization_before_the_convolution():
    net = Net(1, 8, 24, 24)
    x, channels = net.conv("x", 8, 16), 16
    for _ in range(3):
        statistics = [net.constant(net.rng.uniform(0.5, 1.5, channels)) for _ in range(4)]
        y = net.conv(net.add("Relu", net.add("BatchNormalization", x, *statistics)), channels, 8)
        x, channels = net.add("Concat", x, y, axis=1), channels + 8
    found = check(net, x, transposes=2)
    assert found.count("BatchNormalization") == 0


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), ("n", 8, "h", "w"), (2, 8, 20)], ids=str)
def test_transposed_convolutions_are_products_where_windows_do_not_meet(shape):
    class Without(LastProvider):
        lacks = frozenset({f"{DOMAIN}.ConvTranspose"})

    registry.register(Without)
    net, count = Net(*shape), len(shape) - 2
    kernel = [2, 3][:count]
    for biased in (False, True):
        x = net.conv("x", 8, 16)
        y = net.add("ConvTranspose", x, net.drawn(16, 8, *kernel), *[net.drawn(8)] * biased, strides=kernel)
        model = net.model(net.conv(y, 8, 8))
        same_values(model, *(net.feed(*s) for s in ([(1, 8, 8, 8), (3, 8, 4, 6)] if "n" in shape else [shape])))
        found = laid_out(model, Without)
        assert (found.transposes, found.count("ConvTranspose"), found.count(CONV)) == (2, 0, 3)


def test_other_transposed_convolutions_are_a_border():
    class Without(LastProvider):
        lacks = frozenset({f"{DOMAIN}.ConvTranspose"})

    for attrs in ({"strides": [1, 1]}, {"strides": [2, 2], "output_padding": [1, 0]}, {"strides": [2, 2], "group": 2}):
        net = Net(1, 8, 8, 8)
        filters = net.drawn(16, 8 // attrs.get("group", 1), 2, 2)
        y = net.add("ConvTranspose", net.conv("x", 8, 16), filters, **attrs)
        found = laid_out(net.model(net.conv(y, 8, 8)), Without)
        assert (found.transposes, found.count("ConvTranspose")) == (4, 1)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_pixels_out_of_channels(mode):
    net = Net(1, 8, 16, 16)
    y = net.add("DepthToSpace", net.conv(net.conv("x", 8, 16), 16, 16), blocksize=2, mode=mode)
    check(net, net.conv(y, 4, 8), transposes=2)


def test_channels_out_of_pixels():
    net = Net(1, 8, 16, 16)
    check(net, net.conv(net.add("SpaceToDepth", net.conv("x", 8, 8), blocksize=2), 32, 8), transposes=2)


def test_patches_become_tokens_without_a_transpose():
    net = Net(2, 3, 64, 64)
    patches = net.conv("x", 3, 48, 8, strides=[8, 8], pads=[0, 0, 0, 0])
    tokens = net.add("Transpose", net.add("Reshape", patches, net.constant([0, 48, -1], np.int64)), perm=[0, 2, 1])
    found = check(net, net.add("LayerNormalization", tokens, net.drawn(48), axis=-1), transposes=1)
    assert found.layouts[0]["cancelled"] == 1


def test_tokens_become_an_image_without_a_transpose():
    net = Net(2, 64, 32)
    image = net.add("Reshape", net.add("Transpose", net.add("Relu", "x"), perm=[0, 2, 1]),
                    net.constant([2, 32, 8, 8], np.int64))  # fmt: skip
    w = net.drawn(32, 32, 3, 3)
    y = net.add("Conv", net.add("Conv", image, w, pads=[1] * 4), w, pads=[1] * 4)
    check(net, net.add("GlobalAveragePool", y), transposes=0)


def test_a_model_that_has_channels_last_by_itself_has_no_transpose_left():
    net = Net(1, 16, 16, 8)
    y = net.conv(net.add("Transpose", "x", perm=[0, 3, 1, 2]), 8, 16)
    y = net.conv(net.add("Relu", y), 16, 8)
    found = check(net, net.add("Sigmoid", net.add("Transpose", y, perm=[0, 2, 3, 1])), transposes=0)
    assert found.layouts[0]["cancelled"] == 2
    assert found.count("Transpose") == 0


def test_a_transpose_that_goes_may_have_made_an_output():
    net = Net(1, 16, 16, 8)
    y = net.conv(net.conv(net.add("Transpose", "x", perm=[0, 3, 1, 2]), 8, 16), 16, 8)
    check(net, net.add("Transpose", y, perm=[0, 2, 3, 1]), y, transposes=1)


@pytest.mark.parametrize(("shape", "k"), [((2, 8, 64), 5), ((1, 4, 8, 10, 12), 3)], ids=["1-D", "3-D"])
def test_other_ranks(shape, k):
    net = Net(*shape)
    y = net.conv(net.add("Relu", net.conv("x", shape[1], 16, k)), 16, 16, k)
    found = check(net, net.add("GlobalMaxPool", y), transposes=1)
    assert found.count(CONV) == 2


@pytest.mark.parametrize("what", BETWEEN)
def test_stands_between_convolutions(what):
    net = Net(1, 8, 12, 12)
    y = net.conv(BETWEEN[what](net, net.conv("x", 8, 16)), 16, 8)
    found = check(net, y, transposes=2)
    assert found.count(CONV) == 2
    if what == "rows as columns":
        assert found.count("Transpose") == 3


def test_reductions_that_drop_axes_leave_the_region():
    for axes, transposes in (([2, 3], 1), ([1, 2, 3], 1), ([1], 1), ([2], 2)):
        net = Net(2, 8, 12, 12)
        y = net.conv(net.conv("x", 8, 16), 16, 16)
        check(net, net.add("ReduceMean", y, net.constant(axes, INT), keepdims=0), transposes=transposes)


def test_squeezed_axes_leave_the_region():
    net = Net(2, 8, 12, 12)
    y = net.conv(net.conv("x", 8, 16), 16, 1)
    check(net, net.add("Squeeze", y, net.constant([1], INT)), transposes=1)


def test_one_channel_needs_no_transpose():
    net = Net(1, 1, 24, 24)
    check(net, net.conv(net.conv("x", 1, 8), 8, 1), transposes=0)


@pytest.mark.parametrize(("what", "transposes"), [("blocks", 2), ("pool", 1), ("pixels", 1), ("one channel", 1),
                                                  ("skip", 2), ("tokens", 1)])  # fmt: skip
def test_open_sizes(what, transposes):
    net = Net("n", 3, "h", "w")
    y = DYNAMIC[what](net)
    feeds = [net.feed(1, 3, 16, 16), net.feed(3, 3, 10, 12), net.feed(1, 3, 9, 17), net.feed(1, 3, 16, 16)]
    check(net, y, transposes=transposes, feeds=feeds)
