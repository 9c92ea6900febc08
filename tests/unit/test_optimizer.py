"""How optimizations are added, switched off, bounded and explained."""

from __future__ import annotations

import logging
import sys
import textwrap

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from optimizing import feed, model_of, n, optimized, same_values

import gpurt
from gpurt import registry
from gpurt.optimizer import GraphTransformer, Result, RewriteRule
from gpurt.optimizer.registry import GROUP

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
