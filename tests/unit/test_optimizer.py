"""Global transformations, and how optimizations are added, switched off, bounded and explained."""

from __future__ import annotations

import logging
import sys
import textwrap

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from optimizing import feed, model_of, n, optimized, same_values, values

import gpurt
from gpurt import registry
from gpurt.optimizer import GraphTransformer, Result, RewriteRule, Tools, transformers
from gpurt.optimizer.fold import ConstantFolding
from gpurt.optimizer.registry import GROUP
from gpurt.optimizer.transformer import run

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

F32 = TensorProto.FLOAT
M = {"x": (4, 6)}
HALF = {"x": np.ones((4, 6), np.float16)}  # what the simulated provider computes


def i64(*v: int) -> np.ndarray:
    return np.array(v, np.int64)


# What users write.


class SinOfSin(RewriteRule):
    """Sin(Sin(x)) -> Cos(x), which is wrong, and so can be told from what was there."""

    why = "for a test"

    def pattern(self, op, x):
        return op.Sin(op.Sin(x, _name="inner"))

    def check(self, m, inner):
        return m if inner.name != "spared" else m.fail("this one is spared")

    def rewrite(self, op, x):
        return op.Cos(x)


class Counting:
    name = "Counting"

    def __init__(self):
        self.runs = 0

    def apply(self, model, tools):
        self.runs += 1
        return Result()


def sin_sin(name: str = "first") -> onnx.ModelProto:
    return model_of([n("Sin", ["x"], ["a"], name), n("Sin", ["a"], ["y"], "second")], M)


def test_a_users_rule_runs():
    x = feed(M)
    options = gpurt.SessionOptions()
    options.add_transformer(SinOfSin)
    session = gpurt.InferenceSession(sin_sin(), options, providers=["cpu"])
    np.testing.assert_allclose(session.run(None, x)[0], np.cos(x["x"]), rtol=1e-5)
    removed = session.explain().to_dict()["removed"]
    assert removed == [
        {"name": k, "op_type": "Sin", "why": "for a test", "by": "SinOfSin"} for k in ("second", "first")
    ]


def test_a_users_transformer_runs_until_nothing_changes():
    counting = Counting()
    assert isinstance(counting, GraphTransformer)
    optimized(sin_sin(), extra=[counting])
    assert counting.runs == 1


def test_a_near_miss_says_why(caplog):
    with caplog.at_level(logging.DEBUG, "gpurt.optimizer"):
        ops, report, _ = optimized(sin_sin("spared"), extra=[SinOfSin()])
    assert ops == ["Sin", "Sin"]
    assert [(m.rule, m.node, m.reason) for m in report.misses] == [("SinOfSin", "second", "this one is spared")]
    assert "SinOfSin did not fire at second: this one is spared" in caplog.text


def test_switched_off_by_name():
    assert optimized(sin_sin(), extra=[SinOfSin], disabled=["SinOfSin"])[0] == ["Sin", "Sin"]
    x = feed(M)
    options = gpurt.SessionOptions(disabled_optimizers=["SinOfSin"], transformers=[SinOfSin])
    got = gpurt.InferenceSession(sin_sin(), options, providers=["cpu"]).run(None, x)[0]
    np.testing.assert_allclose(got, np.sin(np.sin(x["x"])), rtol=1e-5)


@pytest.mark.parametrize("name", ["ConstantFolding", "StaticShapes", "DeadCode", "RewriteRules"])
def test_global_ones_switch_off_too(name):
    nodes = [n("Shape", ["x"], ["s"]), n("Size", ["s"], ["t"]), n("Identity", ["x"], ["i"]), n("Relu", ["i"], ["y"])]
    nodes.append(n("Exp", ["i"], ["nobody"]))
    model = model_of([*nodes, n("Neg", ["k"], ["u"]), n("Add", ["i", "u"], ["z"])], M, {"k": np.ones(1, "f4")})
    full = optimized(model)[0]
    assert full == ["Relu", "Add"]
    part = optimized(model, disabled=[name, "ShapeArithmetic"])[0]
    assert part == full if name == "StaticShapes" else part != full
    same_values(model, feed(M), disabled_optimizers=[name])


def test_unknown_names_are_refused():
    options = gpurt.SessionOptions(disabled_optimizers=["ConstantFoldin"])
    with pytest.raises(gpurt.InvalidArgument, match="did you mean 'ConstantFolding'"):
        gpurt.InferenceSession(sin_sin(), options, providers=["cpu"])
    with pytest.raises(gpurt.InvalidArgument, match="disabled_optimizers is 'DeadCode'"):
        gpurt.SessionOptions(disabled_optimizers="DeadCode")
    with pytest.raises(gpurt.InvalidArgument, match="is no transformation"):
        optimized(sin_sin(), extra=[3])


def test_levels():
    class Late(SinOfSin):
        level = gpurt.GraphOptimizationLevel.ORT_ENABLE_EXTENDED

    basic, extended = gpurt.GraphOptimizationLevel.ORT_ENABLE_BASIC, gpurt.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    assert optimized(sin_sin(), basic, extra=[Late])[0] == ["Sin", "Sin"]
    assert optimized(sin_sin(), extended, extra=[Late])[0] == ["Cos"]
    assert optimized(sin_sin(), gpurt.GraphOptimizationLevel.ORT_DISABLE_ALL, extra=[Late])[0] == ["Sin", "Sin"]


def test_a_failing_transformation_is_named():
    class Broken(Counting):
        name = "Broken"

        def apply(self, model, tools):
            raise ZeroDivisionError("oops")

    with pytest.raises(gpurt.Fail, match=r"'Broken' failed: ZeroDivisionError: oops.*disabled_optimizers"):
        optimized(sin_sin(), extra=[Broken()])


