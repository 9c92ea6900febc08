"""Optimized models as files: what the optimizer makes of a model, as ONNX that any runtime reads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir
from onnx import defs, helper

from gpurt import dtypes, logs, registry
from gpurt.autodiff import differentiate
from gpurt.errors import InvalidArgument, NoSuchFile, Unsupported
from gpurt.loader import GraphInput, LoadedModel, load
from gpurt.optimizer import optimize
from gpurt.options import GraphOptimizationLevel
from gpurt.provider import HOST
from gpurt.session.opening import open_providers
from gpurt.session.site import Evaluator

logger = logs.get(__name__)

OPSET: Final = 26
"""Version of ONNX's operators in files, unless another one is asked for."""

LARGE: Final = (1 << 31) - (1 << 24)
"""Bytes of weights beyond which they go into a file beside the model: a protobuf message holds less than 2 GiB."""

_OLDEST: Final = 22  # from here on newer forms of operators have more types and attributes, but no other meaning
_TREES: Final = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: nodes of the model before and after, and the files."""

    before: int
    after: int
    files: Sequence[Path]


def optimize_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    level: str | int = "extended",
    opset: int = OPSET,
    providers: Sequence[str] = ("cpu",),
    external_data: bool = False,
    limit: int = LARGE,
) -> Written:
    """Optimize a model and write it to a file.

    Args:
        source: a model.
        target: the file to write.
        level: basic or extended. What belongs to a device (casts, copies, layouts) is done when the file is loaded.
        opset: version of ONNX's operators in the file.
        providers: for which operators are fused: those that one of them, and no earlier one, has a kernel for.
        external_data: whether weights go into a file beside the model, even if it is small.
        limit: bytes of weights beyond which they do so anyway.

    Raises:
        InvalidArgument: a level or file that will not do.
        NotImplemented: the model cannot be said in the opset.
    """
    wanted = next((number for name, number in _LEVELS.items() if level in (name, number)), None)
    if wanted is None:
        raise InvalidArgument(
            f"a file is not written at level {level!r}",
            remedy=f"Use one of {', '.join(_LEVELS)}; layouts are chosen for the device that loads it",
        )
    loaded = load(source)
    before = sum(1 for _ in loaded.model.graph.all_nodes())
    differentiate(loaded.model, loaded.names)
    opened = open_providers(registry.parse(list(providers), None), asked=True, strict=True)
    host = next(p for p in opened if p.memory_space == HOST)
    optimize(loaded.model, wanted, Evaluator(host), loaded.names, providers=opened)
    files = write(loaded, target, opset=opset, external_data=external_data, limit=limit)
    return Written(before, sum(1 for _ in loaded.model.graph.all_nodes()), files)


_LEVELS: Final = {
    "basic": GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def write(
    loaded: LoadedModel,
    target: str | os.PathLike[str],
    *,
    opset: int = OPSET,
    external_data: bool = False,
    limit: int = LARGE,
) -> list[Path]:
    """Write an optimized model; the files written. Errors as for optimize_file."""
    path = Path(target)
    if loaded.path is not None and path.exists() and os.path.samefile(loaded.path, path):
        raise InvalidArgument(f"{str(path)!r} is the model itself", remedy="Give another file")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "lies in a folder that does not exist"
        raise NoSuchFile(f"{str(path)!r} {what}", remedy="Give the path of a file in a folder that exists")
    proto = ir.serde.serialize_model(loaded.model)
    _declare_outputs(proto, loaded.outputs)
    _make_common(proto.graph)
    large = _weights(proto.graph) > limit
    proto = _in_opset(proto, opset, check=not large)
    large = large or external_data
    data = f"{path.name}.data"
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
            beside = Path(folder) / path.name
            onnx.save_model(proto, beside, save_as_external_data=large, location=data)
            files = [path, path.parent / data] if large and (Path(folder) / data).exists() else [path]
            for file in reversed(files):  # the model last: nobody sees one without its weights
                os.replace(Path(folder) / file.name, file)
    except OSError as e:
        raise InvalidArgument(f"{str(path)!r} cannot be written: {e.strerror or e}", remedy="Give another file") from e
    logger.info("optimized model written to %s: %d nodes, opset %d", path, len(proto.graph.node), opset)
    return files


def _declare_outputs(proto: onnx.ModelProto, outputs: Sequence[GraphInput]) -> None:
    """Names, types and shapes as the model declares them.

    An output of an input's name is the input: the copy between them, which has a name of its own, goes.
    """
    for output, declared in zip(proto.graph.output, outputs, strict=True):
        name, tensor = declared.name, output.type.tensor_type
        if declared.type and not tensor.elem_type:
            output.type.CopyFrom(_type(declared.type))
        if declared.shape is not None and tensor.elem_type and not tensor.HasField("shape"):
            output.type.CopyFrom(helper.make_tensor_type_proto(tensor.elem_type, declared.shape))
        if output.name == name:
            continue
        copy = next((n for n in proto.graph.node if n.op_type == "Identity" and list(n.output) == [output.name]), None)
        if copy is not None and copy.input[0] == name:
            proto.graph.node.remove(copy)
        output.name = name


def _type(text: str) -> onnx.TypeProto:
    """A type from its string: ``seq(map(int64,tensor(float)))``."""
    kind, _, inner = text[:-1].partition("(")
    if kind == "seq":
        return helper.make_sequence_type_proto(_type(inner))
    if kind == "optional":
        return helper.make_optional_type_proto(_type(inner))
    if kind == "map":
        key, _, value = inner.partition(",")
        return helper.make_map_type_proto(dtypes.to_onnx(dtypes.from_name(key)), _type(value))
    return helper.make_tensor_type_proto(dtypes.to_onnx(dtypes.from_name(inner)), None)


def _make_common(graph: onnx.GraphProto) -> None:
    """Leave out what is known of values in part, and say Swish as ONNX Runtime does, which has no kernel for ONNX's."""
    known = [v for v in graph.value_info if v.type.tensor_type.HasField("shape") and v.type.tensor_type.elem_type]
    del graph.value_info[:]
    graph.value_info.extend(known)
    for node in graph.node:
        if node.op_type == "Swish" and not node.domain:
            alpha = [a for a in node.attribute if a.name == "alpha"] or [helper.make_attribute("alpha", 1.0)]
            node.op_type, node.domain = "QuickGelu", "com.microsoft"
            node.ClearField("attribute")
            node.attribute.extend(alpha)
        for inner in _bodies(node):
            _make_common(inner)


