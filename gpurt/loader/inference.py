"""Element types and shapes of values, as far as onnx's own shape inference finds them when a model is loaded.

This is a hint for those who look at a graph before shapes are known; planning uses the rules of ``gpurt.infer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import onnx
import onnx_ir as ir

from gpurt import logs
from gpurt.loader.names import defined
from gpurt.loader.opsets import canonical_domain
from gpurt.loader.typestr import text
from gpurt.loader.walk import graphs

logger = logs.get(__name__)

_SMALL: Final = 1024  # initializers of more bytes are no axes, pads or shapes, and inference needs only their type


def annotate(model: ir.Model, imports: Mapping[str, int]) -> None:
    """Set dtype and shape of the values that have none. Failing is no error: what is not inferred stays unknown."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_skeleton(model, imports), check_type=False, strict_mode=False)
        found = {
            info.name: info for graph in _proto_graphs(inferred.graph) for info in (*graph.value_info, *graph.output)
        }
    except Exception as error:  # noqa: BLE001 - onnx raises several unrelated types, and the result is only a hint
        logger.debug("onnx's shape inference failed: %s", error)
        return
    for graph in graphs(model.graph):
        for value in defined(graph):
            info = found.get(value.name or "")
            if info is not None and info.HasField("type"):
                _merge(value, info)


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes that the file states of computed values: exporters get them wrong where a dimension is dynamic.

    What bodies say of their outputs stays: it is all that is known of a loop that makes no iteration.
    """
    for graph in graphs(model.graph):
        for node in graph:
            for value in node.outputs:
                if graph is model.graph or not value.is_graph_output():
                    value.shape = None


def _merge(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    try:
        if value.type is None:
            value.type = ir.serde.deserialize_type_proto_for_type(info.type)
        if value.shape is None or not value.shape.is_static():
            shape = ir.serde.deserialize_type_proto_for_shape(info.type)
            if shape is not None and (value.shape is None or len(shape) == len(value.shape)):
                value.shape = shape
    except ir.serde.SerdeError as error:  # map types, which onnx-ir does not have
        logger.debug("type of %r not kept: %s", value.name, error)


def _skeleton(model: ir.Model, imports: Mapping[str, int]) -> onnx.ModelProto:
    # The model without weights: they claim to be external data, so that models of any size fit into one message.
    known = onnx.defs.onnx_opset_version()
    version = max(4, min(model.ir_version, onnx.IR_VERSION))  # from 4 on, weights are no inputs
    proto = onnx.ModelProto(ir_version=version)
    for domain, version in imports.items():
        name = canonical_domain(domain)
        proto.opset_import.add(domain=name, version=min(version, known) if name == "" else version)
    _fill(proto.graph, model.graph)
    return proto


def _fill(proto: onnx.GraphProto, graph: ir.Graph) -> None:
    proto.name = text(graph.name or "graph")
    for value in graph.inputs:
        proto.input.append(ir.serde.serialize_value(value))
    for value in graph.initializers.values():
        tensor = value.const_value
        if value.is_graph_input() or tensor is None:
            continue
        if tensor.dtype != ir.DataType.STRING and tensor.nbytes <= _SMALL:
            proto.initializer.append(ir.serde.serialize_tensor(tensor))
        else:
            weight = proto.initializer.add(
                name=value.name or "", data_type=int(tensor.dtype), dims=list(tensor.shape.numpy())
            )
            weight.data_location = onnx.TensorProto.EXTERNAL
    for node in graph:
        proto.node.append(_node(node))
        for value in node.outputs:
            if value.name and value.type is not None and not value.is_graph_output():
                proto.value_info.append(ir.serde.serialize_value(value))
    for value in graph.outputs:
        proto.output.append(ir.serde.serialize_value(value))


def _node(node: ir.Node) -> onnx.NodeProto:
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name or "")
    proto.input.extend((value.name or "") if value is not None else "" for value in node.inputs)
    proto.output.extend(value.name or "" for value in node.outputs)
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            _fill(proto.attribute.add(name=attr.name, type=onnx.AttributeProto.GRAPH).g, attr.as_graph())
        elif attr.type != ir.AttributeType.GRAPHS:
            proto.attribute.append(ir.serde.serialize_attribute(attr))
    return proto


def _proto_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("g"):
                found.extend(_proto_graphs(attr.g))
    return found
