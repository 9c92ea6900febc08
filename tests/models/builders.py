"""Small models with the structure of real ones and seeded random weights; opset 17 as exporters write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper


class Net:
    """Collects nodes and weights under generated names."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(seed)

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"{op.lower()}_{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, f"{op}_{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, scale: float | None = None) -> str:
        fan = int(np.prod(shape[1:])) or 1
        scale = 1 / np.sqrt(fan) if scale is None else scale
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def constant(self, value: Any, dtype: Any = None) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def model(self, inputs: dict[str, tuple[int, list]], outputs: list[str], opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
            [onnx.numpy_helper.from_array(a, n) for n, a in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def residual_cnn() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Conv, BatchNormalization, Relu, shortcut, depthwise Conv, HardSwish in pieces, pooling, Gemm; dynamic batch."""
    net = Net(1)

    def block(x: str, channels: int, out: int, stride: int = 1, group: int = 1) -> str:
        y = net("Conv", x, net.weight(out, channels // group, 3, 3), net.weight(out), kernel_shape=[3, 3],
                pads=[1, 1, 1, 1], strides=[stride, stride], group=group)  # fmt: skip
        stats = [net.constant(net.rng.random(out) + 0.5, np.float32) for _ in range(4)]
        return net("BatchNormalization", y, *stats)

    x = net("Relu", block("image", 3, 16))
    x = net("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = net("Relu", net("Add", block(net("Relu", block(x, 16, 16)), 16, 16), x))
    y = block(x, 16, 16, 2, group=16)
    gate = net(
        "Clip",
        net("Add", y, net.constant(3.0, np.float32)),
        net.constant(0.0, np.float32),
        net.constant(6.0, np.float32),
    )
    y = net("Div", net("Mul", y, gate), net.constant(6.0, np.float32))
    y = net("Concat", y, net("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    y = net("Flatten", net("GlobalAveragePool", y), axis=1)
    y = net("Softmax", net("Gemm", y, net.weight(10, 32), net.weight(10), transB=1), axis=1)
    feeds = [{"image": net.rng.standard_normal((b, 3, 32, 32)).astype(np.float32)} for b in (1, 3)]
    return net.model({"image": (TensorProto.FLOAT, ["batch", 3, 32, 32])}, [y]), feeds


def transformer() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Embedding, LayerNormalization, attention with shape arithmetic between, GELU by Erf; dynamic length."""
    net, width, heads = Net(2), 32, 4
    x = net("Gather", net.weight(50, width, scale=1.0), "ids")
    for _ in range(2):
        y = net("LayerNormalization", x, net.constant(np.ones(width), np.float32), net.weight(width), axis=-1)
        shape = net("Shape", y)
        batch = net("Unsqueeze", net("Gather", shape, net.constant(0, np.int64)), net.constant([0], np.int64))
        length = net("Unsqueeze", net("Gather", shape, net.constant(1, np.int64)), net.constant([0], np.int64))
        split = net(
            "Concat", batch, length, net.constant([heads], np.int64), net.constant([width // heads], np.int64), axis=0
        )
        parts = []
        for part in "qkv":
            projected = net("Add", net("MatMul", y, net.weight(width, width)), net.weight(width))
            perm = [0, 2, 3, 1] if part == "k" else [0, 2, 1, 3]
            parts.append(net("Transpose", net("Reshape", projected, split), perm=perm))
        q, k, v = parts
        scores = net("Div", net("MatMul", q, k), net.constant(np.sqrt(width / heads), np.float32))
        mixed = net("Transpose", net("MatMul", net("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        merged = net("Reshape", mixed, net("Concat", batch, length, net.constant([width], np.int64), axis=0))
        x = net("Add", x, net("MatMul", merged, net.weight(width, width)))
        h = net("Add", net("MatMul", x, net.weight(width, 64)), net.weight(64))
        erf = net("Erf", net("Div", h, net.constant(np.sqrt(2), np.float32)))
        h = net("Mul", net("Mul", h, net("Add", erf, net.constant(1, np.float32))), net.constant(0.5, np.float32))
        x = net("Add", x, net("MatMul", h, net.weight(64, width)))
    y = net("ReduceMean", x, axes=[1], keepdims=0)
    feeds = [{"ids": net.rng.integers(0, 50, s)} for s in ((1, 7), (2, 12), (1, 7))]
    return net.model({"ids": (TensorProto.INT64, ["batch", "length"])}, [y]), feeds


def recurrent() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Bidirectional LSTM, GRU with linear_before_reset, LogSoftmax."""
    net, n, h = Net(3), 12, 16
    y = net("LSTM", "x", net.weight(2, 4 * h, n), net.weight(2, 4 * h, h), net.weight(2, 8 * h), hidden_size=h,
            direction="bidirectional")  # fmt: skip
    y = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), net.constant([0, 0, -1], np.int64))
    y, last = net("GRU", y, net.weight(1, 3 * h, 2 * h), net.weight(1, 3 * h, h), net.weight(1, 6 * h), outputs=2,
                  hidden_size=h, linear_before_reset=1)  # fmt: skip
    out = net("LogSoftmax", net("Squeeze", y, net.constant([1], np.int64)), axis=-1)
    feeds = [{"x": net.rng.standard_normal((t, 2, n)).astype(np.float32)} for t in (5, 9)]
    return net.model({"x": (TensorProto.FLOAT, ["time", 2, n])}, [out, last]), feeds


def u_net() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Strided Conv, ConvTranspose, linear and nearest Resize to sizes from Shape, Concat, Pad; dynamic image size."""
    net = Net(4)
    a = net("LeakyRelu", net("Conv", "image", net.weight(8, 3, 3, 3), pads=[1, 1, 1, 1]), alpha=0.1)
    b = net("Sigmoid", net("Conv", net("Pad", a, net.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64), mode="reflect"),
                           net.weight(16, 8, 3, 3), strides=[2, 2]))  # fmt: skip
    up = net("ConvTranspose", b, net.weight(16, 8, 2, 2), strides=[2, 2])
    outer = net("Slice", net("Shape", up), net.constant([0], np.int64), net.constant([2], np.int64))
    inner = net("Slice", net("Shape", a), net.constant([2], np.int64), net.constant([4], np.int64))
    size = net("Concat", outer, inner, axis=0)
    up = net("Resize", up, "", "", size, mode="linear", coordinate_transformation_mode="half_pixel")
    y = net(
        "InstanceNormalization", net("Concat", a, up, axis=1), net.constant(np.ones(16), np.float32), net.weight(16)
    )
    y = net("Conv", y, net.weight(4, 16, 1, 1))
    y = net("Resize", y, "", net.constant([1, 1, 2, 2], np.float32), mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    y = net("DepthToSpace", y, blocksize=2)
    feeds = [{"image": net.rng.random((1, 3, *s)).astype(np.float32)} for s in ((16, 24), (18, 22))]
    return net.model({"image": (TensorProto.FLOAT, [1, 3, "h", "w"])}, [y]), feeds


ALL: dict[str, Callable[[], tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]]] = {
    f.__name__: f for f in (residual_cnn, transformer, recurrent, u_net)
}
