"""From a checked ModelProto to onnx-ir: tensors detached from it, functions inlined, constants as initializers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from gpurt.errors import GpurtError, InvalidGraph
from gpurt.loader import opsets
from gpurt.loader.names import Names
from gpurt.loader.opsets import CANONICAL_OPSETS
from gpurt.loader.tensors import ExternalData, detach
from gpurt.loader.upgrade import ORIGIN
from gpurt.loader.walk import bodies, graphs


def to_ir(proto: onnx.ModelProto, external: ExternalData) -> ir.Model:
    """The same model as onnx-ir objects. Each node's ``version`` is the opset it was written for."""
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:  # the kinds are many: unknown enumeration values, missing names, nested SerdeErrors
        cause: BaseException = error
        while cause.__cause__ is not None:  # onnx-ir wraps the reason once for each level, with the whole proto as text
            cause = cause.__cause__
        raise InvalidGraph(f"the model cannot be represented: {cause}") from error
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        imports = opsets.merged(root.opset_imports.items()) or {"": 1}
        for graph in graphs(root):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = detach(value.const_value, external, f"initializer {value.name!r}")
                    if not value.is_graph_input():  # one that may be overridden is what the input says
                        value.shape = ir.Shape(value.const_value.shape.numpy())
                        value.type = ir.TensorType(value.const_value.dtype)
            for node in graph:
                node.version = imports.get(node.domain, 1)
                _detach_attributes(node, external)
    return model


def _detach_attributes(node: ir.Node, external: ExternalData) -> None:
    for name, attr in list(node.attributes.items()):
        where = f"attribute {name!r} of {node.name!r}"
        if attr.is_ref():
            continue
        if attr.type == ir.AttributeType.TENSOR:
            node.attributes[name] = ir.AttrTensor(name, detach(attr.as_tensor(), external, where))
        elif attr.type == ir.AttributeType.TENSORS:
            node.attributes[name] = ir.AttrTensors(name, [detach(t, external, where) for t in attr.as_tensors()])


def sort(model: ir.Model) -> None:
    """Bring the nodes of every graph into topological order; those that are so already keep their order."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        if not all(_is_sorted(graph) for graph in graphs(root)):
            try:
                root.sort()
            except ValueError:
                raise InvalidGraph(f"graph {root.name!r} has a cycle", node=_on_cycle(root)) from None


def _is_sorted(graph: ir.Graph) -> bool:
    done: set[ir.Node] = set()
    for node in graph:
        used = [node, *(inner for body in _all_bodies(node) for inner in body)]
        for inner in used:
            for value in inner.inputs:
                producer = value.producer() if value is not None else None
                if producer is not None and producer.graph is graph and producer not in done:
                    return False
        done.add(node)
    return True


def _all_bodies(node: ir.Node) -> list[ir.Graph]:
    return [graph for body in bodies(node) for graph in graphs(body)]


def _on_cycle(graph: ir.Graph) -> str | None:
    # What is left after nodes whose inputs are all known are taken away, again and again, waits for itself.
    left = list(graph)
    known: set[ir.Node] = set()
    while left:
        ready = [n for n in left if all(p in known or p.graph is not graph for p in n.predecessors())]
        if not ready:
            return left[0].name or left[0].op_type
        known.update(ready)
        left = [n for n in left if n not in known]
    return None


def inline_functions(model: ir.Model) -> None:
    """Replace calls of the model's own functions by their bodies; each node keeps the opset of its function."""
    if not model.functions:
        return
    for function in model.functions.values():
        _pass_through(function.graph)
        function.graph.opset_imports.clear()  # each node has its version, and onnx-ir refuses to mix opsets
    model.graph.opset_imports.clear()
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        for graph in graphs(root):
            for node in graph:
                called = model.functions.get(node.op_identifier())
                if called is not None and len(node.outputs) < len(called.outputs):
                    node.resize_outputs(len(called.outputs))
    try:
        InlinePass()(model)
    except GpurtError:
        raise
    except Exception as error:  # onnx-ir raises several kinds, all about the model
        raise InvalidGraph(f"the model's functions cannot be inlined: {error}") from error
    model.functions.clear()


