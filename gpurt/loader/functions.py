"""Function bodies: what ONNX's schemas say an operator is made of, as nodes that can take the place of one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir

from gpurt import logs
from gpurt.errors import GpurtError
from gpurt.loader import convert, inference
from gpurt.loader.names import Names
from gpurt.loader.opsets import CANONICAL_OPSETS, schema
from gpurt.loader.upgrade import ORIGIN, upgrade
from gpurt.loader.walk import bodies, graphs

logger = logs.get(__name__)

_CALL_DOMAIN = "gpurt.expand"


@dataclass(frozen=True, slots=True)
class Expansion:
    """What a node is made of, wired to the node's inputs, in no graph yet.

    Attributes:
        node: the node that can be replaced.
        nodes: its body in canonical form, in topological order, with names that nothing else in the model has.
        outputs: for each output of the node the body's value; None where the node does not want it.
        initializers: constants of the body, to be registered in the node's graph.
    """

    node: ir.Node
    nodes: tuple[ir.Node, ...]
    outputs: tuple[ir.Value | None, ...]
    initializers: tuple[ir.Value, ...]

    def apply(self) -> None:
        """Replace the node by its body in the node's graph. The outputs keep their names."""
        graph = self.node.graph
        assert graph is not None, "the node is in a graph"
        for value in self.initializers:
            graph.register_initializer(value)
        graph.insert_before(self.node, self.nodes)
        for old, new in zip(self.node.outputs, self.outputs, strict=True):
            if new is None:
                continue
            new.name = old.name
            new.type = old.type if old.type is not None else new.type
            new.shape = old.shape if old.shape is not None else new.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        graph.remove(self.node, safe=True)

    def discard(self) -> None:
        """Let go of the node's inputs: an expansion that is not applied would go on counting as their user."""
        for node in self.nodes:
            for inner in (node, *(item for body in bodies(node) for graph in graphs(body) for item in graph)):
                inner.resize_inputs(0)


def expand(node: ir.Node, names: Names) -> Expansion | None:
    """Function body of a node in canonical form, or None where ONNX defines none for it or for its input types.

    The node itself stays as it is until :meth:`Expansion.apply`.

    Args:
        node: a node of a loaded model.
        names: the names of its model, ``LoadedModel.names``.
    """
    body = _body(node)
    if body is None:
        return None
    # A body made for one node lacks what makes the outputs that it does not want, so only wanted ones are asked for.
    wanted = [index for index, value in enumerate(node.outputs) if value.name != ""]
    results = [body.output[index] for index in wanted]
    made = {name for inner in body.node for name in inner.output} | set(body.input)
    if not made.issuperset(results):
        return None
    body.ClearField("output")
    body.output.extend(results)
    captured = _captured(node)
    body.input.extend(captured)
    actual = [*node.inputs, *([None] * (len(body.input) - len(captured) - len(node.inputs))), *captured.values()]
    try:
        return _instantiate(node, body, actual, [node.outputs[index] for index in wanted], names)
    except (GpurtError, ir.serde.SerdeError) as error:
        logger.debug("function body of %s cannot be used: %s", node.op_type, error)
        return None


def has_body(op_type: str, domain: str = "") -> bool:
    """Whether ONNX defines a function body for an operator, for some input types at least."""
    found = schema(op_type, domain)
    return found is not None and (found.has_function or found.has_context_dependent_function)


def _body(node: ir.Node) -> onnx.FunctionProto | None:
    found = schema(node.op_type, node.domain)
    newest = CANONICAL_OPSETS.get(node.domain, 0)
    if found is None:
        return None
    data = b""
    try:
        if found.has_function:
            data = found.get_function_with_opset_version(_newest(found.function_opset_versions, newest))
        elif found.has_context_dependent_function:
            version = _newest(found.context_dependent_function_opset_versions, newest)
            kinds = [_type(value).SerializeToString() for value in node.inputs]
            proto = ir.serde.serialize_node(node)
            data = found.get_context_dependent_function_with_opset_version(version, proto.SerializeToString(), kinds)
    except Exception as error:  # noqa: BLE001 - the builders are C++ and throw what they like on types they do not expect
        logger.debug("onnx cannot build the function body of %s: %s", node.op_type, error)
        return None
    return onnx.FunctionProto.FromString(data) if data else None


