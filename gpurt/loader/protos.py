"""Walks over a ModelProto, and the edits that must happen before onnx-ir reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from gpurt.errors import InvalidGraph
from gpurt.loader import tensors

Container = onnx.GraphProto | onnx.FunctionProto


def node_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs in the attributes of a node."""
    for attr in node.attribute:
        if attr.HasField("g"):
            yield attr.g
        yield from attr.graphs


def nested(container: Container) -> Iterator[Container]:
    """A graph or function and all graphs nested in it, outermost first. Iterative: depth is not trusted yet."""
    stack: list[Container] = [container]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            stack.extend(node_graphs(node))


def containers(model: onnx.ModelProto) -> Iterator[Container]:
    """All graphs and functions of a model."""
    yield from nested(model.graph)
    for function in model.functions:
        yield from nested(function)


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """All graphs of a model; functions only by the graphs nested in them."""
    for container in containers(model):
        if isinstance(container, onnx.GraphProto):
            yield container


def describe(node: onnx.NodeProto, index: int | None = None) -> str:
    """Name of a node for messages, also where it has none."""
    if node.name:
        return node.name
    if node.output and node.output[0]:
        return f"{node.op_type} -> {node.output[0]}"
    return f"{node.op_type} #{index}" if index is not None else node.op_type


def drop_constant_inputs(model: onnx.ModelProto) -> None:
    """Take initializers off the main graph's inputs: before IR version 4 they had to be there without being inputs."""
    constant = {tensor.name for tensor in model.graph.initializer}
    constant.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    for index in reversed(range(len(model.graph.input))):
        if model.graph.input[index].name in constant:
            del model.graph.input[index]


def fill_attribute_types(model: onnx.ModelProto) -> None:
    """State the types of attributes, which the first IR version left to be seen from the field that is set."""
    for container in containers(model):
        for node in container.node:
            for attr in node.attribute:
                if not attr.type and not attr.ref_attr_name:
                    attr.type = _attribute_type(attr)


def _attribute_type(attr: onnx.AttributeProto) -> Any:
    kinds = onnx.AttributeProto
    single = {"f": kinds.FLOAT, "i": kinds.INT, "s": kinds.STRING, "t": kinds.TENSOR, "g": kinds.GRAPH}
    several = {"floats": kinds.FLOATS, "ints": kinds.INTS, "strings": kinds.STRINGS, "tensors": kinds.TENSORS,
               "graphs": kinds.GRAPHS}  # fmt: skip
    for field, kind in single.items():
        if attr.HasField(field):
            return kind
    for field, kind in several.items():
        if len(getattr(attr, field)):
            return kind
    return kinds.INTS  # an empty list; that of no number


def make_dense(model: onnx.ModelProto) -> None:
    """Make sparse initializers and sparse Constants dense: onnx-ir drops the first and refuses the second."""
    for container in containers(model):
        if isinstance(container, onnx.GraphProto) and container.sparse_initializer:
            for sparse in container.sparse_initializer:
                container.initializer.append(_dense(sparse, sparse.values.name))
            del container.sparse_initializer[:]
        for node in container.node:
            for attr in node.attribute:
                if attr.type == onnx.AttributeProto.SPARSE_TENSOR and not attr.ref_attr_name:
                    if node.op_type != "Constant" or attr.name != "sparse_value":
                        raise InvalidGraph(
                            f"sparse attribute {attr.name!r} is not supported", node=describe(node), op=node.op_type
                        )
                    dense = _dense(attr.sparse_tensor, describe(node))
                    attr.CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    where = f"sparse tensor {name!r}"
    shape = list(sparse.dims)
    count = tensors.element_count(shape, where)
    if count > tensors.LARGEST_DENSE:
        raise InvalidGraph(f"{where} would have {count} elements when made dense")
    tensors.check(sparse.values, where)
    tensors.check(sparse.indices, where)
    values = onnx.numpy_helper.to_array(sparse.values).reshape(-1)
    indices = onnx.numpy_helper.to_array(sparse.indices).astype(np.int64)
    if indices.ndim == 2:
        if indices.shape != (len(values), len(shape)):
            raise InvalidGraph(
                f"{where}: indices of shape {list(indices.shape)} for {len(values)} values of rank {len(shape)}"
            )
        if ((indices < 0) | (indices >= np.array(shape, dtype=np.int64))).any():
            raise InvalidGraph(f"{where}: an index lies outside {shape}")
        indices = np.ravel_multi_index(tuple(indices.T), tuple(shape)) if len(values) else indices.reshape(-1)
    if indices.shape != (len(values),) or (len(values) and (indices.min() < 0 or indices.max() >= count)):
        raise InvalidGraph(f"{where}: the indices do not fit {shape}")
    dense = np.zeros(count, dtype=values.dtype)
    dense[indices] = values
    return onnx.numpy_helper.from_array(dense.reshape(shape), name)


def own_outputs(model: onnx.ModelProto) -> None:
    """Let nested graphs pass outer values that they return through an Identity: onnx-ir loses such outputs."""
    for container in containers(model):
        for node in container.node:
            for graph in node_graphs(node):
                _own_outputs(graph)


def _own_outputs(graph: onnx.GraphProto) -> None:
    own = {name for node in graph.node for name in node.output}
    own.update(info.name for info in graph.input)
    own.update(tensor.name for tensor in graph.initializer)
    used = own | {name for node in graph.node for name in node.input}
    for position, info in enumerate(graph.output):
        if info.name in own:
            continue
        fresh = f"{info.name}_out{position}"
        while fresh in used:
            fresh += "_"
        used.add(fresh)
        graph.node.append(onnx.helper.make_node("Identity", [info.name], [fresh]))
        info.name = fresh
