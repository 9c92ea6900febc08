"""What gpurt cannot run says so when the session is made: which node, operator, version and types; what would do."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt

n = helper.make_node
F32, I32, I64, BOOL, STRING = (getattr(TensorProto, t) for t in ("FLOAT", "INT32", "INT64", "BOOL", "STRING"))


def session(nodes, inputs, opset=21, domains=()):
    ins = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    graph = helper.make_graph(nodes, "test", ins, [onnx.ValueInfoProto(name="y")])
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])


# id -> node, inputs, what the message must say besides the node and the operator
TYPES = {
    "Add of strings": (n("Add", ["a", "a"], ["y"], "it"), {"a": (STRING, [2])}, ["string", "input 0", "float"]),
    "Add of two types": (n("Add", ["a", "b"], ["y"], "it"), {"a": (F32, [2]), "b": (I64, [2])},
                         ["inputs 0 and 1", "float", "int64", "Cast"]),
    "Conv of integers": (n("Conv", ["a", "b"], ["y"], "it"), {"a": (I32, [1, 1, 4]), "b": (I32, [1, 1, 2])},
                         ["int32", "double, float, float16"]),
    "Sqrt of bool": (n("Sqrt", ["a"], ["y"], "it"), {"a": (BOOL, [2])}, ["bool", "version 13"]),
    "And of floats": (n("And", ["a", "a"], ["y"], "it"), {"a": (F32, [2])}, ["float", "bool"]),
    "Gather by floats": (n("Gather", ["a", "b"], ["y"], "it"), {"a": (F32, [2]), "b": (F32, [1])},
                         ["input 1 (indices)", "int32, int64"]),
    "Where on floats": (n("Where", ["a", "a", "a"], ["y"], "it"), {"a": (F32, [2])}, ["input 0 (condition)", "bool"]),
    "Reshape by int32": (n("Reshape", ["a", "b"], ["y"], "it"), {"a": (F32, [2]), "b": (I32, [1])}, ["int32", "int64"]),
}  # fmt: skip


@pytest.mark.parametrize("case", list(TYPES))
def test_types_that_the_standard_does_not_allow(case):
    node, inputs, words = TYPES[case]
    with pytest.raises(gpurt.NotImplemented) as e:
        session([node], inputs)
    text = str(e.value)
    assert e.value.node == "it"
    assert e.value.op == node.op_type
    assert e.value.remedy
    for word in (*words, "version", f"cpu: {node.op_type} takes"):
        assert word in text, text


MODES = {
    "auto_pad": n("Conv", ["a", "a"], ["y"], "it", auto_pad="SAME"),
    "mode": n("Pad", ["a", "p"], ["y"], "it", mode="symmetric"),
    "direction": n("LSTM", ["a", "a", "a"], ["y"], "it", hidden_size=1, direction="both"),
    "reduction": n("ScatterElements", ["a", "p", "a"], ["y"], "it", reduction="avg"),
}


@pytest.mark.parametrize("attribute", list(MODES))
def test_modes_that_do_not_exist(attribute):
    with pytest.raises(gpurt.NotImplemented, match=f"has no {attribute} '.*'; it has ") as e:
        session([MODES[attribute]], {"a": (F32, [1, 1, 4]), "p": (I64, [6])})
    assert e.value.node == "it"


@pytest.mark.parametrize(
    ("node", "opset", "words"),
    [
        (n("Relu", ["a"], ["y"], "it", slope=1.0), 21, "unknown attribute 'slope'"),
        (n("Softmax", ["a"], ["y"], "it", axis=1.0), 21, "'axis' is of type FLOAT, not INT"),
        (n("Transpose", ["a", "a"], ["y"], "it"), 21, "2 inputs, where opset 21 allows 1 to 1"),
        (n("Concat", ["a"], ["y"], "it"), 21, "'axis' is missing"),
        (n("Gelu", ["a"], ["y"], "it"), 13, "Gelu exists since opset 20, but the model imports opset 13"),
        (n("Rleu", ["a"], ["y"], "it"), 21, "no operator 'Rleu'; did you mean 'Relu'"),
    ],
    ids=["attribute", "attribute type", "inputs", "missing", "too new", "misspelt"],
)
def test_operators_that_the_standard_does_not_have_so(node, opset, words):
    with pytest.raises(gpurt.InvalidGraph, match=words.replace("(", r"\(")) as e:
        session([node], {"a": (F32, [2])}, opset=opset)
    assert e.value.node == "it"
    assert e.value.op == node.op_type


def test_an_operator_of_an_unknown_domain():
    node = n("Frobnicate", ["a"], ["y"], "it", domain="org.example")
    with pytest.raises(gpurt.NotImplemented, match=r"no NumPy kernel for org\.example\.Frobnicate") as e:
        session([node], {"a": (F32, [2])}, domains=["org.example"])
    assert e.value.op == "org.example.Frobnicate"
    assert "float32" in str(e.value)
    assert "Add a provider" in e.value.remedy


def test_a_model_from_the_future():
    with pytest.raises(gpurt.NotImplemented, match=r"imports opset 999 of 'ai\.onnx', and gpurt knows opsets up to"):
        session([n("Relu", ["a"], ["y"])], {"a": (F32, [2])}, opset=999)


def test_inside_a_body_the_node_is_named_too():
    body = helper.make_graph(
        [n("Sqrt", ["s"], ["t"], "inner")], "b", [], [helper.make_tensor_value_info("t", STRING, None)]
    )
    other = helper.make_graph(
        [n("Identity", ["s"], ["u"], "other")], "c", [], [helper.make_tensor_value_info("u", STRING, None)]
    )
    node = n("If", ["c"], ["y"], "outer", then_branch=body, else_branch=other)
    with pytest.raises(gpurt.NotImplemented, match="string") as e:
        session([node], {"c": (BOOL, []), "s": (STRING, [2])})
    assert e.value.node == "inner"


def test_an_element_type_that_numpy_does_not_have():
    info = helper.make_tensor_value_info("a", F32, [2])
    info.type.tensor_type.elem_type = 77
    graph = helper.make_graph(
        [n("Identity", ["a"], ["y"])], "g", [info], [helper.make_tensor_value_info("y", F32, [2])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    with pytest.raises(gpurt.InvalidGraph, match="element type that gpurt does not know: 77"):
        gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])


def test_what_is_refused_on_a_device_keeps_its_reason():
    from gpurt.device.handed_on import HANDED_ON
    from gpurt.device.provider import DeviceProvider
    from gpurt.graph.view import NodeView

    DeviceProvider.supported()
    node = NodeView("NonZero", (), (), name="it")
    assert DeviceProvider.table.refusal(node, None) == HANDED_ON["", "NonZero"]


def test_constants_of_wrong_types_are_found_before_they_are_folded():
    weights = [numpy_helper.from_array(np.array(["a", "b"], dtype=object), "w")]
    graph = helper.make_graph(
        [n("Neg", ["w"], ["y"], "it")], "g", [], [helper.make_tensor_value_info("y", STRING, [2])], weights
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    with pytest.raises(gpurt.NotImplemented, match="Neg takes no string"):
        gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])
