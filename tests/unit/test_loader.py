"""The loader: canonical form of good models, and one typed error with a place for each kind of bad one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from gpurt.errors import InvalidGraph, InvalidProtobuf
from gpurt.loader import LoadedModel, Views, load

info = helper.make_tensor_value_info
node = helper.make_node
X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def make(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("y",),
    initializers: dict[str, np.ndarray] | None = None,
    opset: int = 21,
    ir_version: int = 8,
    **options: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, 1, [2, 3]) for name in inputs],
        [info(name, 1, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (initializers or {}).items()],
    )
    imports = [helper.make_opsetid("", opset), *options.pop("imports", [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, **options)


def run(model: LoadedModel, *feeds: np.ndarray) -> list[np.ndarray]:
    feed = dict(zip([value.name for value in model.model.graph.inputs], feeds, strict=True))
    return ReferenceEvaluator(ir.to_proto(model.model)).run(None, feed)


def all_names(model: LoadedModel) -> list[str]:
    names = []
    for graph in (model.model.graph, *model.model.graph.subgraphs()):
        names += [value.name for value in graph.inputs]
        names += [value.name for value in graph.initializers.values() if not value.is_graph_input()]
        names += [value.name for item in graph for value in item.outputs if value.name]
    return names


# structure


def test_unknown_operator_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidGraph, match=r"no operator 'Reluu'.*did you mean 'Relu'") as caught:
        load(make([node("Reluu", ["x"], ["y"], name="r")]))
    assert (caught.value.node, caught.value.op) == ("r", "Reluu")
    with pytest.raises(InvalidGraph, match="exists since opset 20"):
        load(make([node("Gelu", ["x"], ["y"])], opset=13))


def test_custom_domains_stay() -> None:
    (kept,) = load(make([node("Magic", ["x"], ["y"], domain="com.example")])).model.graph
    assert (kept.domain, kept.op_type) == ("com.example", "Magic")


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([node("Relu", ["nope"], ["y"], name="n")], "'nope' is defined nowhere.*node 'n'"),
        ([node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])], "'y' is defined twice"),
        ([node("Relu", ["x"], ["x"])], "'x' is defined twice"),
        ([node("Relu", ["x"], ["z"])], "'y'.*produced by nothing"),
        ([node("Add", ["x"], ["y"])], "1 inputs, where opset 21 allows 2 to 2"),
        ([node("Relu", ["x"], ["y"], alpah=1.0)], "unknown attribute 'alpah'"),
        ([node("Softmax", ["x"], ["y"], axis=1.0)], "'axis' is of type FLOAT, not INT"),
        ([node("Concat", ["x", "x"], ["y"])], "'axis' is missing"),
        ([node("Relu", ["x"], ["y"], domain="ai.onnx.ml")], "nothing imports the domain"),
        ([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])], "cycle"),
    ],
    ids=[
        "undefined",
        "twice",
        "input again",
        "output",
        "arity",
        "attribute",
        "attribute type",
        "required",
        "import",
        "cycle",
    ],
)
def test_broken_graphs(nodes: list[onnx.NodeProto], match: str) -> None:
    with pytest.raises(InvalidGraph, match=match):
        load(make(nodes))


def test_unsorted_nodes_are_sorted() -> None:
    loaded = load(make([node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])]))
    assert [n.op_type for n in loaded.model.graph] == ["Neg", "Relu"]


def test_a_body_may_read_what_comes_later() -> None:
    body = helper.make_graph([node("Relu", ["late"], ["r"])], "b", [], [info("r", 1, None)])
    nodes = [node("If", ["c"], ["y"], then_branch=body, else_branch=body), node("Neg", ["x"], ["late"])]
    loaded = load(make(nodes, initializers={"c": np.array(True)}))
    assert [n.op_type for n in loaded.model.graph] == ["Neg", "If"]


def nested(depth: int) -> onnx.ModelProto:
    leaf = helper.make_graph([node("Neg", ["x"], ["y"])], "g", [], [info("y", 1, None)])
    model = make([], inputs=())
    model.graph.input.extend([info("x", 1, [2, 3]), info("c", 9, [])])
    graph = model.graph
    for _ in range(depth):  # in place: copies of messages end at a depth of 100
        branch = graph.node.add(op_type="If", input=["c"], output=["y"])
        branch.attribute.append(helper.make_attribute("else_branch", leaf))
        graph = branch.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
        graph.name = "g"
        graph.output.append(info("y", 1, None))
    graph.node.append(node("Neg", ["x"], ["y"]))
    return model


def test_deep_nesting() -> None:
    names = all_names(load(nested(10)))
    assert len(names) == len(set(names))
    with pytest.raises(InvalidGraph, match="nested deeper than 64"):
        load(nested(70))
    with pytest.raises(InvalidProtobuf):
        load(nested(70).SerializeToString())  # protobuf reads no deeper than 100 messages


# interface


def test_initializers_before_ir_4_are_no_inputs() -> None:
    def model(version: int) -> onnx.ModelProto:
        return make(
            [node("Add", ["x", "w"], ["y"])], inputs=("x", "w"), initializers={"w": X}, ir_version=version, opset=9
        )

    old, new = load(model(3)), load(model(4))
    assert ([i.name for i in old.inputs], old.overridable) == (["x"], frozenset())
    assert ([i.name for i in new.inputs], new.overridable) == (["x", "w"], {"w"})
    assert Views().graph(old.model.graph).initializers["w"].const is not None
    view = Views().graph(new.model.graph)
    assert "w" not in view.initializers
    assert view.inputs[1].const is None


def test_maps_and_sequences_are_kept_aside() -> None:
    zipmap = node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[1, 2, 3])
    model = make([zipmap], imports=[helper.make_opsetid("ai.onnx.ml", 1)])
    kind = model.graph.output[0].type
    kind.Clear()
    item = kind.sequence_type.elem_type.map_type
    item.key_type = TensorProto.INT64
    item.value_type.tensor_type.elem_type = TensorProto.FLOAT
    loaded = load(model)
    assert loaded.outputs[0].type == "seq(map(int64,tensor(float)))"
    assert loaded.inputs[0].type == "tensor(float)"
    assert loaded.inputs[0].shape == (2, 3)


def test_metadata() -> None:
    model = make(
        [node("Relu", ["x"], ["y"])], producer_name="p", producer_version="1", doc_string="words", model_version=4
    )
    helper.set_model_props(model, {"k": "v"})
    model.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(1, ["batch", None]))
    loaded = load(model)
    meta = loaded.metadata
    assert (meta.producer_name, meta.producer_version, meta.description, meta.version) == ("p", "1", "words", 4)
    assert meta.custom_metadata_map == {"k": "v"}
    assert loaded.inputs[0].shape == ("batch", None)


def test_outputs_that_no_node_makes() -> None:
    model = make([node("Relu", ["x"], ["y"])], outputs=("x", "w", "y", "c", "y"), initializers={"w": X})
    model.graph.node.insert(0, node("Constant", [], ["c"], value_float=2.0))
    loaded = load(model)
    assert [out.name for out in loaded.outputs] == ["x", "w", "y", "c", "y"]
    values = list(loaded.model.graph.outputs)
    assert len(set(values)) == 5
    assert all(value.producer() is not None for value in values)
    assert [value.name for value in values][2:4] == ["y", "c"]
    relu = np.maximum(X, 0)
    for got, want in zip(run(loaded, X), (X, X, relu, np.float32(2), relu), strict=True):
        np.testing.assert_array_equal(got, want)


def test_branches_that_return_outer_values() -> None:
    branches = [
        helper.make_graph([], name, [], [info(value, 1, None)]) for name, value in (("then", "x"), ("else", "r"))
    ]
    nodes = [node("Relu", ["x"], ["r"]), node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    for cond, want in ((True, X), (False, np.maximum(X, 0))):
        loaded = load(make(nodes, initializers={"c": np.array(cond)}))
        for body in loaded.model.graph.subgraphs():
            assert all(out.producer() is not None and out.graph is body for out in body.outputs)
        np.testing.assert_array_equal(run(loaded, X)[0], want)


def test_names_are_unique_everywhere() -> None:
    def branch(op: str) -> onnx.GraphProto:
        made = helper.make_graph(
            [node(op, ["w"], ["a"]), node("Add", ["a", "w_1"], ["y"])], "b", [], [info("y", 1, None)]
        )
        made.initializer.extend([numpy_helper.from_array(X, "w"), numpy_helper.from_array(X, "w_1")])
        return made

    nodes = [
        node("Add", ["x", "w"], ["a"]),
        node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")),
    ]
    loaded = load(make(nodes, initializers={"c": np.array(True), "w": X}))
    names = all_names(loaded)
    assert len(names) == len(set(names))
    nodes_seen = [n.name for n in loaded.model.graph.all_nodes()]
    assert len(nodes_seen) == len(set(nodes_seen))
    assert [value.name for value in loaded.model.graph.outputs] == ["y"]
    np.testing.assert_array_equal(run(loaded, X)[0], np.maximum(X, 0) + X)


# functions


def function(
    name: str, nodes: Sequence[onnx.NodeProto], inputs: Sequence[str] = ("a",), outputs: Sequence[str] = ("b",)
) -> onnx.FunctionProto:
    return helper.make_function(
        "f", name, inputs, outputs, nodes, [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    )


def with_functions(nodes: Sequence[onnx.NodeProto], *functions: onnx.FunctionProto) -> onnx.ModelProto:
    return make(nodes, imports=[helper.make_opsetid("f", 1)], functions=functions)


def test_functions_are_inlined() -> None:
    inner = function("Inner", [node("Constant", [], ["two"], value_float=2.0), node("Mul", ["a", "two"], ["b"])])
    outer = function("Outer", [node("Inner", ["a"], ["m"], domain="f"), node("Inner", ["m"], ["b"], domain="f")])
    loaded = load(
        with_functions([node("Outer", ["x"], ["z"], domain="f"), node("Outer", ["z"], ["y"], domain="f")], inner, outer)
    )
    assert not loaded.model.functions
    assert [n.op_type for n in loaded.model.graph] == ["Mul"] * 4
    assert len(set(all_names(loaded))) == len(all_names(loaded))
    np.testing.assert_array_equal(run(loaded, X)[0], X * 16)


def test_function_that_passes_its_input_through() -> None:
    both = function("Both", [node("Relu", ["a"], ["b"])], outputs=("a", "b"))
    loaded = load(with_functions([node("Both", ["x"], ["p", "q"], domain="f"), node("Add", ["p", "q"], ["y"])], both))
    assert [value.name for value in loaded.model.graph.inputs] == ["x"]
    np.testing.assert_array_equal(run(loaded, X)[0], X + np.maximum(X, 0))


def test_function_with_optional_ends() -> None:
    clip = function(
        "MyClip",
        [node("Clip", ["a", "low", "high"], ["b"]), node("Neg", ["b"], ["n"])],
        ("a", "low", "high"),
        ("b", "n"),
    )
    model = with_functions([node("MyClip", ["x", "zero"], ["y"], domain="f")], clip)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0), "zero"))
    np.testing.assert_array_equal(run(load(model), X)[0], np.maximum(X, 0))


def test_function_calls_are_checked() -> None:
    relu = function("R", [node("Relu", ["a"], ["b"])])
    with pytest.raises(InvalidGraph, match="the function has 1 and 1"):
        load(with_functions([node("R", ["x", "x"], ["y"], domain="f")], relu))
    loop = function("L", [node("L", ["a"], ["b"], domain="f")])
    with pytest.raises(InvalidGraph, match=r"circle: f\.L -> f\.L"):
        load(with_functions([node("L", ["x"], ["y"], domain="f")], loop))
    with pytest.raises(InvalidGraph, match="defined twice"):
        load(with_functions([node("R", ["x"], ["y"], domain="f")], relu, relu))


def test_functions_cannot_explode() -> None:
    layers = [function("F0", [node("Relu", ["a"], ["b"])])]
    for i in range(1, 40):
        calls = [node(f"F{i - 1}", ["a"], ["m"], domain="f"), node(f"F{i - 1}", ["m"], ["b"], domain="f")]
        layers.append(function(f"F{i}", calls))
    with pytest.raises(InvalidGraph, match="nodes once its functions are inlined"):
        load(with_functions([node("F39", ["x"], ["y"], domain="f")], *layers))
