"""Cases of test_optimizer_rules.py: subgraphs of many nodes that are one operator: activations, norms, attention."""

from __future__ import annotations

import numpy as np
from optimizing import f32, i64, n, one

M = {"x": (4, 6)}


def gelu_tanh(cube: str) -> list:
    """Hugging Face's gelu_new as torch writes it, or Megatron's form of it."""
    if cube == "Megatron":
        inner = [n("Mul", ["x", "c"], ["i1"]), n("Mul", ["i1", "x"], ["i2"]), n("Add", ["i2", "k"], ["i3"]),
                 n("Mul", ["x", "s"], ["i4"]), n("Mul", ["i4", "i3"], ["i"])]  # fmt: skip
    else:
        power = (
            [n("Pow", ["x", "p"], ["q"])]
            if cube == "Pow"
            else [n("Mul", ["x", "x"], ["o"]), n("Mul", ["o", "x"], ["q"])]
        )
        inner = [*power, n("Mul", ["q", "c"], ["i1"]), n("Add", ["x", "i1"], ["i2"]), n("Mul", ["i2", "s"], ["i"])]
    return [n("Mul", ["x", "h"], ["half"]), *inner, n("Tanh", ["i"], ["t"]), n("Add", ["t", "k"], ["u"]),
            n("Mul", ["half", "u"], ["y"])]  # fmt: skip


GELU = {"h": one(0.5), "p": one(3), "c": one(0.044715), "s": one(0.7978845608028654), "k": one(1)}
MEAN = {"a": i64(-1), "two": one(2), "e": one(1e-5)}


def normed(kind: str, root: str = "Div", of: str = "x") -> list:
    """LayerNormalization or RMSNormalization of x as torch's script exporter writes it, into u."""
    x, center = (of, []) if kind == "RMS" else ("d", [n("ReduceMean", ["x", "a"], ["m"]), n("Sub", ["x", "m"], ["d"])])
    power = n("Pow", [x, "two"], ["p"]) if root != "Reciprocal" else n("Mul", [x, x], ["p"])
    last = [n("Div", [x, "t"], ["u"])] if root == "Div" else [n("Reciprocal", ["t"], ["v"]), n("Mul", [x, "v"], ["u"])]
    return [*center, power, n("ReduceMean", ["p", "a"], ["q"], "mean"), n("Add", ["q", "e"], ["r"]),
            n("Sqrt", ["r"], ["t"]), *last]  # fmt: skip


SCALED = [n("Mul", ["u", "s"], ["g"])]
BIASED = [n("Mul", ["u", "s"], ["g"]), n("Add", ["g", "o"], ["y"])]


def attended(scaling: str, mask: bool, batches: tuple[int, int] = (2, 2), axis: int = -1) -> tuple[list, dict]:
    """Attention of 3 heads of 4 over 5 queries and 6 keys, and the shapes that it reads."""
    nodes = [n("Transpose", ["k"], ["t"], perm=[0, 2, 3, 1])]
    if scaling == "halves":
        nodes += [n("Mul", ["x", "c"], ["q2"]), n("Mul", ["t", "c"], ["t2"]), n("MatMul", ["q2", "t2"], ["w"])]
    else:
        nodes += [n("MatMul", ["x", "t"], ["w0"]), n(scaling, ["w0", "c"], ["w"])]
    nodes += [n("Add", ["w", "m"], ["w1"])] if mask else []
    nodes += [n("Softmax", ["w1" if mask else "w"], ["p"], axis=axis), n("MatMul", ["p", "v"], ["y"])]
    shapes = {"x": (batches[0], 3, 5, 4), "k": (batches[1], 6, 3, 4), "v": (batches[1], 3, 6, 4)}
    return nodes, {**shapes, "m": (2, 1, 1, 6)} if mask else shapes


