"""Checks the plug-in gpurt-sim in an environment that has gpurt's wheel and not its checkout; run by ci/wheel_smoke.py.

Models are split over sim, opencl and cpu: the values must be those of cpu alone, casts and copies where they must be,
and no more copies than the placement makes necessary.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

import gpurt

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

# Copies are counted, so a device in the host's memory is to copy as others do.
PROVIDERS = ["sim", ("opencl", {"zero_copy": False}), "cpu"]


def model(nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int]]], outputs: dict[str, int],
          constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "split",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def check(name: str, proto: onnx.ModelProto, feeds: dict[str, np.ndarray], where: dict[str, str],
          copies: set[tuple[str, str, str]], casts: int = 0, tolerance: float = 2e-3) -> None:  # fmt: skip
    """Run on the split and on cpu; compare values, placement by node name, copies and the number of casts."""
    session = gpurt.InferenceSession(proto, GREEDY, providers=PROVIDERS)
    expected = gpurt.InferenceSession(proto, providers=["cpu"]).run(None, feeds)
    for repeat in range(2):
        for got, want in zip(session.run(None, feeds), expected, strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape), (name, got.dtype, want.dtype)
            error = np.abs(got.astype(np.float64) - want.astype(np.float64)).max()
            assert error <= tolerance * max(np.abs(want.astype(np.float64)).max(), 1), (name, repeat, error)
    report = session.explain().to_dict()
    placed = {n: r["provider"] for r in report["nodes"] for n in (r["fused_from"] or [r["name"]])}
    assert {n: placed.get(n) for n in where} == where, (name, placed)
    found = Counter((c["value"], c["from"].split(":")[0], c["to"].split(":")[0]) for c in report["copies"])
    assert found == Counter(copies), (name, "copies", sorted(found), sorted(copies))
    assert all(c["bytes"] for c in report["copies"]), (name, report["copies"])
    assert len(report["casts"]) == casts, (name, report["casts"])
    print(f"{name}: {dict(Counter(placed.values()))}, {len(found)} copies, {casts} casts")


def main() -> int:
    warnings.simplefilter("error")
    assert {p.name for p in gpurt.providers() if p.usable} >= {"sim", "opencl", "cpu"}, gpurt.providers()
    rng = np.random.default_rng(0)
    n = helper.make_node
    f16, f32 = TensorProto.FLOAT16, TensorProto.FLOAT

    # Three devices in a row, a value that two nodes of one device read, and a constant that two devices read.
    c = rng.standard_normal((4, 4)).astype(np.float16)
    chain = [
        n("Add", ["x", "c"], ["a"], "add"),
        n("Softmax", ["a"], ["s"], "softmax"),
        n("Mul", ["s", "c"], ["m"], "mul"),
        n("Sub", ["s", "m"], ["d"], "sub"),
        n("Cast", ["d"], ["w"], "widen", to=f32),
        n("Det", ["w"], ["y"], "det"),
    ]
    check(
        "chain", model(chain, {"x": (f16, [4, 4])}, {"y": f32}, {"c": c}), {"x": rng.random((4, 4)).astype(np.float16)},
        {"add": "sim", "softmax": "opencl", "mul": "sim", "sub": "sim", "widen": "opencl", "det": "cpu"},
        {("x", "cpu", "sim"), ("a", "sim", "opencl"), ("s", "opencl", "sim"), ("d", "sim", "opencl"),
         ("w", "opencl", "cpu")},
    )  # fmt: skip

    # int8 on sim, float32 on opencl; the shape arithmetic between them copies nothing.
    shape = [
        n("Neg", ["q"], ["nq"], "neg"),
        n("Shape", ["nq"], ["sh"], "shape"),
        n("ReduceProd", ["sh"], ["count"], "prod", keepdims=1),
        n("Reshape", ["f", "count"], ["flat"], "flatten"),
        n("Exp", ["flat"], ["e"], "exp"),
        n("Cast", ["nq"], ["g"], "cast", to=f32),
        n("Reshape", ["g", "count"], ["h"], "flatten2"),
        n("Add", ["e", "h"], ["y"], "add"),
    ]
    check(
        "shapes", model(shape, {"q": (TensorProto.INT8, ["a", "b"]), "f": (f32, ["b", "a"])}, {"y": f32}),
        {"q": rng.integers(-5, 5, (3, 5)).astype(np.int8), "f": rng.random((5, 3)).astype(np.float32)},
        {"neg": "sim", "shape": "cpu", "prod": "cpu", "exp": "opencl", "add": "opencl"},
        {("q", "cpu", "sim"), ("f", "cpu", "opencl"), ("nq", "sim", "opencl"), ("y", "opencl", "cpu")},
    )  # fmt: skip

    # bfloat16 is no type of sim or opencl: opencl computes it as float32 between casts.
    bf16 = [n("MatMul", ["u", "v"], ["p"], "matmul"), n("Relu", ["p"], ["y"], "relu")]
    bf = TensorProto.BFLOAT16
    data = {k: rng.standard_normal((4, 4)).astype(ml_dtypes.bfloat16) for k in ("u", "v")}
    proto = model(bf16, {"u": (bf, [4, 4]), "v": (bf, [4, 4])}, {"y": bf})
    session = gpurt.InferenceSession(proto, GREEDY, providers=PROVIDERS)
    report = session.explain().to_dict()
    placed = {n: r["provider"] for r in report["nodes"] for n in (r["fused_from"] or [r["name"]])}
    assert {placed["matmul"], placed["relu"]} == {"opencl"}, placed
    assert len(report["casts"]) >= 3, report["casts"]
    got = session.run(None, data)[0].astype(np.float32)
    want = np.maximum(data["u"].astype(np.float32) @ data["v"].astype(np.float32), 0)
    assert np.abs(got - want).max() <= 0.02 * np.abs(want).max()

    # A branch that only sim and cpu can run, inside an If whose condition is fed.
    then = helper.make_graph(
        [n("Mul", ["x", "x"], ["t"], "square")], "then", [], [helper.make_tensor_value_info("t", f16, None)]
    )
    other = helper.make_graph(
        [n("Neg", ["x"], ["o"], "negate")], "else", [], [helper.make_tensor_value_info("o", f16, None)]
    )
    branch = [n("If", ["b"], ["r"], "if", then_branch=then, else_branch=other), n("Relu", ["r"], ["y"], "relu")]
    proto = model(branch, {"b": (TensorProto.BOOL, []), "x": (f16, [6])}, {"y": f16})
    session = gpurt.InferenceSession(proto, GREEDY, providers=PROVIDERS)
    x = rng.standard_normal(6).astype(np.float16)
    for value, expected in ((True, np.maximum(x * x, 0)), (False, np.maximum(-x, 0))):
        np.testing.assert_allclose(session.run(None, {"b": np.array(value), "x": x})[0], expected, rtol=2e-3)
    print("all checks of gpurt-sim passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
