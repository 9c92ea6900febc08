"""Global transformations: duplicates, folding, dead code, shapes, branches; and bodies of control flow."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from optimizing import feed, model_of, n, optimized, same_values, values

import gpurt
from gpurt.optimizer import Tools, transformers
from gpurt.optimizer.fold import ConstantFolding
from gpurt.optimizer.transformer import run

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

F32 = TensorProto.FLOAT
M = {"x": (4, 6)}
HALF = {"x": np.ones((4, 6), np.float16)}  # what the simulated provider computes


def i64(*v: int) -> np.ndarray:
    return np.array(v, np.int64)


def test_nodes_that_are_there_twice():
    nodes = [
        n("Mul", ["x", "a"], ["p"], "one"), n("Mul", ["x", "b"], ["q"], "two"), n("Mul", ["x", "c"], ["r"], "three"),
        n("Sum", ["p", "q", "r"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, M, {"a": np.full(1, 2, "f4"), "b": np.full(1, 2, "f4"), "c": np.full(1, 2.5, "f4")})
    ops, report, _ = optimized(model)
    assert ops == ["Mul", "Mul", "Sum"]
    assert [(r.name, r.why) for r in report.removed] == [("two", "the same as one")]
    same_values(model, feed(M))


def test_random_nodes_and_other_attributes_are_not_the_same():
    nodes = [
        n("RandomNormalLike", ["x"], ["p"]), n("RandomNormalLike", ["x"], ["q"]), n("Sub", ["p", "q"], ["y"]),
        n("LeakyRelu", ["x"], ["r"], alpha=0.1), n("LeakyRelu", ["x"], ["s"], alpha=0.2), n("Sub", ["r", "s"], ["z"]),
    ]  # fmt: skip
    assert len(optimized(model_of(nodes, M))[0]) == 6


def test_nothing_is_known_of_other_domains():
    model = model_of([n("Exp", ["x"], ["p"]), n("Exp", ["x"], ["q"]), n("Sub", ["p", "q"], ["y"])], M)
    for node in model.graph.node[:2]:
        node.domain, node.op_type = "dice", "Roll"
    model.opset_import.add(domain="dice", version=1)
    assert optimized(model)[0] == ["Roll", "Roll", "Sub"]


def test_what_cannot_be_computed_is_left_for_the_run():
    bad = branch("then", [n("Gather", ["k", "far"], ["g"]), n("Add", ["x", "g"], ["t"])])
    good = branch("else", [n("Neg", ["x"], ["e"])])
    model = model_of(
        [n("If", ["c"], ["y"], then_branch=bad, else_branch=good)], {"x": (3,), "c": np.array(False)},
        {"k": np.ones(3, "f4"), "far": i64(7)},
    )  # fmt: skip
    session = gpurt.InferenceSession(model, providers=["cpu"])
    np.testing.assert_array_equal(session.run(None, {"x": np.ones(3, "f4"), "c": np.array(False)})[0], -np.ones(3))
    with pytest.raises(gpurt.errors.GpurtError):
        session.run(None, {"x": np.ones(3, "f4"), "c": np.array(True)})


def test_outputs_that_are_the_same_both_stay():
    model = model_of([n("Relu", ["x"], ["y"]), n("Relu", ["x"], ["z"])], M)
    assert optimized(model)[0] == ["Relu", "Relu"]
    same_values(model, feed(M))


def test_folding_is_bounded():
    nodes = [n("Expand", ["k", "s"], ["e"]), n("Add", ["x", "e"], ["y"])]
    model = model_of(nodes, {"x": (1, 8)}, {"k": np.ones(1, "f4"), "s": i64(64, 8)})
    assert optimized(model)[0] == ["Add"]

    for limit in ({"fold_bytes": 1024}, {"fold_total": 1024}, {"fold_seconds": 0.0}):
        _, _, graph = optimized(model, disabled=["ConstantFolding"])
        assert not run(graph, [ConstantFolding()], Tools(None, None, **limit)).removed


def test_dynamic_batch_reshape():
    nodes = [
        n("Shape", ["x"], ["s"]), n("Gather", ["s", "zero"], ["b"]), n("Unsqueeze", ["b", "axis"], ["u"]),
        n("Gather", ["s", "one"], ["c"]), n("Mul", ["c", "four"], ["d"]), n("Unsqueeze", ["d", "axis"], ["v"]),
        n("Concat", ["u", "v", "rest"], ["t"], axis=0), n("Relu", ["x"], ["r"]), n("Reshape", ["r", "t"], ["y"]),
    ]  # fmt: skip
    constants = {"zero": i64(0)[0], "one": i64(1)[0], "four": i64(4)[0], "axis": i64(0), "rest": i64(1)}
    model = model_of(nodes, M, constants)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F32, ["batch", 2, 4]))
    model.graph.ClearField("value_info")
    ops, report, _ = optimized(model)
    assert ops == ["Relu", "Reshape"]
    assert any(r.why.startswith("shape arithmetic") for r in report.removed)
    for batch in (1, 3, 0):
        same_values(model, {"x": np.ones((batch, 2, 4), np.float32)})


def test_an_unknown_dimension_beside_a_copied_one_stays():
    nodes = [
        n("Shape", ["x"], ["s"], end=1), n("Shape", ["u"], ["t"], end=1), n("Concat", ["s", "t", "k"], ["r"], axis=0),
        n("Reshape", ["x", "r"], ["y"]),
    ]  # fmt: skip
    model = model_of(nodes, {"x": (2, 3, 4), "u": (3,)}, {"k": i64(4)})
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F32, ["a", "b", 4]))
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("u", F32, ["c"]))
    assert "Concat" in optimized(model)[0]
    same_values(model, {"x": np.ones((0, 3, 4), np.float32), "u": np.ones(3, np.float32)})


def exported_attention(exporter: str) -> onnx.ModelProto:
    """Self-attention of two heads of 4 over a batch whose size is not known, as torch's exporters write it."""
    split = [n("Transpose", ["qkv"], ["t"], perm=[2, 0, 3, 1, 4])]
    for i, name in enumerate("qkv"):
        split += [n("Gather", ["t", f"i{i}"], [f"{name}4"], axis=0)]
    if exporter == "script":
        keys = [n("Transpose", ["k4"], ["kt"], perm=[0, 1, 3, 2])]
        head = [n("Shape", ["x"], ["sx"]), n("Gather", ["sx", "i0"], ["b"]), n("Unsqueeze", ["b", "zero"], ["b1"]),
                n("Concat", ["b1", "rest"], ["shape"], axis=0), n("Reshape", ["x", "shape"], ["qkv"])]  # fmt: skip
    else:
        keys = [n("Reshape", ["k4", "flat"], ["k3"], allowzero=1), n("Transpose", ["k3"], ["k3t"], perm=[0, 2, 1]),
                n("Shape", ["x"], ["b1"], end=1), n("Concat", ["b1", "heads"], ["shape"], axis=0),
                n("Reshape", ["k3t", "shape"], ["kt"], allowzero=1)]  # fmt: skip
        head = [n("Reshape", ["x", "all"], ["qkv"], allowzero=1)]
    nodes = [
        *head, *split, *keys, n("Mul", ["q4", "c"], ["qs"]), n("Mul", ["kt", "c"], ["ks"]),
        n("MatMul", ["qs", "ks"], ["w"]), n("Softmax", ["w"], ["p"], axis=-1), n("MatMul", ["p", "v4"], ["y"]),
    ]  # fmt: skip
    constants = {
        **{f"i{i}": i64(i)[0] for i in range(3)}, "zero": i64(0), "rest": i64(5, 3, 2, 4), "all": i64(-1, 5, 3, 2, 4),
        "flat": i64(-1, 5, 4), "heads": i64(2, 4, 5), "c": np.float32(0.25**0.25),
    }  # fmt: skip
    model = model_of(nodes, {"x": (2, 5, 24)}, constants)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F32, ["batch", 5, 24]))
    model.graph.ClearField("value_info")
    return model