# Rule, nodes, inputs, constants, operators afterwards.
FIRES: list[tuple[str, list, dict, dict, list[str]]] = [
    *(("FastGeluFusion", gelu_tanh(cube), M, GELU, ["Gelu"]) for cube in ("Pow", "Mul", "Megatron")),
    ("GeluFusion", [n("Mul", ["x", "h"], ["a"]), n("Mul", ["x", "r"], ["b"]), n("Erf", ["b"], ["c"]),
     n("Add", ["c", "k"], ["d"]), n("Mul", ["a", "d"], ["y"])], M,
     {"r": one(0.7071067811865476), "k": one(1), "h": one(0.5)}, ["Gelu"]),
    ("SwishFusion", [n("Sigmoid", ["x"], ["a"]), n("Mul", ["x", "a"], ["y"])], M, {}, ["Swish"]),
    ("QuickGeluFusion", [n("Mul", ["x", "k"], ["a"]), n("Sigmoid", ["a"], ["b"]), n("Mul", ["x", "b"], ["y"])], M,
     {"k": one(1.702)}, ["Swish"]),
    ("HardSigmoidFusion", [n("Add", ["x", "t"], ["a"]), n("Clip", ["a", "z", "k"], ["b"]), n("Div", ["b", "k"], ["y"])],
     M, {"t": one(3), "z": one(0), "k": one(6)}, ["HardSigmoid"]),
    ("HardSwishFusion", [n("Add", ["x", "t"], ["a"]), n("Clip", ["a", "z", "k"], ["b"]), n("Mul", ["x", "b"], ["c"]),
     n("Div", ["c", "k"], ["y"])], M, {"t": one(3), "z": one(0), "k": one(6)}, ["HardSwish"]),
    ("HardSwishFusion", [n("HardSigmoid", ["x"], ["a"], alpha=1 / 6, beta=0.5), n("Mul", ["a", "x"], ["y"])], M, {},
     ["HardSwish"]),
    ("MishFusion", [n("Softplus", ["x"], ["a"]), n("Tanh", ["a"], ["b"]), n("Mul", ["x", "b"], ["y"])], M, {},
     ["Mish"]),
    ("LayerNormFusion", [*normed("Layer", "Reciprocal"), n("Relu", ["u"], ["y"])], M, MEAN,
     ["LayerNormalization", "Relu"]),
    ("NormScaleFusion", [*normed("Layer"), *BIASED], {"x": (2, 3, 6)}, {**MEAN, "s": f32(6), "o": f32(1, 1, 6)},
     ["LayerNormalization"]),
    ("NormBiasFusion", [*normed("Layer"), n("Add", ["u", "o"], ["y"])], M, {**MEAN, "o": one(0.25)},
     ["LayerNormalization"]),
    ("SimplifiedLayerNormFusion", [*normed("RMS", "Reciprocal"), n("Mul", ["s", "u"], ["y"])], M, {**MEAN, "s": f32(6)},
     ["RMSNormalization"]),
    ("SimplifiedLayerNormFusion", [*normed("RMS"), n("Neg", ["u"], ["y"])], M, MEAN, ["RMSNormalization", "Neg"]),
    ("SkipLayerNormFusion", [n("Add", ["x", "k"], ["a"]), n("LayerNormalization", ["a", "s", "o"], ["y"])],
     {"x": (2, 3, 6), "k": (2, 3, 6)}, {"s": f32(6), "o": f32(6)}, ["SkipLayerNormalization"]),
    ("SkipLayerNormFusion", [n("Add", ["x", "k"], ["w"]), *normed("RMS", of="w"), n("Mul", ["u", "s"], ["y"])],
     {"x": (2, 3, 6), "k": (2, 3, 6)}, {**MEAN, "s": f32(6)}, ["SkipSimplifiedLayerNormalization"]),
    *(("AttentionFusion", *attended(scaling, mask), {"c": one(value)}, ["Transpose", "Attention"])
      for scaling, value in (("Mul", 0.5), ("Div", 2), ("halves", 0.25**0.25)) for mask in (True, False)),
    ("AttentionFusion", [n("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]), n("MatMul", ["x", "t"], ["w"]),
     n("Softmax", ["w"], ["p"], axis=3), n("MatMul", ["p", "v"], ["y"])],
     {"x": (2, 3, 5, 4), "k": (2, 3, 6, 4), "v": (2, 3, 6, 4)}, {}, ["Attention"]),
]  # fmt: skip

# Rule, nodes, inputs, constants, a part of the reason.
KEEPS: list[tuple[str, list, dict, dict, str]] = [
    ("FastGeluFusion", gelu_tanh("Pow"), M, {**GELU, "p": one(2)}, "constant 3"),
    ("SwishFusion", [n("Sigmoid", ["u"], ["a"]), n("Mul", ["x", "a"], ["y"])], {"x": (4, 6), "u": (4, 6)}, {},
     "two different"),
    ("QuickGeluFusion", [n("Mul", ["x", "k"], ["a"]), n("Sigmoid", ["a"], ["b"]), n("Mul", ["x", "b"], ["y"])], M,
     {"k": f32(6)}, "not one constant"),
    ("HardSigmoidFusion", [n("Add", ["x", "t"], ["a"]), n("Clip", ["a", "z", "k"], ["b"]), n("Div", ["b", "k"], ["y"])],
     M, {"t": one(2), "z": one(0), "k": one(6)}, "constant 3"),
    ("HardSwishFusion", [n("HardSigmoid", ["x"], ["a"]), n("Mul", ["a", "x"], ["y"])], M, {}, "alpha and beta"),
    ("MishFusion", [n("Softplus", ["u"], ["a"]), n("Tanh", ["a"], ["b"]), n("Mul", ["x", "b"], ["y"])],
     {"x": (4, 6), "u": (4, 6)}, {}, "two different"),
    ("LayerNormFusion", [*normed("Layer"), n("Add", ["u", "d"], ["y"])], M, MEAN, "also read by"),
    ("SimplifiedLayerNormFusion", [*normed("RMS"), n("Neg", ["u"], ["y"])], {"x": (6, 6)}, {**MEAN, "a": i64(0)},
     "last ones"),
    ("SimplifiedLayerNormFusion", [*normed("RMS"), n("Neg", ["u"], ["y"])], {"x": f32(4, 6).astype(np.float64)},
     {k: v if k == "a" else v.astype(np.float64) for k, v in MEAN.items()}, "32 bits or less"),
    ("NormScaleFusion", [n("LayerNormalization", ["x", "s"], ["a"]), n("Mul", ["a", "k"], ["y"])], M,
     {"s": f32(6), "k": f32(6)}, "scaled already"),
    ("NormScaleFusion", [n("LayerNormalization", ["x", "s"], ["a"]), n("Mul", ["a", "k"], ["y"])], M,
     {"s": np.ones(6, "f4"), "k": f32(4, 1)}, "no constant of the shape"),
    ("NormBiasFusion", [n("LayerNormalization", ["x", "s", "o"], ["a"]), n("Add", ["a", "k"], ["y"])], M,
     {"s": f32(6), "o": f32(6), "k": f32(6)}, ""),
    ("SkipLayerNormFusion", [n("Add", ["x", "k"], ["a"]), n("LayerNormalization", ["a", "s", "o"], ["y"])],
     {"x": (2, 3, 6), "k": (6,)}, {"s": f32(6), "o": f32(6)}, "the same shape"),
    ("SkipLayerNormFusion", [n("Add", ["x", "k"], ["z"]), n("LayerNormalization", ["z", "s", "o"], ["y"])],
     {"x": (2, 3, 6), "k": (2, 3, 6)}, {"s": f32(6), "o": f32(6)}, "graph output"),
    ("AttentionFusion", *attended("Mul", True, (1, 2)), {"c": one(0.5)}, "batch and heads"),
    ("AttentionFusion", *attended("Mul", False), {"c": f32(5, 1)}, "not one positive constant"),
    ("AttentionFusion", *attended("Mul", False, axis=2), {"c": one(0.5)}, "not over the keys"),
]  # fmt: skip