def test_rules_that_undo_one_another_end(caplog):
    class There(RewriteRule):
        def pattern(self, op, x):
            return op.Sin(x)

        def rewrite(self, op, x):
            return op.Cos(x)

    class Back(There):
        def pattern(self, op, x):
            return op.Cos(x)

        def rewrite(self, op, x):
            return op.Sin(x)

    optimized(sin_sin(), extra=[There, Back])
    assert "seem to undo one another" in caplog.text


def test_a_rule_that_asks_for_what_it_does_not_bind():
    class Wrong(SinOfSin):
        def rewrite(self, op, x, other):
            return x

    with pytest.raises(gpurt.InvalidArgument, match="asks for 'other'"):
        Wrong()


def test_plugins(monkeypatch, tmp_path, caplog):
    (tmp_path / "plugged.py").write_text(
        textwrap.dedent("""
        from gpurt.optimizer import RewriteRule
        class SinToCos(RewriteRule):
            def pattern(self, op, x):
                return op.Sin(x)
            def rewrite(self, op, x):
                return op.Cos(x)
        def several():
            return [SinToCos]
    """)
    )
    info = tmp_path / "plugged-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ngood = plugged:several\nbad = plugged:missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert optimized(sin_sin())[0] == ["Cos", "Cos"]
        assert optimized(sin_sin(), disabled=["SinToCos"])[0] == ["Sin", "Sin"]
    finally:
        sys.modules.pop("plugged", None)
    assert "'bad' of a plug-in is left out" in caplog.text


def test_what_runs_is_told_apart(sim):
    nodes = [n("Identity", ["x"], ["i"]), n("Relu", ["i"], ["r"]), n("Sin", ["r"], ["s"]), n("Relu", ["s"], ["y"])]
    session = gpurt.InferenceSession(model_of(nodes, HALF), GREEDY, providers=[sim, "cpu"])
    told = {t["name"]: t["kind"] for t in session.explain().to_dict()["transformations"]}
    assert told == {"EliminateIdentity": "general", "Memcpy": "required"}
    off = gpurt.SessionOptions(disabled_optimizers=["Memcpy"], partitioning="greedy")
    with pytest.raises(gpurt.InvalidArgument, match="'Memcpy', which is no optimization"):
        gpurt.InferenceSession(model_of(nodes, HALF), off, providers=[sim, "cpu"])


def test_near_misses_are_explained():
    options = gpurt.SessionOptions(transformers=[SinOfSin])
    session = gpurt.InferenceSession(sin_sin("spared"), options, providers=["cpu"])
    misses = session.explain().to_dict()["near_misses"]
    assert misses == [{"rule": "SinOfSin", "node": "second", "reason": "this one is spared"}]


class MulToAdd(RewriteRule):
    """Mul(x, x) -> Add(x, x), as a provider would bring it."""

    def pattern(self, op, x):
        return op.Mul(x, x)

    def rewrite(self, op, x):
        return op.Add(x, x)


def test_a_providers_own_rules_are_for_its_nodes(sim, monkeypatch):
    provider = type(registry.open_provider(registry.Request(sim, None, {})))
    monkeypatch.setattr(provider, "transformers", lambda self: [MulToAdd, SinOfSin])
    nodes = [n("Mul", ["x", "x"], ["m"], "mul"), n("Sin", ["m"], ["a"], "one"), n("Sin", ["a"], ["y"], "two")]
    told = gpurt.InferenceSession(model_of(nodes, HALF), GREEDY, providers=[sim, "cpu"]).explain().to_dict()
    assert [(t["name"], t["kind"]) for t in told["transformations"]] == [
        ("MulToAdd", "provider"),
        ("Memcpy", "required"),
    ]
    assert {m["rule"]: m["reason"] for m in told["near_misses"]}["SinOfSin"].endswith("does not run Cos")
    told = gpurt.InferenceSession(model_of(nodes, HALF), providers=["cpu", sim]).explain().to_dict()
    assert not told["transformations"]


def test_no_rule_makes_what_the_provider_cannot_run(sim):
    nodes = [n("MatMul", ["x", "w"], ["a"]), n("Add", ["a", "b"], ["y"])]
    model = model_of(nodes, HALF, {"w": np.ones((6, 5), "f2"), "b": np.ones(5, "f2")})
    assert optimized(model)[0] == ["Gemm"]
    sims, cpu = (registry.open_provider(registry.Request(name, None, {})) for name in (sim, "cpu"))
    assert optimized(model, providers=[cpu])[0] == ["Gemm"]
    ops, report, _ = optimized(model, providers=[sims, cpu])
    assert ops == ["MatMul", "Add"]
    assert any("has a kernel for Gemm" in m.reason for m in report.misses if m.rule == "MatMulAddFusion")


def test_a_replacement_of_another_shape_or_type_is_refused():
    class Wrong(SinOfSin):
        def rewrite(self, op, x):
            return op.Transpose(x, perm=[1, 0])

    class Narrow(SinOfSin):
        def rewrite(self, op, x):
            return op.Cast(x, to=TensorProto.FLOAT16)

    ops, report, _ = optimized(sin_sin(), extra=[Wrong(), Narrow()])
    assert ops == ["Sin", "Sin"]
    assert {m.rule: m.reason for m in report.misses} == {
        "Wrong": "'y' has the shape [4, 6], its replacement [6, 4]",
        "Narrow": "'y' is FLOAT, its replacement FLOAT16",
    }


def test_a_failing_rule_is_named():
    class Bad(SinOfSin):
        def check(self, m, inner):
            raise KeyError("nothing")

    with pytest.raises(gpurt.Fail, match="'Bad' failed: KeyError"):
        optimized(sin_sin(), extra=[Bad])


# Global transformations.


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
