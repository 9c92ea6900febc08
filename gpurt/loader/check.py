"""Checks of a ModelProto before anything trusts it: versions, names, operators, nesting, tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import onnx

from gpurt import errors
from gpurt.errors import InvalidGraph, suggest
from gpurt.graph import channels_last
from gpurt.loader import opsets, tensors
from gpurt.loader.opsets import CANONICAL_OPSETS, canonical_domain
from gpurt.loader.protos import Container, describe, node_graphs
from gpurt.loader.upgrade import is_legacy

MAX_DEPTH: Final = 64
"""Deepest nesting of graphs, and of calls between functions."""

MAX_NODES: Final = 2_000_000
"""Most nodes that a model may have once its functions are inlined."""

# ONNX Runtime puts operators of its own into the default domain when it optimizes a model.
_FOREIGN: Final = frozenset({"SimplifiedLayerNormalization"})

FunctionKey = tuple[str, str, str]


def imports(model: onnx.ModelProto | onnx.FunctionProto) -> dict[str, int]:
    """Opset imports by canonical domain, as declared; models of IR 1 and 2 have none and mean opset 1."""
    declared = opsets.merged((entry.domain, entry.version) for entry in model.opset_import)
    if isinstance(model, onnx.ModelProto) and not declared:
        return {"": 1}
    return declared


def check(model: onnx.ModelProto) -> None:
    """Raise NotImplemented on a model newer than gpurt, InvalidGraph on one that breaks ONNX's rules."""
    if model.ir_version > opsets.NEWEST_IR:
        raise errors.NotImplemented(
            f"the model has IR version {model.ir_version}, and gpurt knows versions up to {opsets.NEWEST_IR}",
            remedy="Use a newer gpurt, or export the model with an older IR version",
        )
    functions: dict[FunctionKey, onnx.FunctionProto] = {}
    for function in model.functions:
        key = (canonical_domain(function.domain), function.name, function.overload)
        if key in functions:
            raise InvalidGraph(f"function {_function_name(key)} is defined twice")
        functions[key] = function
    _Checker(functions, _versions(model, "the model")).graph(model.graph, [], 0)
    for key, function in functions.items():
        _Checker(functions, _versions(function, f"function {_function_name(key)}"), True).function(key, function)
    _check_calls(model, functions)


def _versions(holder: onnx.ModelProto | onnx.FunctionProto, where: str) -> dict[str, int]:
    versions = imports(holder)
    for domain, version in versions.items():
        newest = CANONICAL_OPSETS.get(domain)
        if version < 1 and newest is not None:
            raise InvalidGraph(f"{where} imports opset {version} of {domain or 'ai.onnx'!r}")
        if newest is not None and version > newest:
            raise errors.NotImplemented(
                f"{where} imports opset {version} of {domain or 'ai.onnx'!r}, and gpurt knows opsets up to {newest}",
                remedy="Use a newer gpurt, or export the model with an older opset",
            )
    return versions