@pytest.mark.parametrize("exporter", ["script", "dynamo"])
def test_attention_over_a_batch_of_any_size(exporter):
    model = exported_attention(exporter)
    ops, _, _ = optimized(model)
    assert "Attention" in ops
    assert not {"Softmax", "Shape", "Concat", "Mul"} & set(ops)
    for batch in (1, 3):
        same_values(model, {"x": np.random.default_rng(0).standard_normal((batch, 5, 24)).astype(np.float32)})


def test_names_of_dimensions_come_through():
    nodes = [
        n("Shape", ["x"], ["s"], end=1), n("Concat", ["s", "k"], ["t"], axis=0), n("Equal", ["t", "minus"], ["e"]),
        n("Where", ["e", "one", "t"], ["w"]), n("Expand", ["c", "w"], ["token"]), n("Reshape", ["x", "flat"], ["r"]),
        n("Concat", ["token", "r"], ["y"], axis=1),
    ]  # fmt: skip
    constants = {"k": i64(-1, -1), "minus": i64(-1, -1, -1), "one": i64(1, 1, 1), "c": np.ones((1, 1, 6), "f4"),
                 "flat": i64(-1, 4, 6)}  # fmt: skip
    model = model_of(nodes, {"x": (2, 6, 2, 2)}, constants)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F32, ["batch", 6, 2, 2]))
    model.graph.ClearField("value_info")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    ops, _, made = optimized(model)
    assert "Equal" not in ops
    assert [str(d) for d in made.graph.outputs[0].shape] == ["batch", "5", "6"]
    for batch in (1, 3):
        same_values(model, {"x": np.ones((batch, 6, 2, 2), np.float32)})


def test_a_dimension_with_two_new_axes_is_no_shape():
    nodes = [n("Shape", ["x"], ["s"]), n("Gather", ["s", "k"], ["g"]), n("Unsqueeze", ["g", "a"], ["y"])]
    model = model_of(nodes, M, {"k": i64(1)[0], "a": i64(0, 1)})
    same_values(model, feed(M))


