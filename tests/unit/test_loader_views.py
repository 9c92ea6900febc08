"""Types and views of loaded models, and ONNX's function bodies."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from test_loader import X, all_names, info, make, node, run

from gpurt.loader import Views, expand, has_body, load

# types, views, function bodies of ONNX


def test_values_carry_inferred_types() -> None:
    loaded = load(make([node("Transpose", ["x"], ["t"]), node("MatMul", ["x", "t"], ["y"])]))
    view = Views().graph(loaded.model.graph)
    assert [n.outputs[0].shape for n in view.nodes] == [(3, 2), (2, 2)]
    assert view.outputs[0].dtype == np.float32


def test_views() -> None:
    body = helper.make_graph([node("Add", ["x", "w"], ["r"])], "b", [], [info("r", 1, None)])
    nodes = [
        node("If", ["c"], ["i"], then_branch=body, else_branch=body),
        node("Clip", ["i", "", "one"], ["k"]),
        node("Transpose", ["k"], ["y"], perm=[1, 0]),
    ]
    start = {"c": np.array(True), "w": X, "one": np.float32(1)}
    loaded = load(make(nodes, initializers={k: np.asarray(v) for k, v in start.items()}))
    views = Views()
    graph = views.graph(loaded.model.graph)
    branch, clip, transpose = graph.nodes
    assert clip.inputs[1] is None
    assert clip.inputs[0] is branch.outputs[0]
    assert transpose.attrs == {"perm": (1, 0)}
    assert transpose.version == 25
    inner = branch.attr("then_branch").nodes[0]
    assert inner.inputs[0] is graph.inputs[0]
    assert inner.inputs[1] is graph.initializers["w"]
    assert views.graph(loaded.model.graph) is graph


def test_string_tensors_are_objects() -> None:
    model = make([node("Equal", ["s", "s"], ["e"]), node("Relu", ["x"], ["y"])])
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", "ü".encode()]))
    const = Views().graph(load(model).model.graph).initializers["s"].const
    assert const is not None
    assert const.dtype == object
    assert const.tolist() == ["a", "ü"]


def test_expansion_replaces_a_node_by_its_body() -> None:
    loaded = load(make([node("Gelu", ["x"], ["g"]), node("Gelu", ["g"], ["y"])]))
    want = run(loaded, X)
    assert has_body("Gelu")
    for item in list(loaded.model.graph):
        expansion = expand(item, loaded.names)
        assert expansion is not None
        expansion.apply()
    assert "Gelu" not in {n.op_type for n in loaded.model.graph}
    assert len(set(all_names(loaded))) == len(all_names(loaded))
    assert all(n.meta["gpurt.origin"] == "Gelu-20" for n in loaded.model.graph)
    np.testing.assert_allclose(run(loaded, X)[0], want[0], rtol=1e-6)


def test_expansion_depends_on_types_and_can_be_dropped() -> None:
    loaded = load(
        make([node("LayerNormalization", ["x", "w"], ["y"], axis=-1)], initializers={"w": np.ones(3, np.float32)})
    )
    (item,) = loaded.model.graph
    uses = len(item.inputs[0].uses())
    expansion = expand(item, loaded.names)
    assert expansion is not None
    expansion.discard()
    assert len(item.inputs[0].uses()) == uses
    assert expand(load(make([node("MatMul", ["x", "x"], ["y"])])).model.graph[0], loaded.names) is None


def test_expansion_sees_what_bodies_capture() -> None:
    body = helper.make_graph([node("Add", ["e", "x"], ["r"])], "b", [info("e", 1, None)], [info("r", 1, None)])
    nodes = [
        node("SequenceConstruct", ["x", "x"], ["s"]),
        node("SequenceMap", ["s"], ["m"], body=body),
        node("SequenceAt", ["m", "one"], ["y"]),
    ]
    loaded = load(make(nodes, initializers={"one": np.array(1)}))
    item = next(n for n in loaded.model.graph if n.op_type == "SequenceMap")
    expansion = expand(item, loaded.names)
    assert expansion is not None
    expansion.apply()
    assert [n.op_type for n in loaded.model.graph if n.op_type == "Loop"]
    np.testing.assert_array_equal(run(loaded, X)[0], X + X)