@dataclass(slots=True)
class _Checker:
    """Checks the graphs of a model or a function, all under the same imports."""

    functions: dict[FunctionKey, onnx.FunctionProto]
    versions: dict[str, int]
    in_function: bool = False

    def graph(self, graph: onnx.GraphProto, outer: list[set[str]], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidGraph(f"graphs are nested deeper than {MAX_DEPTH}")
        own: set[str] = set()
        _declare(own, (info.name for info in graph.input), "input", graph.name)
        _check_initializers(graph, own)
        scopes = self._nodes(graph, own, outer, depth)
        for info in graph.output:
            if info.name not in own and not (outer and any(info.name in scope for scope in scopes)):
                raise InvalidGraph(f"output {info.name!r} of graph {graph.name!r} is produced by nothing")

    def function(self, key: FunctionKey, function: onnx.FunctionProto) -> None:
        own: set[str] = set()
        _declare(own, function.input, "input", function.name)
        self._nodes(function, own, [], 0)
        for name in function.output:
            if name not in own:
                raise InvalidGraph(f"output {name!r} of function {_function_name(key)} is produced by nothing")

    def _nodes(self, container: Container, own: set[str], outer: list[set[str]], depth: int) -> list[set[str]]:
        for index, node in enumerate(container.node):
            for name in node.output:
                if name and name in own:
                    raise InvalidGraph(
                        f"value {name!r} is defined twice", node=describe(node, index), op=_op(node),
                        remedy="Every value of a graph must have a name of its own",
                    )  # fmt: skip
                own.add(name)
        own.discard("")
        _check_text(own, container.name)
        scopes = [own, *outer]
        for index, node in enumerate(container.node):
            for name in node.input:
                if name and not any(name in scope for scope in scopes):
                    raise InvalidGraph(
                        f"input {name!r} is defined nowhere", node=describe(node, index), op=_op(node),
                    )  # fmt: skip
            self._operator(node, index)
            _check_attributes(node, index, self.in_function)
            for nested in node_graphs(node):
                self.graph(nested, scopes, depth + 1)
        return scopes

    def _operator(self, node: onnx.NodeProto, index: int) -> None:
        _check_text(
            (node.op_type, node.domain, node.overload, node.name, *(attr.name for attr in node.attribute)), "a node"
        )
        domain = canonical_domain(node.domain)
        function = self.functions.get((domain, node.op_type, node.overload))
        where = describe(node, index)
        if function is not None:
            if len(node.input) > len(function.input) or len(node.output) > len(function.output):
                raise InvalidGraph(
                    f"the call has {len(node.input)} inputs and {len(node.output)} outputs, but the function has"
                    f" {len(function.input)} and {len(function.output)}", node=where, op=_op(node),
                )  # fmt: skip
            return
        if domain == channels_last.DOMAIN:
            raise InvalidGraph(
                f"the domain {domain} is internal to gpurt", node=where, op=_op(node),
                remedy="Use the operator of ONNX with that name, between Transposes",
            )  # fmt: skip
        if not opsets.is_standard(domain):
            return  # a provider may know it
        version = self.versions.get(domain)
        if version is None:
            raise InvalidGraph(f"nothing imports the domain {domain or 'ai.onnx'!r}", node=where, op=_op(node))
        schema = opsets.schema(node.op_type, domain, version)
        if schema is None:
            if is_legacy(node.op_type, domain) or (not domain and node.op_type in _FOREIGN):
                return
            raise InvalidGraph(_unknown(node, domain, version), node=where, op=_op(node))
        for what, count, least, most in (
            ("inputs", len(node.input), schema.min_input, schema.max_input),
            ("outputs", len(node.output), schema.min_output, schema.max_output),
        ):
            if not least <= count <= most:
                raise InvalidGraph(
                    f"{count} {what}, where opset {version} allows {least} to {most}", node=where, op=_op(node)
                )
        _check_against(schema, node, where, version)


def _check_text(names: Iterable[object], where: str) -> None:
    for name in names:
        if not isinstance(name, str):  # protobuf hands out bytes where a string is no UTF-8
            raise InvalidGraph(
                f"the name {name!r} in {where!r} is no text", remedy="The model is damaged: export it again"
            )


def _check_against(schema: Any, node: onnx.NodeProto, where: str, version: int) -> None:
    given = {attr.name: attr for attr in node.attribute}
    for name, attribute in schema.attributes.items():
        attr = given.pop(name, None)
        if attr is None:
            if attribute.required:
                raise InvalidGraph(f"attribute {name!r} is missing", node=where, op=_op(node))
        elif attr.type and int(attr.type) != int(attribute.type.value):
            given_type = onnx.AttributeProto.AttributeType.Name(attr.type)
            text = f"attribute {name!r} is of type {given_type}, not {attribute.type.name}"
            raise InvalidGraph(text, node=where, op=_op(node))
    if given and (version >= 7 or schema.domain):  # exporters of older opsets left all kinds of things behind
        name = next(iter(given))
        raise InvalidGraph(f"unknown attribute {name!r}{suggest(name, schema.attributes)}", node=where, op=_op(node))


def _unknown(node: onnx.NodeProto, domain: str, version: int) -> str:
    name = f"{domain}.{node.op_type}" if domain else node.op_type
    first = opsets.first_version(node.op_type, domain)
    if first > version:
        return f"{name} exists since opset {first}, but the model imports opset {version} of {domain or 'ai.onnx'}"
    nearest = suggest(node.op_type, opsets.op_names(domain))
    return f"{domain or 'ai.onnx'} opset {version} has no operator {name!r}{nearest}"


def _check_attributes(node: onnx.NodeProto, index: int, may_refer: bool) -> None:
    seen: set[str] = set()
    for attr in node.attribute:
        where = f"attribute {attr.name!r} of {describe(node, index)!r}"
        if attr.name in seen:
            raise InvalidGraph(f"attribute {attr.name!r} is given twice", node=describe(node, index), op=_op(node))
        seen.add(attr.name)
        if attr.ref_attr_name and not may_refer:
            raise InvalidGraph(f"{where} refers to a function's attribute, outside of a function")
        if attr.HasField("t"):
            tensors.check(attr.t, where)
        for tensor in attr.tensors:
            tensors.check(tensor, where)


def _check_initializers(graph: onnx.GraphProto, own: set[str]) -> None:
    inputs = set(own)
    seen: set[str] = set()
    names = [tensor.name for tensor in graph.initializer] + [sparse.values.name for sparse in graph.sparse_initializer]
    for name in names:
        if not name:
            raise InvalidGraph(f"an initializer of graph {graph.name!r} has no name")
        if name in seen:
            raise InvalidGraph(f"initializer {name!r} is defined twice")
        seen.add(name)
    own.update(seen - inputs)
    for tensor in graph.initializer:
        tensors.check(tensor, f"initializer {tensor.name!r}")


def _declare(own: set[str], names: Iterable[str], what: str, graph: str) -> None:
    for name in names:
        if not name:
            raise InvalidGraph(f"an {what} of {graph!r} has no name")
        if name in own:
            raise InvalidGraph(f"{what} {name!r} of {graph!r} is defined twice")
        own.add(name)


def _check_calls(model: onnx.ModelProto, functions: dict[FunctionKey, onnx.FunctionProto]) -> None:
    # Functions that call others twice grow without bound when inlined, so sizes are added up before that happens.
    sizes: dict[FunctionKey, int] = {}

    def size(container: Container, depth: int, path: tuple[FunctionKey, ...]) -> int:
        if depth > MAX_DEPTH:
            raise InvalidGraph(f"functions call each other deeper than {MAX_DEPTH}")
        total = 0
        for callee, times in Counter(_callees(container)).items():
            if callee not in functions:
                total += times
                continue
            if callee in path:
                names = " -> ".join(map(_function_name, (*path[path.index(callee) :], callee)))
                raise InvalidGraph(f"functions call each other in a circle: {names}")
            if callee not in sizes:
                sizes[callee] = size(functions[callee], depth + 1, (*path, callee))
            total += times * sizes[callee]
        return total

    for key, function in functions.items():
        sizes.setdefault(key, size(function, 0, (key,)))
    total = size(model.graph, 0, ())
    if total > MAX_NODES:
        raise InvalidGraph(f"the model has {total} nodes once its functions are inlined; the limit is {MAX_NODES}")


def _callees(container: Container) -> Iterator[FunctionKey]:
    for node in container.node:
        yield canonical_domain(node.domain), node.op_type, node.overload
        for nested in node_graphs(node):
            yield from _callees(nested)


def _function_name(key: FunctionKey) -> str:
    domain, name, overload = key
    return f"{domain}.{name}" + (f":{overload}" if overload else "")


def _op(node: onnx.NodeProto) -> str:
    domain = canonical_domain(node.domain)
    return f"{domain}.{node.op_type}" if domain else node.op_type
