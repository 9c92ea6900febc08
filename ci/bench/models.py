"""What the benchmarks run: the inputs of a model, and a small generated set where no model is named."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def feeds(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Inputs of a model by name."""
    graph = onnx.load(path, load_external_data=False).graph
    held = {i.name for i in graph.initializer}
    kept = path.with_suffix(".npz")
    data: Any = np.load(kept, allow_pickle=False) if kept.exists() else {}
    rng = np.random.default_rng(0)
    out = {}
    for value in (i for i in graph.input if i.name not in held):
        if f"in:{value.name}" in data:
            out[value.name] = data[f"in:{value.name}"]
            continue
        tensor = value.type.tensor_type
        shape = [d.dim_value or 1 for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        out[value.name] = np.asarray(drawn).astype(dtype)
    return out


def generated(folder: pathlib.Path) -> list[pathlib.Path]:
    """A convolutional network, a transformer's block and a recurrent layer, with seeded weights."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / math.sqrt(shape[-1])).astype(np.float32), name)

    def save(name: str, nodes: list, weights: list, shape: list[int], rank: int) -> pathlib.Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
        graph = helper.make_graph(nodes, name, [x], [y], weights)
        path = folder / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
        return path

    node = helper.make_node
    cnn = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=32),
        node("HardSwish", ["c2"], ["h2"]),
        node("Conv", ["h2", "w3"], ["c3"]),
        node("MaxPool", ["c3"], ["p3"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p3"], ["g3"]),
        node("Sigmoid", ["g3"], ["s3"]),
        node("Mul", ["p3", "s3"], ["y"]),
    ]
    filters = [weight("w1", 32, 3, 3, 3), weight("b1", 32), weight("w2", 32, 1, 3, 3), weight("w3", 64, 32, 1, 1)]
    block = [
        node("LayerNormalization", ["x", "g", "b"], ["n"]),
        node("MatMul", ["n", "u"], ["m"]),
        node("Gelu", ["m"], ["a"]),
        node("MatMul", ["a", "d"], ["o"]),
        node("Add", ["x", "o"], ["r"]),
        node("Softmax", ["r"], ["y"]),
    ]
    dense = [weight("g", 384), weight("b", 384), weight("u", 384, 1536), weight("d", 1536, 384)]
    lstm = [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=128)]
    gates = [weight("w", 1, 512, 64), weight("r", 1, 512, 128)]
    return [
        save("cnn", cnn, filters, [1, 3, 96, 96], 4),
        save("transformer", block, dense, [1, 196, 384], 3),
        save("lstm", lstm, gates, [400, 4, 64], 4),
    ]
