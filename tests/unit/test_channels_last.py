"""Operators with the channels last: shapes and the host's kernels, against ONNX's own over transposed data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

import gpurt
from gpurt import support
from gpurt.graph.channels_last import DOMAIN, OPERATORS, to_first, to_last
from gpurt.graph.view import NodeView, ValueView
from gpurt.infer import infer
from gpurt.infer.types import result_dtypes
from gpurt.spec import Spec
from gpurt_cpu.ops import lookup, operators

CASES = {
    "1x1": ("Conv", (2, 6, 5, 7), (4, 6, 1, 1), True, {}),
    "1x1 of stride 2": ("Conv", (1, 6, 5, 7), (4, 6, 1, 1), False, {"strides": (2, 2)}),
    "1x1 padded": ("Conv", (1, 6, 5, 7), (4, 6, 1, 1), True, {"pads": (1, 0, 0, 1)}),
    "3x3": ("Conv", (2, 4, 9, 8), (8, 4, 3, 3), True, {"pads": (1, 1, 1, 1), "strides": (2, 1)}),
    "same": ("Conv", (1, 4, 9, 8), (8, 4, 3, 3), True, {"auto_pad": "SAME_LOWER", "dilations": (2, 2)}),
    "depthwise": ("Conv", (1, 8, 9, 8), (8, 1, 5, 5), True, {"group": 8, "pads": (2, 2, 2, 2)}),
    "grouped": ("Conv", (1, 8, 6, 6), (12, 2, 3, 3), False, {"group": 4}),
    "1-D": ("Conv", (2, 3, 17), (5, 3, 4), True, {"strides": (3,), "pads": (1, 2)}),
    "3-D": ("Conv", (1, 2, 5, 6, 7), (4, 2, 3, 3, 3), True, {"pads": (1,) * 6}),
    "transposed": ("ConvTranspose", (1, 6, 5, 4), (6, 3, 2, 2), True, {"strides": (2, 2)}),
    "transposed groups": ("ConvTranspose", (1, 6, 5, 4), (6, 2, 3, 3), False, {"group": 2, "output_padding": (1, 0),
                                                                                "strides": (2, 1)}),
    "max": ("MaxPool", (2, 3, 9, 8), None, False, {"kernel_shape": (3, 2), "strides": (2, 2), "ceil_mode": 1}),
    "max 1-D": ("MaxPool", (1, 3, 12), None, False, {"kernel_shape": (3,), "pads": (1, 1)}),
    "average": ("AveragePool", (1, 3, 9, 8), None, False, {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}),
    "average with pads": ("AveragePool", (1, 3, 9, 8), None, False,
                          {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}),
    "local response": ("LRN", (1, 7, 4, 5), None, False, {"size": 3}),
    "instances": ("InstanceNormalization", (2, 4, 5, 6), (4,), True, {}),
    "groups": ("GroupNormalization", (2, 6, 5, 4), (6,), True, {"num_groups": 3}),
    "lp": ("LpPool", (1, 3, 9, 8), None, False, {"kernel_shape": (2, 2), "p": 3}),
}  # fmt: skip


def arrays(name):
    op_type, shape, weights, biased, attrs = CASES[name]
    draw = np.random.default_rng(7)
    made = [draw.standard_normal(shape).astype(np.float32)]
    if weights:
        made.append(draw.standard_normal(weights).astype(np.float32))
        filters = weights[1] * attrs.get("group", 1) if op_type == "ConvTranspose" else weights[0]
        if biased:
            made.append(draw.standard_normal(filters).astype(np.float32))
    return op_type, made, attrs


def last(x):
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


@pytest.mark.parametrize("name", CASES)
def test_the_host_computes_what_onnx_does_on_transposed_data(name):
    op_type, inputs, attrs = arrays(name)
    expected = lookup("", op_type).fn(*inputs, **attrs)
    given = [last(inputs[0]), *inputs[1:]]
    found = lookup(DOMAIN, op_type).fn(*given, **attrs)
    np.testing.assert_allclose(found, last(expected), rtol=1e-5, atol=1e-5)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_onnx_permuted(name):
    op_type, inputs, attrs = arrays(name)
    views = tuple(ValueView(f"v{i}", a.dtype, a.shape) for i, a in enumerate(inputs))
    node = NodeView(op_type, views, (ValueView("y", np.dtype(np.float32)),), attrs, DOMAIN, "it", 1)
    specs = [Spec(a.dtype, a.shape) for a in inputs]
    expected = infer(replace(node, domain=""), specs)[0].shape
    (found,) = infer(node, [Spec(specs[0].dtype, last(inputs[0]).shape), *specs[1:]])
    assert found.shape == tuple(expected[a] for a in to_last(len(expected)))
    assert result_dtypes(node, [s.dtype for s in specs]) == [np.dtype(np.float32)]


def test_a_window_that_does_not_fit_is_an_error():
    views = (ValueView("x"), ValueView("w"))
    node = NodeView("Conv", views, (ValueView("y"),), {}, DOMAIN)
    with pytest.raises(ValueError, match="4 channels"):
        infer(node, [Spec(np.dtype(np.float32), (1, 8, 8, 4)), Spec(np.dtype(np.float32), (4, 3, 3, 3))])
    with pytest.raises(ValueError, match="no spatial axes"):
        infer(node, [Spec(np.dtype(np.float32), (8, 4)), Spec(np.dtype(np.float32), (4, 3))])


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_the_permutations_undo_each_other(rank):
    assert [to_last(rank)[a] for a in to_first(rank)] == list(range(rank))
    assert to_last(4) == (0, 2, 3, 1)
    assert to_first(4) == (0, 3, 1, 2)


def test_the_host_has_all_of_them_and_tables_for_people_none():
    assert {name for domain, name in operators() if domain == DOMAIN} == OPERATORS
    assert all(o.domain != DOMAIN for o in support.operators(["cpu", "opencl"]))


def test_half_precision_is_rounded_once():
    op_type, inputs, attrs = arrays("1x1")
    half = [a.astype(np.float16) for a in inputs]
    found = lookup(DOMAIN, op_type).fn(last(half[0]), *half[1:], **attrs)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, last(lookup("", op_type).fn(*half, **attrs)))


def test_no_file_may_have_them():
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 2])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("MaxPool", ["x"], ["y"], "it", domain=DOMAIN, kernel_shape=[2, 2])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(helper.make_graph([node], "g", [info], [out]), opset_imports=opsets, ir_version=10)
    with pytest.raises(gpurt.InvalidGraph, match="internal to gpurt") as caught:
        gpurt.InferenceSession(model.SerializeToString(), providers=["cpu"])
    assert caught.value.node == "it"
