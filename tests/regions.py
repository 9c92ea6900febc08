"""Networks for the tests of level layout: regions of convolutions, and what may stand in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

F32 = TensorProto.FLOAT
INT = np.int64


class Net:
    """A network that grows by its layers; names are given out in order, weights are drawn."""

    def __init__(self, *shape: Any) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(3)
        self.shape = shape

    def constant(self, content: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(content, dtype)
        return name

    def drawn(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, shape) / max(np.sqrt(np.prod(shape[1:])), 1))

    def add(self, op: str, *inputs: Any, outputs: int = 1, name: str = "", **attrs: Any) -> Any:
        made = [f"v{len(self.nodes)}_{i}" for i in range(outputs)] if not name else [name]
        self.nodes.append(onnx.helper.make_node(op, list(inputs), made, f"n{len(self.nodes)}_{op}", **attrs))
        return made[0] if outputs == 1 else made

    def conv(self, x: str, channels: int, filters: int, k: int = 3, group: int = 1, **attrs: Any) -> str:
        rank = len(self.shape) - 2
        pads = attrs.pop("pads", [k // 2] * (2 * rank))
        w, b = self.drawn(filters, channels // group, *[k] * rank), self.drawn(filters)
        return self.add("Conv", x, w, b, pads=pads, group=group, **attrs)

    def block(self, x: str, channels: int) -> str:
        """A residual block."""
        y = self.add("Relu", self.conv(x, channels, channels))
        return self.add("Relu", self.add("Add", self.conv(y, channels, channels), x))

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The network as a model with one input, "x"."""
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info("x", F32, list(self.shape))],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 21)]
        model = shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=10))
        for out in model.graph.output:
            if not out.type.WhichOneof("value"):
                out.type.CopyFrom(helper.make_tensor_type_proto(F32, None))
        return model

    def feed(self, *shape: int) -> dict[str, np.ndarray]:
        return {"x": self.rng.standard_normal(shape or self.shape).astype(np.float32)}