def _newest(versions: list[int], limit: int) -> int:
    return max((version for version in versions if version <= limit), default=max(versions))


def _type(value: ir.Value | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if value is not None and value.type is not None:
        proto.CopyFrom(ir.serde.serialize_type(value.type))
        if value.shape is not None:
            ir.serde.serialize_shape_into(proto, value.shape)
    return proto


def _captured(node: ir.Node) -> dict[str, ir.Value]:
    # Values of outer graphs that the node's bodies read. The function body does not see these: they become inputs.
    inside = [graph for body in bodies(node) for graph in graphs(body)]
    found: dict[str, ir.Value] = {}
    for graph in inside:
        for inner in graph:
            for value in inner.inputs:
                if value is not None and value.graph not in inside:
                    found[value.name or ""] = value
    return found


def _instantiate(
    node: ir.Node, body: onnx.FunctionProto, actual: list[ir.Value | None], results: list[ir.Value], names: Names
) -> Expansion:
    body.domain, body.name = _CALL_DOMAIN, node.op_type
    versions = {entry.domain: entry.version for entry in body.opset_import}
    function = ir.serde.deserialize_function(body)
    for graph in graphs(function.graph):
        for inner in graph:
            inner.version = versions.get(inner.domain, CANONICAL_OPSETS.get(inner.domain, 1))
    formal = [None if value is None else _stand_in(value, names) for value in actual]
    call = ir.Node(_CALL_DOMAIN, node.op_type, formal, _attributes(node), num_outputs=len(results))
    call.name = node.name
    for value, old in zip(call.outputs, results, strict=True):
        value.name, value.type, value.shape = names.value(f"{node.name}_out"), old.type, old.shape
    graph = ir.Graph([value for value in formal if value is not None], list(call.outputs), nodes=[call], name=node.name)
    model = ir.Model(graph, ir_version=10, functions=[function])

    convert.inline_functions(model)
    _fresh_names(graph, node, names)
    convert.constants_to_initializers(model, names)
    convert.own_outputs(model, names)
    upgrade(model, names)
    inference.annotate(model, CANONICAL_OPSETS)

    outputs = list(graph.outputs)
    nodes, constants = list(graph), list(graph.initializers.values())
    graph.outputs.clear()
    graph.remove(nodes)
    graph.initializers.clear()
    for inside, outside in zip(formal, actual, strict=True):
        if inside is not None and outside is not None:
            inside.replace_all_uses_with(outside)
    made = dict(zip(results, outputs, strict=True))
    return Expansion(node, tuple(nodes), tuple(made.get(old) for old in node.outputs), tuple(constants))


def _stand_in(value: ir.Value, names: Names) -> ir.Value:
    return ir.Value(name=names.value(f"{value.name}_in"), type=value.type, shape=value.shape)


def _attributes(node: ir.Node) -> list[ir.Attr]:
    given = dict(node.attributes)
    found = schema(node.op_type, node.domain)
    for name, attribute in (found.attributes if found else {}).items():
        if name not in given and attribute.default_value.type:
            given[name] = ir.serde.deserialize_attribute(attribute.default_value)
    return [attr for attr in given.values() if attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)]


def _fresh_names(graph: ir.Graph, node: ir.Node, names: Names) -> None:
    keep = {*graph.inputs, *graph.outputs}
    for inner in graphs(graph):
        own = [*inner.inputs, *inner.initializers.values(), *(value for item in inner for value in item.outputs)]
        for value in own:
            if value not in keep and value.name != "":
                value.name = names.value(f"{node.name}_{value.name}")
        for item in inner:
            item.name = names.node(f"{node.name}_{item.op_type}")
            item.meta[ORIGIN] = node.meta.get(ORIGIN)