def test_two_unknown_dimensions_of_the_same_tensor_are_copied():
    shape = [n("Shape", ["x"], ["s"], end=2), n("Concat", ["s", "rest"], ["t"], axis=0)]
    nodes = [*shape, n("Reshape", ["x", "t"], ["y"])]
    model = model_of(nodes, {"x": (2, 3, 4)}, {"rest": i64(2, 2)})
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", F32, ["a", "b", 4]))
    assert optimized(model)[0] == ["Reshape"]
    same_values(model, {"x": np.ones((5, 3, 4), np.float32)})


def branch(name: str, nodes: list) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(nodes[-1].output[0], F32, None)])


def test_a_branch_that_is_decided_is_inlined():
    one = branch("then", [n("Neg", ["x"], ["t"]), n("Relu", ["t"], ["tt"])])
    two = branch("else", [n("Sin", ["u"], ["e"])])
    nodes = [n("Cos", ["x"], ["u"]), n("If", ["c"], ["y"], "if", then_branch=one, else_branch=two)]
    model = model_of(nodes, M, {"c": np.array(True)})
    ops, report, _ = optimized(model)
    assert ops == ["Neg", "Relu"]
    assert {r.op_type for r in report.removed} == {"If", "Cos"}
    same_values(model, feed(M))
    assert optimized(model_of(nodes, {**M, "c": np.array(True)}))[0] == ["Cos", "If"]


def test_a_branch_that_is_a_constant_is_inlined():
    value = onnx.numpy_helper.from_array(np.ones(3, np.float32))
    one, two = branch("then", [n("Constant", [], ["t"], value=value)]), branch("else", [n("Sin", ["x"], ["e"])])
    nodes = [n("If", ["c"], ["i"], then_branch=one, else_branch=two), n("Relu", ["i"], ["y"])]
    model = model_of(nodes, {"x": (3,)}, {"c": np.array(True)})
    assert optimized(model)[0] == []
    same_values(model, {"x": np.ones(3, np.float32)})


def test_values_that_bodies_read_are_in_use():
    body = branch("then", [n("Neg", ["c"], ["t"])])
    other = branch("else", [n("Identity", ["a"], ["e0"]), n("Relu", ["e0"], ["e"])])
    nodes = [
        n("Conv", ["x", "w"], ["c"]), n("Mul", ["c", "k"], ["m"]), n("Identity", ["m"], ["a"]),
        n("If", ["b"], ["y"], then_branch=body, else_branch=other),
    ]  # fmt: skip
    shapes = {"x": (1, 1, 4, 4), "b": np.array(True)}
    model = model_of(nodes, shapes, {"w": np.ones((1, 1, 3, 3), "f4"), "k": np.full(1, 2, "f4")})
    ops, report, _ = optimized(model)
    assert ops == ["Conv", "Mul", "If"]
    assert any("also read by" in m.reason for m in report.misses if m.rule == "ConvMulFusion")
    for b in (True, False):
        same_values(model, {**feed(shapes), "b": np.array(b)})


def test_rules_fire_inside_bodies():
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            n("Conv", ["v", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            n("Mul", ["c", "k"], ["out"]),
            n("Identity", ["on"], ["go"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("v", F32, [1, 1, 4, 4])],
        [info("go", TensorProto.BOOL, []), info("out", F32, [1, 1, 4, 4])],
    )
    shapes = {"x": (1, 1, 4, 4)}
    constants = {"count": i64(2)[0], "w": np.ones((1, 1, 3, 3), "f4"), "k": np.full(1, 0.1, "f4")}
    model = model_of([n("Loop", ["count", "", "x"], ["y"], body=body)], shapes, constants)
    _, _, graph = optimized(model)
    assert [m.op_type for m in next(iter(graph.graph)).attributes["body"].as_graph()] == ["Conv", "Identity"]
    same_values(model, feed(shapes))


def test_nothing_happens_when_optimization_is_off():
    model = model_of([n("Identity", ["x"], ["a"]), n("Relu", ["a"], ["y"])], M)
    ops, report, _ = optimized(model, gpurt.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert ops == ["Identity", "Relu"]
    assert not report.removed
    assert values(model, feed(M), "disable_all")[0].shape == (4, 6)


def test_names_are_onnx_runtimes_where_it_has_the_same():
    passes, rules = transformers(plugins=False)
    names = {p.name for p in passes} | {r.name for r in rules}
    level1 = """EliminateIdentity EliminateSlice EliminateDropout ExpandElimination CastElimination CastChainElimination
        NoopElimination DivMulFusion FuseReluClip GemmSumFusion GemmTransposeFusion NotWhereFusion ConvAddFusion
        ConvMulFusion ConvBNFusion PadFusion MatmulBNFusion DoubleQDQPairsRemover ConstantSharing ConstantFolding
        CommonSubexpressionElimination MatMulAddFusion GeluFusion LayerNormFusion QDQPropagation"""
    assert set(level1.split()) <= names


def test_work_is_linear():
    def changes(count: int) -> int:
        nodes = [n("Identity" if i % 2 else "Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(count)]
        report = optimized(model_of([*nodes, n("Neg", [f"v{count}"], ["y"])], M))[1]
        assert report.rounds <= 3
        return len(report.removed)

    assert changes(400) == 400 - 1  # one Relu is left
