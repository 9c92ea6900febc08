"""Operators that draw random numbers: seeds, types, shapes, and whether the draws are distributed as they should."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

N = 20_000  # draws: the mean of so many lies within 5 standard errors, 0.035 of the spread, for these seeds for certain
SIGMA = 5 / np.sqrt(N)


def session(op, inputs=(), constants=(), outputs=1, **attributes):
    names = [*dict(inputs), *dict(constants)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], "it", **attributes)
    ins = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in dict(inputs).items()
    ]
    weights = [numpy_helper.from_array(v, k) for k, v in dict(constants).items()]
    graph = helper.make_graph([node], "g", ins, [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    return gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])


HALF = np.full(N, 0.5, np.float32)
LIKE = np.zeros(N, np.float32)
ODDS = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
ON = {"ratio": np.array(0.25, np.float32), "on": np.array(True)}
# operator -> inputs, constants, attributes
CASES = {
    "RandomNormal": ({}, {}, {"shape": [N]}),
    "RandomUniform": ({}, {}, {"shape": [N]}),
    "RandomNormalLike": ({"x": LIKE}, {}, {}),
    "RandomUniformLike": ({"x": LIKE}, {}, {}),
    "Bernoulli": ({"x": HALF}, {}, {}),
    "Multinomial": ({"x": ODDS}, {}, {"sample_size": N}),
    "Dropout": ({"x": HALF}, ON, {}),
}


def draw(op, seed=None, runs=1, **more):
    inputs, constants, attributes = CASES[op]
    if seed is not None:
        more["seed"] = seed if op == "Dropout" else float(seed)
    made = session(op, inputs, constants, **attributes, **more)
    return [made.run(None, inputs)[0] for _ in range(runs)]


@pytest.mark.parametrize("op", list(CASES))
def test_a_seed_gives_the_same_in_every_session(op):
    assert np.array_equal(draw(op, 7)[0], draw(op, 7)[0])
    assert not np.array_equal(draw(op, 7)[0], draw(op, 8)[0])


@pytest.mark.parametrize("op", list(CASES))
def test_without_a_seed_every_run_and_every_session_draws_anew(op):
    first, second = draw(op, runs=2)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, draw(op)[0])


@pytest.mark.parametrize("op", list(CASES))
def test_constant_inputs_are_not_folded_into_one_draw(op):
    inputs, constants, attributes = CASES[op]
    made = session(op, {}, {**inputs, **constants}, **attributes)
    assert not np.array_equal(made.run(None, {})[0], made.run(None, {})[0])


@pytest.mark.parametrize("op", ["RandomNormal", "RandomNormalLike"])
@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (-3.0, 0.5)])
def test_normal(op, mean, scale):
    (y,) = draw(op, 1, mean=mean, scale=scale)
    assert y.dtype == np.float32
    assert abs(y.mean() - mean) < SIGMA * scale
    assert abs(y.std() - scale) < SIGMA * scale
    within = [np.mean(abs(y - mean) < k * scale) for k in (1, 2, 3)]
    np.testing.assert_allclose(within, [0.6827, 0.9545, 0.9973], atol=0.02)


@pytest.mark.parametrize("op", ["RandomUniform", "RandomUniformLike"])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-2.0, 6.0)])
def test_uniform(op, low, high):
    (y,) = draw(op, 1, low=low, high=high)
    assert low <= y.min()
    assert y.max() <= high
    counts, _ = np.histogram(y, bins=10, range=(low, high))
    np.testing.assert_allclose(counts / N, 0.1, atol=0.015)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_bernoulli(p):
    x = np.full((N // 4, 4), p, np.float32)
    (y,) = session("Bernoulli", {"x": x}, seed=3.0).run(None, {"x": x})
    assert y.shape == x.shape
    assert set(np.unique(y)) <= {0.0, 1.0}
    assert abs(y.mean() - p) <= SIGMA * np.sqrt(p * (1 - p))


def test_multinomial_takes_log_odds_of_each_row():
    x = np.log(np.array([[0.2, 0.5, 0.3], [7.0, 1.0, 2.0], [1e-30, 1.0, 1e-30]], np.float32))
    (y,) = session("Multinomial", {"x": x}, sample_size=N, seed=3.0).run(None, {"x": x})
    assert y.shape == (3, N)
    assert y.dtype == np.int32
    shares = [np.bincount(row, minlength=3) / N for row in y]
    np.testing.assert_allclose(shares, [[0.2, 0.5, 0.3], [0.7, 0.1, 0.2], [0, 1, 0]], atol=0.02)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.9])
def test_dropout_in_training_keeps_the_mean(ratio):
    x = np.full((N // 4, 4), 3.0, np.float32)
    constants = {"ratio": np.array(ratio, np.float32), "on": np.array(True)}
    y, mask = session("Dropout", {"x": x}, constants, outputs=2, seed=5).run(None, {"x": x})
    assert mask.dtype == np.bool_
    assert abs(mask.mean() - (1 - ratio)) <= SIGMA
    np.testing.assert_allclose(y, np.where(mask, 3 / (1 - ratio), 0), rtol=1e-6)


def test_dropout_in_inference_is_the_input():
    constants = {"ratio": np.array(0.5, np.float32), "on": np.array(False)}
    y, mask = session("Dropout", {"x": HALF}, constants, outputs=2).run(None, {"x": HALF})
    assert np.array_equal(y, HALF)
    assert mask.all()


TYPES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16, TensorProto.DOUBLE: np.float64}


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_types(op, code):
    (y,) = draw(op, 1, dtype=code)
    assert y.dtype == TYPES[code]
    assert y.shape == (N,)


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike", "Bernoulli", "Dropout"])
def test_without_a_type_it_is_that_of_the_input(op):
    x = np.full((2, 0, 3), 0.5, np.float16)
    (y,) = session(op, {"x": x}).run(None, {"x": x})
    assert y.dtype == np.float16
    assert y.shape == (2, 0, 3)


def test_integers_of_bernoulli_and_multinomial():
    (y,) = draw("Bernoulli", 1, dtype=TensorProto.INT32)
    assert y.dtype == np.int32
    (y,) = draw("Multinomial", 1, dtype=TensorProto.INT64)
    assert y.dtype == np.int64


def test_on_a_device_the_same_seed_gives_the_same():
    if not gpurt.registry.status("opencl").usable:
        pytest.skip("no OpenCL device")
    node = helper.make_node("RandomNormal", [], ["r"], "it", shape=[50], seed=4.0)
    add = helper.make_node("Add", ["r", "x"], ["y"])
    info = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [50])]
    graph = helper.make_graph([node, add], "g", info, [onnx.ValueInfoProto(name="y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    x = np.ones(50, np.float32)
    host, device = (
        gpurt.InferenceSession(model, GREEDY, providers=p).run(None, {"x": x})[0] for p in (["cpu"], ["opencl", "cpu"])
    )
    np.testing.assert_allclose(host, device)
