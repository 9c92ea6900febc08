"""ONNX type strings of declared inputs and outputs, and the types that onnx-ir cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from gpurt import dtypes
from gpurt.errors import InvalidGraph


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A declared input or output of the model.

    Attributes:
        name: name under which it is fed or fetched.
        type: ONNX type string, ``tensor(float)`` or ``seq(map(int64,tensor(float)))``; empty where it is not stated.
        shape: for each dimension an int, a symbolic name or None; None where the rank is not stated or it is no tensor.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None = None


def declared(info: onnx.ValueInfoProto) -> GraphInput:
    """What the model says of an input or output."""
    return GraphInput(info.name, type_string(info.type, info.name), _shape(info.type))


def type_string(proto: onnx.TypeProto, where: str = "") -> str:
    """Type string of a TypeProto; an empty string where it is not set."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        return f"tensor({_element(proto.tensor_type.elem_type, where)})" if proto.tensor_type.elem_type else ""
    if kind == "sparse_tensor_type":
        return f"sparse_tensor({_element(proto.sparse_tensor_type.elem_type, where)})"
    if kind == "sequence_type":
        return f"seq({type_string(proto.sequence_type.elem_type, where)})"
    if kind == "optional_type":
        return f"optional({type_string(proto.optional_type.elem_type, where)})"
    if kind == "map_type":
        value = type_string(proto.map_type.value_type, where)
        return f"map({_element(proto.map_type.key_type, where)},{value})"
    return ""


def _element(code: int, where: str) -> str:
    try:
        return dtypes.onnx_name(dtypes.from_onnx(code))
    except KeyError:
        name = onnx.TensorProto.DataType.Name(code) if code in onnx.TensorProto.DataType.values() else str(code)
        raise InvalidGraph(f"{where!r} has an element type that gpurt does not know: {name}") from None


def _shape(proto: onnx.TypeProto) -> tuple[int | str | None, ...] | None:
    kind = proto.WhichOneof("value")
    if kind not in ("tensor_type", "sparse_tensor_type"):
        return None
    typed = getattr(proto, kind)
    if not typed.HasField("shape"):
        return None
    return tuple(_dim(dim) for dim in typed.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # -1 is how some exporters say "any"
    return text(dim.dim_param) or None


def text(value: str | bytes) -> str:
    """A string of a proto as text: protobuf hands out bytes where one is no UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def strip_foreign_types(graphs: Iterator[onnx.GraphProto]) -> None:
    """Remove types that onnx-ir refuses: maps, and sequences and optionals of them or of nothing."""
    for graph in graphs:
        for infos in (graph.input, graph.output, graph.value_info):
            for info in infos:
                if not _representable(info.type):
                    info.ClearField("type")


def _representable(proto: onnx.TypeProto) -> bool:
    kind = proto.WhichOneof("value")
    if kind == "sequence_type":
        return _holds_type(proto.sequence_type.elem_type)
    if kind == "optional_type":
        return _holds_type(proto.optional_type.elem_type)
    return bool(kind != "map_type")


def _holds_type(proto: onnx.TypeProto) -> bool:
    return proto.WhichOneof("value") is not None and _representable(proto)