def _weights(graph: onnx.GraphProto) -> int:
    """Bytes of all weights. A message that is too large cannot be asked for its size: protobuf fails."""
    own = sum(len(tensor.raw_data) for tensor in graph.initializer)
    return own + sum(_weights(inner) for node in graph.node for inner in _bodies(node))


def _in_opset(proto: onnx.ModelProto, opset: int, *, check: bool) -> onnx.ModelProto:
    """The model with ONNX's operators in a version, and imports of what it uses alone; checked if it fits a message."""
    newest = defs.onnx_opset_version()
    if not _OLDEST <= opset <= newest:
        raise InvalidArgument(f"opset is {opset}", remedy=f"Use {_OLDEST} to {newest}")
    current = next((i.version for i in proto.opset_import if i.domain in ("", "ai.onnx")), newest)
    newer = {n.op_type: _since(n.op_type, current) for n in _nodes(proto.graph) if not _has_form(n, opset)}
    if newer:
        raise Unsupported(
            f"opset {opset} cannot say what the optimized model has: {', '.join(sorted(newer))}",
            remedy=f"Use opset {max(newer.values())}, or a lower level",
        )
    used = {n.domain for n in _nodes(proto.graph)}
    versions = {i.domain: i.version for i in proto.opset_import if i.domain in used}
    if any(n.op_type in _TREES and n.domain == "ai.onnx.ml" for n in _nodes(proto.graph)):
        versions["ai.onnx.ml"] = 4  # the last one that has them
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", opset))
    for domain in sorted(used - {""}):
        proto.opset_import.append(helper.make_opsetid(domain, versions.get(domain, 1)))
    needed = helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
    proto.ir_version = max(needed, proto.ir_version)
    # The checker wants shapes of all outputs, which a model need not state.
    stated = all(not o.type.HasField("tensor_type") or o.type.tensor_type.HasField("shape") for o in proto.graph.output)
    if stated and check:
        try:
            onnx.checker.check_model(proto, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
            raise Unsupported(f"opset {opset} cannot say it: {e}", remedy=f"Use opset {current}") from e
    return proto


def _has_form(node: onnx.NodeProto, opset: int) -> bool:
    """Whether an operator has a node's attributes, inputs and outputs in an opset already; ONNX checks the types."""
    if node.domain:
        return True
    try:
        schema = defs.get_schema(node.op_type, opset, "")
    except defs.SchemaError:
        return False
    known = {a.name for a in node.attribute} <= schema.attributes.keys()
    return known and len(node.input) <= schema.max_input and len(node.output) <= schema.max_output


def _since(op_type: str, opset: int) -> int:
    """The opset in which an operator got the form that it has in another one."""
    return int(defs.get_schema(op_type, opset, "").since_version)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in _bodies(node):
            yield from _nodes(inner)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from attribute.graphs
        if attribute.HasField("g"):
            yield attribute.g
