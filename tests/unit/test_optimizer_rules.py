"""Every rule on a graph as exporters write it, and on one where it must not fire, with the reason that is given."""

from __future__ import annotations

import numpy as np
import pytest
import subgraph_rules
from onnx import TensorProto
from optimizing import f32, feed, i64, model_of, n, one, optimized, same_values
from subgraph_rules import M

from gpurt.optimizer import transformers
from gpurt.options import GraphOptimizationLevel

X = {"x": (2, 3, 8, 8)}
CONV = n("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1])
KERNEL = {"w": f32(5, 3, 3, 3), "b": f32(5)}
UP = n("ConvTranspose", ["x", "w", "b"], ["c"], "up", group=3)
UPS = {"w": f32(3, 2, 3, 3), "b": f32(6)}
BN = n("BatchNormalization", ["c", "s", "o", "m", "v"], ["y"], "bn")


def stats(channels: int) -> dict[str, np.ndarray]:
    return {"s": f32(channels), "o": f32(channels), "m": f32(channels), "v": np.abs(f32(channels)) + 0.1}


# Rule, nodes, inputs, constants, operators afterwards.
FIRES = [
    *subgraph_rules.FIRES,
    ("EliminateIdentity", [n("Identity", ["x"], ["a"]), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("EliminateIdentity", [n("Relu", ["x"], ["a"]), n("Identity", ["a"], ["y"])], M, {}, ["Relu"]),
    ("EliminateDropout", [n("Dropout", ["x"], ["a", "mask"]), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("EliminateDropout", [n("Dropout", ["x", "r", "t"], ["a"]), n("Relu", ["a"], ["y"])], M,
     {"r": one(0.5), "t": one(False, bool)}, ["Relu"]),
    ("CastElimination", [n("Cast", ["x"], ["a"], to=TensorProto.FLOAT), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("CastChainElimination", [n("Cast", ["x"], ["a"], to=TensorProto.INT32),
     n("Cast", ["a"], ["y"], to=TensorProto.FLOAT)],
     {"x": np.arange(-4, 4, dtype=np.int8)}, {}, ["Cast"]),
    ("EliminateSlice", [n("Slice", ["x", "f", "l", "a"], ["b"]), n("Relu", ["b"], ["y"])], M,
     {"f": i64(0), "l": i64(2**63 - 1), "a": i64(1)}, ["Relu"]),
    ("ExpandElimination", [n("Expand", ["x", "e"], ["a"]), n("Relu", ["a"], ["y"])], M, {"e": i64(1, 6)}, ["Relu"]),
    ("NoopPad", [n("Pad", ["x", "p"], ["a"]), n("Relu", ["a"], ["y"])], M, {"p": i64(0, 0, 0, 0)}, ["Relu"]),
    ("NoopTile", [n("Tile", ["x", "t"], ["a"]), n("Relu", ["a"], ["y"])], M, {"t": i64(1, 1)}, ["Relu"]),
    ("NoopTranspose", [n("Transpose", ["x"], ["a"], perm=[0, 1]), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("NoopReshape", [n("Reshape", ["x", "s"], ["a"]), n("Relu", ["a"], ["y"])], M, {"s": i64(0, -1)}, ["Relu"]),
    ("NoopFlatten", [n("Flatten", ["x"], ["a"]), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("NoopConcat", [n("Concat", ["x"], ["a"], axis=0), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("NoopSum", [n("Sum", ["x"], ["a"]), n("Relu", ["a"], ["y"])], M, {}, ["Relu"]),
    ("NoopElimination", [n("Add", ["k", "x"], ["a"]), n("Relu", ["a"], ["y"])], M, {"k": one([0])}, ["Relu"]),
    ("NoopElimination", [n("Div", ["x", "k"], ["a"]), n("Relu", ["a"], ["y"])], M, {"k": np.ones((1, 6), "f4")},
     ["Relu"]),
    ("NoopElimination", [n("Pow", ["x", "k"], ["a"]), n("Relu", ["a"], ["y"])], M, {"k": one(1)}, ["Relu"]),
    ("DoubleNeg", [n("Neg", ["x"], ["a"]), n("Neg", ["a"], ["b"]), n("Relu", ["b"], ["y"])], M, {}, ["Relu"]),
    ("NoopReduceMean", [n("ReduceMean", ["x", "a"], ["b"]), n("Relu", ["b"], ["y"])], {"x": (4, 1)}, {"a": i64(1)},
     ["Relu"]),
    ("WhereElimination", [n("Where", ["c", "x", "k"], ["a"]), n("Relu", ["a"], ["y"])], M,
     {"c": one([True], bool), "k": one(3)}, ["Relu"]),
    ("ConvBNFusion", [CONV, BN], X, {**KERNEL, **stats(5)}, ["Conv"]),
    ("ConvBNFusion", [n("Conv", ["x", "w"], ["c"], group=3), BN], X, {"w": f32(6, 1, 3, 3), **stats(6)}, ["Conv"]),
    ("ConvBNFusion", [UP, BN], X, {**UPS, **stats(6)}, ["ConvTranspose"]),
    ("ConvMulFusion", [CONV, n("Mul", ["k", "c"], ["y"])], X, {**KERNEL, "k": f32(5, 1, 1)}, ["Conv"]),
    ("ConvMulFusion", [UP, n("Mul", ["c", "k"], ["y"])], X, {**UPS, "k": f32(1, 6, 1, 1)}, ["ConvTranspose"]),
    ("ConvMulFusion", [CONV, n("Div", ["c", "k"], ["y"])], X, {**KERNEL, "k": one(3)}, ["Conv"]),
    ("ConvAddFusion", [CONV, n("Add", ["c", "k"], ["y"])], X, {**KERNEL, "k": f32(1, 5, 1, 1)}, ["Conv"]),
    ("ConvAddFusion", [n("Conv", ["x", "w"], ["c"]), n("Sub", ["c", "k"], ["y"])], X,
     {"w": f32(5, 3, 3, 3), "k": f32(5, 1, 1)}, ["Conv"]),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"]), n("Conv", ["a", "w", "b"], ["y"], pads=[1, 0, 0, 1])], X,
     {**KERNEL, "p": i64(0, 0, 1, 2, 0, 0, 3, 4)}, ["Conv"]),
    ("PadFusion", [n("Pad", ["x", "p", "", "a"], ["c"]), n("Conv", ["c", "w", "b"], ["y"], auto_pad="VALID")], X,
     {**KERNEL, "p": i64(1, 2), "a": i64(-1)}, ["Conv"]),
    ("MatMulAddFusion", [n("MatMul", ["x", "w"], ["a"]), n("Add", ["b", "a"], ["y"])], M,
     {"w": f32(6, 5), "b": f32(5)}, ["Gemm"]),
    ("GemmSumFusion", [n("Gemm", ["x", "w"], ["a"], alpha=0.5, beta=3.0), n("Sum", ["a", "b"], ["y"])],
     {"x": (4, 6), "b": (4, 1)}, {"w": f32(6, 5)}, ["Gemm"]),
    ("GemmSumFusion", [n("Gemm", ["x", "w", "b"], ["a"], beta=3.0), n("Add", ["a", "k"], ["y"])], M,
     {"w": f32(6, 5), "b": f32(5), "k": f32(1, 5)}, ["Gemm"]),
    ("MatMulMulFusion", [n("MatMul", ["x", "w"], ["a"]), n("Mul", ["a", "k"], ["y"])], {"x": (2, 4, 6)},
     {"w": f32(6, 5), "k": f32(5)}, ["MatMul"]),
    ("MatMulMulFusion", [n("MatMul", ["x", "w"], ["a"]), n("Div", ["a", "k"], ["y"])], M,
     {"w": f32(6, 5), "k": one(8)}, ["MatMul"]),
    ("GemmMulFusion", [n("Gemm", ["x", "w", "b"], ["a"], transB=1, beta=2.0), n("Mul", ["a", "k"], ["y"])], M,
     {"w": f32(5, 6), "b": f32(5), "k": f32(1, 5)}, ["Gemm"]),
    ("MatmulBNFusion", [n("MatMul", ["x", "w"], ["c"]), BN], M, {"w": f32(6, 5), **stats(5)}, ["Gemm"]),
    ("MatmulBNFusion", [n("Gemm", ["x", "w", "b"], ["c"], transB=1, alpha=0.5), BN], M,
     {"w": f32(5, 6), "b": f32(5), **stats(5)}, ["Gemm"]),
    ("GemmTransposeFusion", [n("Transpose", ["x"], ["t"]), n("Gemm", ["t", "w"], ["y"])], {"x": (6, 4)},
     {"w": f32(6, 5)}, ["Gemm"]),
    ("GemmTransposeFusion", [n("Transpose", ["u"], ["t"], perm=[1, 0]), n("Gemm", ["x", "t"], ["y"], transB=1)],
     {"x": (4, 6), "u": (6, 5)}, {}, ["Gemm"]),
    ("MatMulTransposeFusion", [n("Transpose", ["u"], ["t"], perm=[1, 0]), n("MatMul", ["x", "t"], ["y"])],
     {"x": (4, 6), "u": (5, 6)}, {}, ["Gemm"]),
    ("FuseReluClip", [n("Relu", ["x"], ["a"]), n("Clip", ["a", "l", "h"], ["y"])], M, {"l": one(-1), "h": one(1)},
     ["Clip"]),
    ("FuseReluClip", [n("Relu", ["x"], ["a"]), n("Clip", ["a", "", "h"], ["y"])], {"x": (4, 6), "h": one(0.3)}, {},
     ["Clip"]),
    ("FuseClipRelu", [n("Clip", ["x", "l", "h"], ["a"]), n("Relu", ["a"], ["y"])], M, {"l": one(-1), "h": one(-0.5)},
     ["Clip"]),
    ("ClipClipFusion", [n("Clip", ["x", "l", "h"], ["a"]), n("Clip", ["a", "", "k"], ["y"])], M,
     {"l": one(-1), "h": one(1), "k": one(0.5)}, ["Clip"]),
    ("ClipClipFusion", [n("Clip", ["x", "h", "l"], ["a"]), n("Clip", ["a", "k"], ["y"])], M,
     {"l": one(-1), "h": one(1), "k": one(-3)}, ["Clip"]),
    ("ReluRelu", [n("Relu", ["x"], ["a"]), n("Relu", ["a"], ["b"]), n("Neg", ["b"], ["y"])], M, {}, ["Relu", "Neg"]),
    ("DivMulFusion", [n("Div", ["k", "x"], ["a"]), n("Mul", ["u", "a"], ["y"])], {"x": (4, 6), "u": (6,)},
     {"k": one(1)}, ["Div"]),
    ("NotWhereFusion", [n("Not", ["c"], ["a"]), n("Where", ["a", "x", "u"], ["y"])],
     {"c": np.array([True, False]), "x": (4, 2), "u": (4, 2)}, {}, ["Where"]),
    ("TransposeTransposeFusion", [n("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]),
     n("Transpose", ["a"], ["y"], perm=[0, 2, 1, 3])],
     X, {}, ["Transpose"]),
    ("TransposeTransposeFusion", [n("Transpose", ["x"], ["a"]), n("Transpose", ["a"], ["b"]),
     n("Relu", ["b"], ["y"])], X, {}, ["Relu"]),
    ("TransposeUnaryTranspose", [n("Transpose", ["x"], ["a"], perm=[0, 2, 3, 1]), n("Clip", ["a", "l"], ["b"]),
     n("Transpose", ["b"], ["y"], perm=[0, 3, 1, 2])], X, {"l": one(0.25)}, ["Clip"]),
    ("TransposeToReshape", [n("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], {"x": (2, 1, 3, 4)}, {}, ["Reshape"]),
    ("ReshapeReshapeFusion", [n("Reshape", ["x", "s"], ["a"]), n("Reshape", ["a", "t"], ["y"])], M,
     {"s": i64(2, 12), "t": i64(3, -1)}, ["Reshape"]),
    ("ReshapeReshapeFusion", [n("Flatten", ["x"], ["a"]), n("Reshape", ["a", "t"], ["y"])], X, {"t": i64(3, -1)},
     ["Reshape"]),
    ("UnsqueezeSqueeze", [n("Unsqueeze", ["x", "a"], ["b"]), n("Squeeze", ["b", "a"], ["c"]),
     n("Relu", ["c"], ["y"])], M,
     {"a": i64(-1)}, ["Relu"]),
    ("UnsqueezeUnsqueeze", [n("Unsqueeze", ["x", "a"], ["b"]), n("Unsqueeze", ["b", "c"], ["y"])], M,
     {"a": i64(1), "c": i64(0, 2)}, ["Unsqueeze"]),
    ("DoubleQDQPairsRemover", [n("DequantizeLinear", ["x", "s", "z"], ["a"]),
     n("QuantizeLinear", ["a", "s", "z"], ["b"]),
     n("DequantizeLinear", ["b", "s", "z"], ["y"])], {"x": np.arange(-128, 128, dtype=np.int8)},
     {"s": one(0.037), "z": one(3, np.int8)}, ["DequantizeLinear"]),
    ("QDQPropagation", [n("DequantizeLinear", ["x", "s", "z"], ["a"]), n("Transpose", ["a"], ["b"]),
     n("QuantizeLinear", ["b", "s", "z"], ["y"])],
     {"x": np.arange(256, dtype=np.uint8).reshape(16, 16)}, {"s": one(0.037), "z": one(3, np.uint8)}, ["Transpose"]),
    ("GeluFusion", [n("Div", ["x", "r"], ["a"]), n("Erf", ["a"], ["b"]), n("Add", ["b", "k"], ["c"]),
     n("Mul", ["x", "c"], ["d"]),
     n("Mul", ["d", "h"], ["y"])], M, {"r": one(2**0.5), "k": one(1), "h": one(0.5)}, ["Gelu"]),
    ("GeluFusion", [n("Mul", ["x", "h"], ["d"]), n("Mul", ["r", "x"], ["a"]), n("Erf", ["a"], ["b"]),
     n("Add", ["k", "b"], ["c"]),
     n("Mul", ["d", "c"], ["y"])], M, {"r": one(0.5**0.5), "k": one(1), "h": one(0.5)}, ["Gelu"]),
    ("LayerNormFusion", [n("ReduceMean", ["x", "a"], ["m"]), n("Sub", ["x", "m"], ["d"]),
     n("Pow", ["d", "two"], ["p"]),
     n("ReduceMean", ["p", "a"], ["q"]), n("Add", ["q", "e"], ["r"]), n("Sqrt", ["r"], ["t"]),
     n("Div", ["d", "t"], ["u"]),
     n("Mul", ["u", "s"], ["g"]), n("Add", ["g", "o"], ["y"])], M,
     {"a": i64(-1), "two": one(2), "e": one(1e-5), "s": f32(6), "o": f32(6)}, ["LayerNormalization"]),
]  # fmt: skip

FIRES += [
    ("PreShapeNodeElimination", [n("NonZero", ["x"], ["i"]), n("Cast", ["i"], ["a"], to=TensorProto.FLOAT),
     n("Shape", ["a"], ["y"])], M, {}, ["NonZero", "Shape"]),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"]), n("AveragePool", ["a"], ["y"], kernel_shape=[3, 3], strides=[2, 2])], X,
     {"p": i64(0, 0, 1, 2, 0, 0, 1, 2)}, ["AveragePool"]),
    ("PadFusion", [n("Pad", ["x", "p", "f"], ["a"]), n("MaxPool", ["a"], ["y"], kernel_shape=[3, 3],
     pads=[1, 0, 0, 1])], X, {"p": i64(0, 0, 1, 1, 0, 0, 1, 1), "f": one(-np.inf)}, ["MaxPool"]),
    ("ReluQuantFusion", [n("Relu", ["x"], ["a"]), n("QuantizeLinear", ["a", "s", "z"], ["y"])], M,
     {"s": one(0.05), "z": one(0, np.uint8)}, ["QuantizeLinear"]),
    ("ClipQuantFusion", [n("Clip", ["x", "l", "h"], ["a"]), n("QuantizeLinear", ["a", "s", "z"], ["y"])], M,
     {"l": one(0), "h": one(6), "s": one(6 / 255 - 1e-6), "z": one(-128, np.int8)}, ["QuantizeLinear"]),
]  # fmt: skip


# Rule, nodes, inputs, constants, a part of the reason.
KEEPS = [
    *subgraph_rules.KEEPS,
    ("EliminateIdentity", [n("Identity", ["x"], ["y"])], M, {}, "graph output"),
    ("EliminateDropout", [n("Dropout", ["x", "r", "t"], ["a"]), n("Relu", ["a"], ["y"])],
     {"x": (4, 6), "t": one(False, bool)}, {"r": one(0.5)}, "training_mode"),
    ("EliminateDropout", [n("Dropout", ["x"], ["a", "z"]), n("Relu", ["a"], ["y"])], M, {}, "another output"),
    ("CastElimination", [n("Cast", ["x"], ["y"], to=TensorProto.INT32)], M, {}, "x is"),
    ("CastChainElimination", [n("Cast", ["x"], ["a"], to=TensorProto.INT32),
     n("Cast", ["a"], ["y"], to=TensorProto.FLOAT)],
     M, {}, "does not hold"),
    ("EliminateSlice", [n("Slice", ["x", "f", "l", "a"], ["y"])], M, {"f": i64(0), "l": i64(5), "a": i64(1)},
     "before the end"),
    ("EliminateSlice", [n("Slice", ["x", "f", "l", "a", "s"], ["y"])], M,
     {"f": i64(0), "l": i64(6), "a": i64(1), "s": i64(2)}, "steps of 1"),
    ("ExpandElimination", [n("Expand", ["x", "e"], ["y"])], M, {"e": i64(2, 4, 6)}, "adds axes"),
    ("ExpandElimination", [n("Expand", ["x", "e"], ["y"])], {"x": (4, 1)}, {"e": i64(4, 6)}, "may expand"),
    ("NoopPad", [n("Pad", ["x", "p"], ["y"])], M, {"p": i64(0, 0, 0, 1)}, "not constant zeros"),
    ("NoopTile", [n("Tile", ["x", "t"], ["y"])], M, {"t": i64(1, 2)}, "not constant ones"),
    ("NoopTranspose", [n("Transpose", ["x"], ["y"])], M, {}, "permutes"),
    ("NoopReshape", [n("Reshape", ["x", "s"], ["y"])], M, {"s": i64(6, -1)}, "may not be the shape"),
    ("NoopFlatten", [n("Flatten", ["x"], ["y"], axis=0)], M, {}, "not 1"),
    ("NoopElimination", [n("Add", ["x", "k"], ["y"])], M, {"k": np.zeros((3, 1, 1), "f4")}, "may broadcast"),
    ("NoopElimination", [n("Mul", ["x", "k"], ["y"])], M, {"k": one([1, 1, 1, 1, 1, 2])}, "no input is"),
    ("NoopElimination", [n("Sub", ["k", "x"], ["y"])], M, {"k": one(0)}, "no input is"),
    ("NoopReduceMean", [n("ReduceMean", ["x", "a"], ["y"], keepdims=0)], {"x": (4, 1)}, {"a": i64(1)}, "drops axes"),
    ("WhereElimination", [n("Where", ["c", "x", "u"], ["y"])], {"x": (4, 1), "u": (4, 6)}, {"c": one([True], bool)},
     "may broadcast"),
    ("ConvBNFusion", [CONV, BN, n("Relu", ["c"], ["z"])], X, {**KERNEL, **stats(5)}, "also read by"),
    ("ConvBNFusion", [CONV, BN], {**X, "w": (5, 3, 3, 3)}, {"b": KERNEL["b"], **stats(5)}, "not constant"),
    ("ConvMulFusion", [CONV, n("Mul", ["c", "k"], ["y"])], X, {**KERNEL, "k": f32(8)}, "each channel"),
    ("ConvMulFusion", [CONV, n("Mul", ["c", "k"], ["y"])], X, {**KERNEL, "k": f32(2, 1, 1, 1)}, "each channel"),
    ("ConvMulFusion", [n("Conv", ["x", "w"], ["c"]), n("Mul", ["c", "k"], ["y"])], X,
     {"w": f32(1, 3, 3, 3), "k": f32(5, 1, 1)}, "each channel"),
    ("ConvMulFusion", [CONV, n("Div", ["k", "c"], ["y"])], X, {**KERNEL, "k": f32(5, 1, 1)}, ""),
    ("ConvAddFusion", [CONV, n("Add", ["c", "k"], ["y"])], X, {**KERNEL, "k": f32(5, 8, 8)}, "each channel"),
    ("PadFusion", [n("Pad", ["x", "p", "f"], ["a"]), n("Conv", ["a", "w", "b"], ["y"])], X,
     {**KERNEL, "p": i64(0, 0, 1, 2, 0, 0, 3, 4), "f": one(1)}, "with zeros"),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"]), n("Conv", ["a", "w", "b"], ["y"])], X,
     {**KERNEL, "p": i64(1, 0, 1, 2, 0, 0, 3, 4)}, "samples"),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"], mode="reflect"), n("Conv", ["a", "w", "b"], ["y"])], X,
     {**KERNEL, "p": i64(0, 0, 1, 2, 0, 0, 3, 4)}, "mode="),
    ("MatMulAddFusion", [n("MatMul", ["x", "w"], ["a"]), n("Add", ["a", "b"], ["y"])], {"x": (2, 4, 6)},
     {"w": f32(6, 5), "b": f32(5)}, "not matrices"),
    ("MatMulAddFusion", [n("MatMul", ["x", "w"], ["a"]), n("Add", ["a", "b"], ["y"])], {"x": (1, 6)},
     {"w": f32(6, 5), "b": f32(4, 5)}, "may broadcast"),
    ("GemmSumFusion", [n("Gemm", ["x", "w", "b"], ["a"]), n("Add", ["a", "k"], ["y"])], {"x": (4, 6), "k": (5,)},
     {"w": f32(6, 5), "b": f32(5)}, "bias already"),
    ("MatMulMulFusion", [n("MatMul", ["x", "w"], ["a"]), n("Mul", ["a", "k"], ["y"])], M,
     {"w": f32(6, 5), "k": f32(4, 1)}, "each column"),
    ("MatmulBNFusion", [n("MatMul", ["x", "w"], ["c"]), BN], {"x": (2, 5, 6)}, {"w": f32(6, 4), **stats(5)},
     "not matrices"),
    ("GemmTransposeFusion", [n("Transpose", ["x"], ["t"], perm=[0, 1]), n("Gemm", ["t", "w"], ["y"])], {"x": (4, 6)},
     {"w": f32(6, 5)}, "moves nothing"),
    ("FuseReluClip", [n("Relu", ["x"], ["a"]), n("Clip", ["a", "l"], ["y"])], {"x": (4, 6), "l": one(-1)}, {},
     "not constant"),
    ("DivMulFusion", [n("Div", ["k", "x"], ["a"]), n("Mul", ["u", "a"], ["y"])],
     {"x": np.arange(1, 5), "u": np.arange(1, 5)}, {"k": one(1, np.int64)}, "integer division"),
    ("DivMulFusion", [n("Div", ["k", "x"], ["a"]), n("Mul", ["u", "a"], ["y"])], {"x": (4, 6), "u": (6,)},
     {"k": one(2)}, "constant 1"),
    ("TransposeUnaryTranspose", [n("Transpose", ["x"], ["a"], perm=[1, 0]), n("QuantizeLinear", ["a", "s"], ["b"]),
     n("Transpose", ["b"], ["y"], perm=[1, 0])], M, {"s": np.abs(f32(4)) + 0.1}, "along an axis"),
    ("TransposeToReshape", [n("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], X, {}, "moves data"),
    ("ReshapeReshapeFusion", [n("Reshape", ["x", "s"], ["a"]), n("Reshape", ["a", "t"], ["y"])], M,
     {"s": i64(2, 12), "t": i64(0, 3, 4)}, "from between"),
    ("UnsqueezeSqueeze", [n("Unsqueeze", ["x", "a"], ["b"]), n("Squeeze", ["b", "c"], ["y"])], {"x": (1, 6)},
     {"a": i64(0), "c": i64(1)}, "not the same"),
    ("UnsqueezeUnsqueeze", [n("Unsqueeze", ["x", "a"], ["b"]), n("Unsqueeze", ["b", "c"], ["y"])], M,
     {"a": i64(-1), "c": i64(0)}, "from the end"),
    ("DoubleQDQPairsRemover", [n("DequantizeLinear", ["x", "s", "z"], ["a"]),
     n("QuantizeLinear", ["a", "t", "z"], ["y"])],
     {"x": np.arange(-128, 128, dtype=np.int8)}, {"s": one(0.037), "t": one(0.038), "z": one(3, np.int8)},
     "not the same constants"),
    ("GeluFusion", [n("Div", ["x", "r"], ["a"]), n("Erf", ["a"], ["b"]), n("Add", ["b", "k"], ["c"]),
     n("Mul", ["x", "c"], ["d"]),
     n("Mul", ["d", "h"], ["y"])], M, {"r": one(1.5), "k": one(1), "h": one(0.5)}, "1.4142"),
    ("LayerNormFusion", [n("ReduceMean", ["x", "a"], ["m"]), n("Sub", ["x", "m"], ["d"]),
     n("Pow", ["d", "two"], ["p"]),
     n("ReduceMean", ["p", "a"], ["q"]), n("Add", ["q", "e"], ["r"]), n("Sqrt", ["r"], ["t"]),
     n("Div", ["d", "t"], ["u"]),
     n("Mul", ["u", "s"], ["g"]), n("Add", ["g", "o"], ["y"])], {"x": (6, 6)},
     {"a": i64(0), "two": one(2), "e": one(1e-5), "s": f32(6), "o": f32(6)}, "last ones"),
]  # fmt: skip


KEEPS += [
    ("PreShapeNodeElimination", [n("Flatten", ["x"], ["a"]), n("Shape", ["a"], ["y"])], {"x": (4, 6, 2)}, {}, ""),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"]), n("MaxPool", ["a"], ["y"], kernel_shape=[3, 3])], X,
     {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}, "what the pool pads with"),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"]), n("AveragePool", ["a"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)], X,
     {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}, "count its own"),
    ("PadFusion", [n("Pad", ["x", "p"], ["a"]), n("AveragePool", ["a"], ["y"], kernel_shape=[2, 2])], X,
     {"p": i64(0, 0, 2, 1, 0, 0, 1, 1)}, "as wide as the kernel"),
    ("ReluQuantFusion", [n("Relu", ["x"], ["a"]), n("QuantizeLinear", ["a", "s", "z"], ["y"])], M,
     {"s": one(0.05), "z": one(3, np.uint8)}, "cuts off more"),
    ("ClipQuantFusion", [n("Clip", ["x", "l", "h"], ["a"]), n("QuantizeLinear", ["a", "s", "z"], ["y"])], M,
     {"l": one(0), "h": one(5), "s": one(6 / 255), "z": one(0, np.uint8)}, "cuts off more"),
    ("ClipClipFusion", [n("Clip", ["x", "l"], ["a"]), n("Clip", ["a", "k"], ["y"])], {"x": (4, 6), "l": one(-1)},
     {"k": one(0)}, "not constant"),
    ("FuseClipRelu", [n("Clip", ["x", "l"], ["a"]), n("Relu", ["a"], ["y"])], {"x": (4, 6), "l": one(-1)}, {},
     "not constant"),
    ("DoubleNeg", [n("Neg", ["x"], ["a"]), n("Abs", ["a"], ["b"]), n("Neg", ["b"], ["y"])], M, {}, ""),
    ("DoubleNot", [n("Not", ["c"], ["a"]), n("And", ["a", "d"], ["b"]), n("Not", ["b"], ["y"])],
     {"c": np.array([True, False]), "d": np.array([True, True])}, {}, ""),
    ("GemmMulFusion", [n("Gemm", ["x", "w", "b"], ["a"]), n("Mul", ["a", "k"], ["y"])], M,
     {"w": f32(6, 5), "b": f32(5), "k": f32(4, 1)}, "each column"),
    ("MatMulTransposeFusion", [n("Transpose", ["u"], ["t"], perm=[0, 2, 1]), n("MatMul", ["x", "t"], ["y"])],
     {"x": (2, 4, 6), "u": (2, 5, 6)}, {}, "not matrices"),
    ("NoopConcat", [n("Concat", ["x", "x"], ["y"], axis=0)], M, {}, ""),
    *((f"Noop{k}", [n(k, ["x", "u"], ["y"])], {"x": (4, 6), "u": (6,)}, {}, "") for k in ("Sum", "Max", "Min", "Mean")),
    *((f"NoopReduce{k}", [n(f"Reduce{k}", ["x", "a"], ["y"])], M, {"a": i64(-1)}, "it reduces")
      for k in ("Sum", "Max", "Min", "Prod")),
    ("NotWhereFusion", [n("Not", ["d"], ["a"]), n("Where", ["c", "a", "d"], ["y"])],
     {"c": np.array([True, False]), "d": np.array([False, False])}, {}, ""),
    ("QDQPropagation", [n("DequantizeLinear", ["x", "s"], ["a"]), n("Transpose", ["a"], ["b"]),
     n("QuantizeLinear", ["b", "t"], ["y"])], {"x": np.arange(6, dtype=np.uint8).reshape(2, 3)},
     {"s": one(0.5), "t": one(0.25)}, "not the same constants"),
    ("QDQPropagation", [n("DequantizeLinear", ["x", "s"], ["a"]), n("Transpose", ["a"], ["b"]),
     n("QuantizeLinear", ["b", "s"], ["y"])], {"x": np.arange(4, dtype=np.uint8).reshape(2, 2)},
     {"s": one([0.5, 0.25])}, "along an axis"),
    ("ReluRelu", [n("LeakyRelu", ["x"], ["a"]), n("Relu", ["a"], ["y"])], M, {}, ""),
    ("TransposeTransposeFusion", [n("Transpose", ["x"], ["a"], perm=[1, 0]), n("Transpose", ["a"], ["y"], perm=[1, 0])],
     M, {}, "graph output"),
    ("DivMulFusion", [n("Div", ["k", "x"], ["a"]), n("Mul", ["u", "a"], ["y"])], {"x": (4, 6), "u": (6,)},
     {"k": one([[[1]]])}, "may get axes"),
    ("ConvBNFusion", [n("Conv", ["x", "w"], ["c"]), BN], {"x": f32(1, 3, 4, 4).astype(np.float16)},
     {"w": np.full((5, 3, 1, 1), 0.1, np.float16), **{k: v.astype(np.float16) for k, v in stats(5).items()},
      "s": np.full(5, 1e-6, np.float16)}, "cannot be made"),
]  # fmt: skip


def _ids(rows: list) -> list[str]:
    return [f"{row[0]}-{i}" for i, row in enumerate(rows)]


@pytest.mark.parametrize(("rule", "nodes", "inputs", "constants", "expected"), FIRES, ids=_ids(FIRES))
def test_fires(rule, nodes, inputs, constants, expected):
    model = model_of(nodes, inputs, constants)
    ops, report, _ = optimized(model)
    assert ops == expected
    assert all(r.why for r in report.removed)
    if rule != "NoopTranspose":  # without it, a Reshape to the same shape goes just as well
        assert optimized(model, disabled=[rule])[0] != expected
    same_values(model, feed(inputs))


@pytest.mark.parametrize(("rule", "nodes", "inputs", "constants", "reason"), KEEPS, ids=_ids(KEEPS))
def test_does_not_fire(rule, nodes, inputs, constants, reason):
    model = model_of(nodes, inputs, constants)
    off = [r.name for r in transformers()[1] if r.name != rule]
    ops, report, _ = optimized(
        model, disabled=[*off, "StaticShapes", "ShapeArithmetic", "CommonSubexpressionElimination"]
    )
    assert ops == [node.op_type for node in nodes]
    if reason:
        assert [m for m in report.misses if m.rule == rule and reason in m.reason], report.misses
    same_values(model, feed(inputs))


# These have tests of their own, of graphs with dynamic sizes for instance.
APART = {
    "BatchNormAffineFusion",
    "GroupedHeadsFusion",
    "RotaryEmbeddingFusion",
    "GroupNormFusion",
    "GroupNormAffineFusion",
    "EmbedLayerNormFusion",
    *(f"{what}QDQFusion" for what in ("Conv", "Gemm", "MatMul", "Binary", "Unary")),  # test_optimizer_integers.py
}


def test_every_rule_is_tested():
    known = {r.name for r in transformers(plugins=False)[1]}
    alike = {"NoopMax", "NoopMin", "NoopMean", "DoubleNot", *(f"NoopReduce{k}" for k in ("Sum", "Max", "Min", "Prod"))}
    assert known - {row[0] for row in FIRES} - APART == alike
    assert known - APART == {row[0] for row in KEEPS}


def test_fusions_are_of_level_extended():
    model = model_of([n("Sigmoid", ["x"], ["a"]), n("Mul", ["x", "a"], ["y"])], M)
    assert optimized(model, GraphOptimizationLevel.ORT_ENABLE_BASIC)[0] == ["Sigmoid", "Mul"]
    assert optimized(model, GraphOptimizationLevel.ORT_ENABLE_EXTENDED)[0] == ["Swish"]


def test_half_precision_weights_stay_in_half_precision():
    constants = {k: v.astype(np.float16) for k, v in {**KERNEL, **stats(5)}.items()}
    x = {"x": f32(2, 3, 8, 8).astype(np.float16)}
    model = model_of([CONV, BN], x, constants)
    ops, _, graph = optimized(model)
    assert ops == ["Conv"]
    assert {v.dtype.name for v in graph.graph.initializers.values()} == {"FLOAT16"}
    same_values(model, x)


def test_weights_that_would_overflow_are_left_alone():
    constants = {"w": np.full((1, 3, 1, 1), 6e4, np.float16), "k": np.full((1, 1, 1), 100, np.float16)}
    model = model_of(
        [n("Conv", ["x", "w"], ["c"]), n("Mul", ["c", "k"], ["y"])],
        {"x": np.zeros((1, 3, 2, 2), np.float16)},
        constants,
    )
    ops, report, _ = optimized(model)
    assert ops == ["Conv", "Mul"]
    assert any("cannot be made" in m.reason for m in report.misses if m.rule == "ConvMulFusion")