BETWEEN = {  # what stands between two convolutions, by name: it takes 16 channels and gives as many
    "Clip": lambda n, x: n.add("Clip", x, n.constant(0), n.constant(6)),
    "scalar": lambda n, x: n.add("Mul", x, n.constant(3)),
    "scalar of rank 4": lambda n, x: n.add("Mul", n.constant([[[[3]]]]), x),
    "channels": lambda n, x: n.add("Mul", x, n.constant(n.rng.uniform(0.5, 1, (16, 1, 1)))),
    "rows": lambda n, x: n.add("Add", x, n.constant(n.rng.uniform(0.5, 1, (12, 1)))),
    "columns": lambda n, x: n.add("Sub", n.constant(n.rng.uniform(0.5, 1, 12)), x),
    "image": lambda n, x: n.add("Add", x, n.constant(n.rng.uniform(0.5, 1, (1, 16, 12, 12)))),
    "itself": lambda n, x: n.add("Mul", x, x),
    "PRelu": lambda n, x: n.add("PRelu", x, n.constant(n.rng.uniform(0.1, 0.3, (16, 1, 1)))),
    "Where": lambda n, x: n.add("Where", n.add("Greater", x, n.constant(0)), x, n.constant(-1)),
    "Softmax": lambda n, x: n.add("Softmax", x, axis=1),
    "LogSoftmax": lambda n, x: n.add("LogSoftmax", x, axis=-1),
    "Pad": lambda n, x: n.add("Pad", x, n.constant([0, 0, 1, 2, 0, 0, 3, 1], INT), n.constant(0.5)),
    "Pad with axes": lambda n, x: n.add("Pad", x, n.constant([1, 2], INT), "", n.constant([-1], INT), mode="edge"),
    "Slice": lambda n, x: n.add("Slice", x, n.constant([1, 2], INT), n.constant([9, 10], INT),
                                n.constant([2, -1], INT)),
    "Slice of steps": lambda n, x: n.add("Concat", *(n.add("Slice", x, n.constant([i], INT), n.constant([12], INT),
                                                           n.constant([2], INT), n.constant([2], INT))
                                                     for i in (0, 1)), axis=2),
    "Slice without axes": lambda n, x: n.add("Slice", x, n.constant([0, 0, 1], INT), n.constant([9, 16, 9], INT)),
    "Split": lambda n, x: n.add("Concat", *n.add("Split", x, n.constant([4, 12], INT), outputs=2, axis=1)[::-1],
                                axis=1),
    "Split of rows": lambda n, x: n.add("Max", *n.add("Split", x, outputs=2, axis=2, num_outputs=2)),
    "ReduceMean": lambda n, x: n.add("Sub", x, n.add("ReduceMean", x, n.constant([2, 3], INT))),
    "ReduceMax of channels": lambda n, x: n.add("Sub", x, n.add("ReduceMax", x, n.constant([1], INT))),
    "ReduceL2": lambda n, x: n.add("Div", x, n.add("ReduceL2", x, n.constant([1, -1], INT))),
    "ArgMax": lambda n, x: n.add("Add", x, n.add("Cast", n.add("ArgMax", x, axis=1), to=F32)),
    "CumSum": lambda n, x: n.add("CumSum", x, n.constant(1, INT)),
    "Expand": lambda n, x: n.add("Expand", n.add("ReduceMean", x, n.constant([2], INT)),
                                 n.constant([16, 6, 1], INT)),
    "Tile": lambda n, x: n.add("Tile", x, n.constant([1, 1, 2, 1], INT)),
    "Gather": lambda n, x: n.add("Gather", x, n.constant(np.arange(16)[::-1], INT), axis=1),
    "Resize to sizes": lambda n, x: n.add("Resize", x, "", "", n.constant([1, 16, 7, 9], INT), mode="cubic"),
    "Resize of axes": lambda n, x: n.add("Resize", x, "", n.constant([2.0, 1.5]), axes=[3, 2]),
    "Resize with a policy": lambda n, x: n.add("Resize", x, "", "", n.constant([20, 18], INT), axes=[2, 3],
                                               keep_aspect_ratio_policy="not_larger"),
    "ConvTranspose": lambda n, x: n.add("ConvTranspose", x, n.drawn(16, 16, 2, 2), n.drawn(16), strides=[2, 2]),
    "LRN": lambda n, x: n.add("LRN", x, size=5),
    "InstanceNormalization": lambda n, x: n.add("InstanceNormalization", x, n.drawn(16), n.drawn(16)),
    "LpPool": lambda n, x: n.add("LpPool", x, kernel_shape=[2, 2]),
    "GlobalLpPool": lambda n, x: n.add("Div", x, n.add("GlobalLpPool", x)),
    "quantized": lambda n, x: n.add("DequantizeLinear", n.add("QuantizeLinear", x, n.constant(0.1)), n.constant(0.1)),
    "rows as columns": lambda n, x: n.add("Transpose", x, perm=[0, 1, 3, 2]),
    "places in a row": lambda n, x: n.add("Reshape", n.add("Relu", n.add(
        "Reshape", x, n.constant([1, 16, -1], INT))), n.constant([1, 16, 12, 12], INT)),
    "shape arithmetic": lambda n, x: n.add("Resize", x, "", "", n.add("Mul", n.add("Shape", x), n.constant([1, 1, 2, 2],
                                                                                                      INT))),
}  # fmt: skip


def skip(net: Net) -> str:
    """A decoder that takes its size from what it is joined with, as torch writes it."""
    high = net.conv("x", 3, 16)
    low = net.conv(net.add("MaxPool", high, kernel_shape=[2, 2], strides=[2, 2]), 16, 16)
    size = net.add("Slice", net.add("Shape", high), net.constant([2], INT), net.constant([4], INT))
    kept = net.add("Slice", net.add("Shape", low), net.constant([0], INT), net.constant([2], INT))
    up = net.add("Resize", low, "", "", net.add("Concat", kept, size, axis=0), mode="linear")
    return net.conv(net.add("Concat", up, high, axis=1), 32, 3)


DYNAMIC = {  # networks over images of open size
    "blocks": lambda n: n.block(n.conv("x", 3, 16), 16),
    "pool": lambda n: n.add("Flatten", n.add("GlobalAveragePool", n.block(n.conv("x", 3, 16), 16))),
    "pixels": lambda n: n.add("DepthToSpace", n.conv(n.conv("x", 3, 16), 16, 4), blocksize=2),
    "one channel": lambda n: n.conv(n.conv("x", 3, 16), 16, 1),
    "skip": skip,
    "tokens": lambda n: n.add("Transpose", n.add("Reshape", n.conv(n.conv("x", 3, 16), 16, 8),
                                                 n.constant([0, 8, -1], INT)), perm=[0, 2, 1]),
}  # fmt: skip