def _pass_through(graph: ir.Graph) -> None:
    # An output that is an input or stands twice would rename the caller's value when it is inlined.
    seen: set[ir.Value] = set()
    for position, value in enumerate(list(graph.outputs)):
        if value.producer() is None or value in seen:
            node = ir.Node("", "Identity", [value], num_outputs=1, version=CANONICAL_OPSETS[""])
            node.outputs[0].name = f"{value.name}_out{position}"
            graph.append(node)
            graph.outputs[position] = node.outputs[0]
        seen.add(value)


def own_outputs(model: ir.Model, names: Names) -> None:
    """Make every output of every graph the output of a node of that graph, and no value an output twice."""
    for graph in graphs(model.graph):
        seen: set[ir.Value] = set()
        for position, value in enumerate(list(graph.outputs)):
            if value.producer() is None or value in seen:
                node = ir.Node("", "Identity", [value], num_outputs=1, version=CANONICAL_OPSETS[""])
                node.name = names.node(f"Identity_{value.name}")
                out = node.outputs[0]
                out.name, out.type, out.shape = names.value(f"{value.name}_out"), value.type, value.shape
                graph.append(node)
                graph.outputs[position] = out
            seen.add(value)


def constants_to_initializers(model: ir.Model, names: Names) -> None:
    """Replace Constant nodes by initializers of the same graph and, where they are no graph outputs, the same name."""
    for graph in graphs(model.graph):
        for node in list(graph):
            if node.op_type == "Constant" and node.domain == "":
                _replace_constant(graph, node, names)


def _replace_constant(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    tensor = _unshared(constant_tensor(node))
    old = node.outputs[0]
    name = old.name or names.value("constant")
    if old.is_graph_output():
        name = names.value(f"{name}_const")
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    tensor.name = name
    if old.is_graph_output():
        identity = ir.Node("", "Identity", [value], num_outputs=1, version=CANONICAL_OPSETS[""], name=node.name)
        out = identity.outputs[0]
        out.name, out.type, out.shape = old.name, value.type, value.shape
        graph.insert_after(node, identity)
        old.replace_all_uses_with(out, replace_graph_outputs=True)
    else:
        old.replace_all_uses_with(value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def _unshared(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    # Calls of a function share its attributes, and a tensor has one name: the array stays shared, the tensor does not.
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(tensor.raw, shape=ir.Shape(tensor.shape.numpy()))
    return ir.Tensor(tensor.numpy(), ir.DataType(tensor.dtype))


def constant_tensor(node: ir.Node) -> ir.TensorProtocol:
    """Content of a Constant node in any of its forms."""
    given = [attr for name, attr in node.attributes.items() if name.startswith("value")]
    if len(given) != 1 or given[0].is_ref():
        raise InvalidGraph("a Constant needs exactly one value attribute", node=node.name, op="Constant")
    attr = given[0]
    match attr.name:
        case "value":
            return attr.as_tensor()
        case "value_float":
            return ir.Tensor(np.array(attr.as_float(), np.float32))
        case "value_floats":
            return ir.Tensor(np.array(attr.as_floats(), np.float32))
        case "value_int":
            return ir.Tensor(np.array(attr.as_int(), np.int64))
        case "value_ints":
            return ir.Tensor(np.array(attr.as_ints(), np.int64))
        case "value_string":
            return ir.StringTensor([attr.as_string().encode()], shape=ir.Shape([]))
        case "value_strings":
            strings = [text.encode() for text in attr.as_strings()]
            return ir.StringTensor(strings, shape=ir.Shape([len(strings)]))
    raise InvalidGraph(f"a Constant with {attr.name!r} is not supported", node=node.name, op="Constant")


def stamp_origins(model: ir.Model) -> None:
    """Note on each node which operator and version it is in the model's own terms."""
    for graph in graphs(model.graph):
        for node in graph:
            version = (
                opsets.since(node.op_type, node.domain, node.version or 0) if node.domain in CANONICAL_OPSETS else 0
            )
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            node.meta[ORIGIN] = f"{op}-{version or node.version or 1}"
