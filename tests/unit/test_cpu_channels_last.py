"""The cpu provider's memory with the channels last: what kernels make of it, and memory that is used again."""

from __future__ import annotations

import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import gpurt
from gpurt.errors import InvalidArgument
from gpurt_cpu.memory import LEAST, Recycler
from gpurt_cpu.ops import lookup
from gpurt_cpu.ops.common import channels_last, window_pads
from gpurt_cpu.ops.conv import convolve
from gpurt_cpu.ops.elementwise import erf32
from gpurt_cpu.ops.images import Convolution, Upsampling
from gpurt_cpu.ops.winograd import tile_for

node = helper.make_node


def _rng(seed=5):
    return np.random.default_rng(seed)


def _normal(*shape, seed=5):
    return _rng(seed).standard_normal(shape).astype(np.float32)


def _poisoned(shape):
    """Memory in which whatever is not written shows."""
    return np.full(shape, np.nan, np.float32)


def _turned(x):
    """The same array in memory with the channels last."""
    axes = (0, *range(2, x.ndim), 1)
    return np.ascontiguousarray(x.transpose(axes)).transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def _check(x, w, b, *, relu=False, **attributes):
    rank = w.ndim - 2
    strides, dilations = (attributes.get(n, (1,) * rank) for n in ("strides", "dilations"))
    pads = window_pads(
        x.shape[2:], w.shape[2:], auto_pad=attributes.get("auto_pad", "NOTSET"), pads=attributes.get("pads"),
        strides=strides, dilations=dilations,
    )  # fmt: skip
    wide = convolve(x.astype(np.float64), w.astype(np.float64), attributes.get("group", 1), strides, dilations, pads)
    if b is not None:
        wide += b.reshape(-1, *(1,) * rank)
    expected = np.maximum(wide, 0) if relu else wide
    convolution = Convolution(w, b, relu=relu, **attributes)
    for given in (x, _turned(x)):
        before = given.copy()
        y = convolution(given, _poisoned)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5 * (1 + np.abs(wide).max()))
        np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize(
    ("size", "channels", "filters", "kernel", "more"),
    [
        ((1, 40, 40), 48, 40, (3, 3), {"pads": (1, 1, 1, 1)}),  # tiles of 4
        ((2, 25, 31), 32, 33, (3, 3), {"pads": (0, 2, 1, 0)}),  # tiles of 4 that go over the edges
        ((1, 13, 11), 128, 130, (3, 3), {"pads": (1, 1, 1, 1)}),  # tiles of 2
        ((1, 150, 140), 16, 16, (3, 3), {"pads": (1, 1, 1, 1)}),  # runs of a row, in several parts
        ((2, 7, 33), 18, 9, (1, 4), {"pads": (0, 1, 0, 2)}),  # runs of a row, one row
        ((1, 60, 70), 3, 20, (3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),  # planes
        ((2, 90, 90), 64, 70, (3, 3), {"strides": (2, 1), "dilations": (1, 2)}),  # windows, in several parts
        ((1, 5, 6), 8, 12, (5, 5), {"auto_pad": "SAME_LOWER"}),
        ((2, 70, 75), 40, 30, (1, 1), {}),
        ((1, 17, 19), 40, 30, (1, 1), {"strides": (2, 3)}),
        ((1, 4, 5), 6, 7, (1, 1), {"pads": (1, 0, 2, 1)}),
        ((1, 1, 1), 30, 20, (1, 1), {}),
    ],
)
@pytest.mark.parametrize("relu", [False, True])
def test_convolutions(size, channels, filters, kernel, more, relu):
    n, *image = size
    x, w = _normal(n, channels, *image), _normal(filters, channels, *kernel, seed=6)
    _check(x, w, _normal(filters, seed=7) if relu else None, relu=relu, **more)


@pytest.mark.parametrize("channels", [6, 224])
@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3), (2, 1)])
@pytest.mark.parametrize(("kernel", "dilations"), [((3, 3), (1, 1)), ((2, 5), (2, 1)), ((3, 2), (1, 2))])
def test_depthwise(channels, many, strides, kernel, dilations):
    x, w = _normal(2, channels, 23, 30), _normal(channels * many, 1, *kernel, seed=6)
    more = {"strides": strides, "dilations": dilations, "pads": (1, 2, 0, 1), "group": channels}
    _check(x, w, _normal(channels * many, seed=7), **more)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_groups(kernel, strides):
    pads = (kernel[0] // 2,) * 4
    _check(
        _normal(2, 12, 9, 10), _normal(8, 3, *kernel, seed=6), _normal(8, seed=7), group=4, strides=strides, pads=pads
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_convolutions(seed):
    r = _rng(seed)
    rank = int(r.choice([1, 2, 2]))
    group = int(r.choice([1, 1, 2, 3]))
    x = _normal(int(r.integers(1, 3)), group * int(r.choice([1, 3, 8, 32])), *r.integers(6, 33, rank), seed=seed)
    w = _normal(group * int(r.choice([1, 8, 40])), x.shape[1] // group, *r.choice([1, 2, 3, 3, 5], rank), seed=seed + 1)
    more = {
        "strides": tuple(map(int, r.choice([1, 1, 2, 3], rank))),
        "dilations": tuple(map(int, r.choice([1, 1, 1, 2], rank))),
        "pads": tuple(map(int, r.integers(2, 4, 2 * rank))),
    }
    bias = _normal(len(w), seed=seed + 2) if r.random() < 0.6 else None
    _check(x, w, bias, relu=bool(r.random() < 0.5), group=group, **more)


def test_the_ways_that_are_measured_to_be_fast_are_taken():
    assert tile_for((3, 3), 64, 64, (56, 56)) == 4
    assert tile_for((3, 3), 256, 256, (14, 14)) == 2
    assert tile_for((3, 3), 512, 512, (7, 7)) == 0
    assert tile_for((3, 3), 16, 64, (56, 56)) == 0
    assert tile_for((5, 5), 64, 64, (56, 56)) == 0


def test_an_empty_batch():
    y = Convolution(_normal(4, 3, 3, 3), _normal(4), relu=True)(_normal(0, 3, 8, 8), _poisoned)
    assert y.shape == (0, 4, 6, 6)


@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (1, 4, 2, 8), (1, 4, 8)])
def test_inputs_that_do_not_fit_are_refused(shape):
    convolution = Convolution(_normal(6, 4, 3, 3), None)
    with pytest.raises(InvalidArgument):
        convolution(_normal(*shape), _poisoned)
    assert convolution(_normal(1, 4, 5, 5), _poisoned).shape == (1, 6, 3, 3)


@pytest.mark.parametrize("bias", [False, True])
def test_upsampling_is_a_transposed_convolution(bias):
    x, w = _normal(2, 5, 6, 7), _normal(5, 4, 2, 3, seed=6)
    b = _normal(4, seed=7) if bias else None
    expected = lookup("", "ConvTranspose").fn(x, w, b, strides=(2, 3))
    for given in (x, _turned(x)):
        np.testing.assert_allclose(Upsampling(w, b)(given, _poisoned), expected, rtol=1e-5, atol=1e-5)


_SPATIAL = [
    ("MaxPool", [], {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ("MaxPool", [], {"kernel_shape": (2, 3), "strides": (1, 2), "ceil_mode": 1, "dilations": (2, 1)}),
    ("AveragePool", [], {"kernel_shape": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1)}),
    ("AveragePool", [], {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}),
    ("LpPool", [], {"kernel_shape": (3, 3), "strides": (2, 2)}),
    ("GlobalAveragePool", [], {}),
    ("GlobalMaxPool", [], {}),
    ("ReduceMean", [np.array([2, 3])], {}),
    ("ReduceMean", [np.array([-1, -2])], {"keepdims": 0}),
    ("Resize", [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    ("Resize", [None, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}),
    ("Resize", [None, None, np.array([1, 5, 7, 9])], {"mode": "cubic"}),
    ("Resize", [None, np.array([1, 2, 1, 0.5], np.float32)], {"mode": "linear", "antialias": 1}),
]


@pytest.mark.parametrize(("op", "more", "attributes"), _SPATIAL, ids=[f"{i}-{c[0]}" for i, c in enumerate(_SPATIAL)])
def test_kernels_yield_the_same_for_either_order_of_memory(op, more, attributes):
    kernel = lookup("", op)
    x = _normal(2, 5, 12, 11)
    expected = kernel.fn(x, *more, **attributes)
    got = kernel.fn(_turned(x), *more, **attributes)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    if math.prod(got.shape[2:]) > 1:
        assert channels_last(got)


def test_infinity_does_not_spread_when_an_image_grows():
    x = _normal(1, 2, 6, 6)
    x[0, 0, 0, 0] = np.inf
    y = lookup("", "Resize").fn(x, None, np.array([1, 1, 2, 2], np.float32), mode="linear")
    assert np.isfinite(y[0, 0, 4:, 4:]).all()
    assert np.isfinite(y[0, 1]).all()


def test_erf_is_good_to_the_last_bits():
    x = np.concatenate([np.linspace(-9, 9, 40001), np.logspace(-30, 38, 500), [0, np.inf, -np.inf]]).astype(np.float32)
    with np.errstate(all="ignore"):
        y = erf32(x)
    exact = np.array([math.erf(float(v)) for v in x])
    assert np.abs(y - exact).max() < 2e-7
    assert np.isnan(erf32(np.array([np.nan], np.float32)))[0]


def _session(nodes, weights, shape, outputs=("y",)):
    kept = [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        kept,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return gpurt.InferenceSession(model.SerializeToString(), providers=["cpu"]), model


def _network():
    nodes = [
        node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
        node("HardSwish", ["a"], ["h"]),
        node("Mul", ["h", "two"], ["m"]),
        node("Add", ["m", "half"], ["g"]),
        node("Conv", ["g", "d"], ["e"], group=24, pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["e", "s", "t", "t", "s"], ["n"]),
        node("Gelu", ["n"], ["r"]),
        node("Conv", ["r", "p"], ["q"]),
        node("Add", ["q", "g"], ["z"]),
        node("Relu", ["z"], ["k"]),
        node("Concat", ["k", "n"], ["c"], axis=1),
        node("MaxPool", ["c"], ["o"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["o"], ["mean"]),
        node("Sigmoid", ["mean"], ["gate"]),
        node("Mul", ["o", "gate"], ["y"]),
    ]
    weights = {
        "w": _normal(24, 3, 3, 3), "b": _normal(24), "d": _normal(24, 1, 3, 3), "p": _normal(24, 24, 1, 1) / 5,
        "s": np.abs(_normal(24)) + 1, "t": _normal(24), "two": [1.7], "half": [0.5],
    }  # fmt: skip
    return nodes, weights


def test_a_network_yields_what_the_reference_does_in_dense_memory():
    session, model = _session(*_network(), [None] * 4, ("y", "g"))
    reference = ReferenceEvaluator(model)
    for shape in [(1, 3, 40, 36), (2, 3, 9, 10), (1, 3, 40, 36)]:
        x = _normal(*shape)
        for got, expected in zip(session.run(None, {"x": x}), reference.run(None, {"x": x}), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
            assert got.flags.c_contiguous
            assert got.flags.writeable


@pytest.mark.parametrize("size", [(7, 9), (60, 70), (40, 400)])
def test_scales_by_channel_over_blocks(size):
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("MaxPool", ["c"], ["m"], kernel_shape=[2, 1]),
        node("BatchNormalization", ["m", "s", "t", "t", "s"], ["n"]),
        node("Add", ["n", "m"], ["a"]),
        node("Mul", ["a", "u"], ["b"]),
        node("LeakyRelu", ["b"], ["y"]),
    ]
    scale, shift = np.abs(_normal(12)) + 1, _normal(12)
    weights = {"w": _normal(12, 3, 1, 1), "s": scale, "t": shift, "u": shift.reshape(12, 1, 1)}
    session, model = _session(nodes, weights, [None] * 4)
    x = _normal(1, 3, *size)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_results_stay_when_the_memory_of_a_run_is_used_again():
    session, _ = _session(*_network(), [None] * 4, ("y", "g"))
    first = session.run(None, {"x": _normal(1, 3, 40, 36)})
    kept = [r.copy() for r in first]
    for seed in range(3):
        session.run(None, {"x": _normal(1, 3, 40, 36, seed=seed)})
    for now, then in zip(first, kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_runs_of_several_threads_do_not_share_memory():
    session, _ = _session(*_network(), [None] * 4)
    feeds = [_normal(1, 3, 40, 36, seed=seed) for seed in range(8)]
    expected = [session.run(None, {"x": x})[0] for x in feeds]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: session.run(None, {"x": x})[0], feeds * 4))
    for i, y in enumerate(got):
        np.testing.assert_array_equal(y, expected[i % len(feeds)])


def test_memory_is_handed_out_again_only_when_no_view_of_it_is_left():
    memory = Recycler()
    count = LEAST
    a = memory.empty((count,))
    place = a.ctypes.data
    assert place % 64 == 0
    view = a[5:].reshape(1, -1).T
    del a
    assert memory.empty((count,)).ctypes.data != place
    del view
    again = [memory.empty((2, count // 2)) for _ in range(2)]
    assert place in {x.ctypes.data for x in again}
    assert len({x.ctypes.data for x in again}) == 2
    held = memory.nbytes
    del again
    for _ in range(5):
        memory.empty((count - 7,)).fill(1)
    assert memory.nbytes == held


def test_a_piece_that_is_far_too_large_is_not_used():
    memory = Recycler()
    memory.empty((100 * LEAST,))
    assert memory.nbytes > 400 * LEAST
    memory.empty((LEAST,))
    assert memory.nbytes > 404 * LEAST


def test_trim_frees_what_no_array_uses():
    session, _ = _session(*_network(), [None] * 4)
    x = _normal(1, 3, 120, 120)
    y = session.run(None, {"x": x})[0]
    kept = y.copy()
    assert session.trim() > y.nbytes
    assert session.trim() == 0
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], kept)
    np.testing.assert_array_equal(y, kept)


def test_memory_goes_with_the_session():
    session, _ = _session(*_network(), [None] * 4)
    y = session.run(None, {"x": _normal(1, 3, 200, 200)})[0]
    owner = y
    while owner.base is not None:
        owner = owner.base
    gone = weakref.ref(owner)
    del session, y, owner
    gc.collect()
    assert gone() is None


def test_values_are_let_go_at_their_last_use(monkeypatch):
    seen = []
    alive = []

    def watched(x, **_):
        alive.append(sum(ref() is not None for ref in seen))
        y = np.abs(x)
        seen.append(weakref.ref(y))
        return y

    kernel = replace(lookup("", "Hardmax"), fn=watched)
    monkeypatch.setattr(
        "gpurt_cpu.provider.lookup", lambda domain, op: kernel if op == "Hardmax" else lookup(domain, op)
    )
    names = ["x", *"abcde", "y"]
    session, _ = _session([node("Hardmax", [a], [b]) for a, b in pairwise(names)], {}, [3, 3])
    session.run(None, {"x": np.eye(3, dtype=np.float32)})
    assert len(alive) == 6
    assert max(alive) <= 1
