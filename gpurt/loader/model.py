"""What the loader hands on, and the order of its steps."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from gpurt.loader import check, convert, inference, names, protos, typestr, upgrade
from gpurt.loader.names import Names
from gpurt.loader.opsets import CANONICAL_OPSETS
from gpurt.loader.read import read
from gpurt.loader.tensors import ExternalData
from gpurt.loader.typestr import GraphInput


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the model says of itself, under ONNX Runtime's names.

    Attributes:
        description, graph_description: doc_string of the model and of its graph.
        custom_metadata_map: metadata_props of the model.
    """

    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    description: str = ""
    graph_name: str = ""
    graph_description: str = ""
    version: int = 0
    ir_version: int = 0
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class LoadedModel:
    """A model in canonical form.

    Attributes:
        model: onnx-ir model in which every node has the newest form that gpurt knows and every name is unique.
        inputs: what must or, where ``overridable`` names it, may be fed, as the model declares it. The values are
            ``model.graph.inputs``, in the same order and under the same names.
        outputs: what can be fetched, as the model declares it. The values are ``model.graph.outputs``, in this order,
            but of another name where the declared one is that of an input or initializer.
        overridable: names of initializers that are graph inputs too: defaults, not constants. Before IR version 4 every
            initializer had to be listed as an input; those are constants and no inputs here, as in ONNX Runtime.
        metadata: producer, version, description and the like.
        opset_imports: opsets as the model declares them; the loaded nodes are of ``CANONICAL_OPSETS``.
        path: the file, or None for a model from memory.
        names: hands out names that the model does not have yet, for those who add to it.
    """

    model: ir.Model
    inputs: list[GraphInput]
    outputs: list[GraphInput]
    overridable: frozenset[str]
    metadata: Metadata
    opset_imports: dict[str, int]
    path: Path | None = None
    names: Names = field(default_factory=Names)


class Parsed:
    """A model that was parsed and checked, and whose large initializers may still be on their way from the file.

    Raises:
        NoSuchFile: the file does not exist.
        InvalidProtobuf: the content is not an ONNX model.
        InvalidGraph: the model breaks ONNX's rules; the error names the node or value.
        NotImplemented: the model is newer than gpurt.
    """

    def __init__(self, model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> None:
        proto, contents, self._path = read(model)
        protos.fill_attribute_types(proto)
        check.check(proto)
        self._proto: onnx.ModelProto | None = proto
        self._external = ExternalData(self._path, contents)

    def canonical(self) -> LoadedModel:
        """The model in canonical form; this can be asked for once.

        Raises:
            NoSuchFile: an external data file does not exist.
            InvalidGraph: the content of an initializer breaks ONNX's rules, or nodes do where they meet.
            NotImplemented: the model uses an old form that has no equal in the newest opset.
        """
        proto, self._proto = self._proto, None
        assert proto is not None, "it is taken apart"
        if proto.ir_version < 4:
            protos.drop_constant_inputs(proto)
        inputs = [typestr.declared(info) for info in proto.graph.input]
        outputs = [typestr.declared(info) for info in proto.graph.output]
        imports = check.imports(proto)
        metadata = _metadata(proto)
        protos.make_dense(proto)
        protos.own_outputs(proto)
        typestr.strip_foreign_types(protos.graphs(proto))
        overridable = {info.name for info in proto.graph.input} & {tensor.name for tensor in proto.graph.initializer}
        loaded = convert.to_ir(proto, self._external)
        del proto  # its weights are copied or mapped; free it before the rest needs memory
        known = _canonicalise(loaded)
        return LoadedModel(loaded, inputs, outputs, frozenset(overridable), metadata, imports, self._path, known)


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> LoadedModel:
    """Load a model and bring it into canonical form. Raises what Parsed and its canonical() raise."""
    return Parsed(model).canonical()


def _canonicalise(model: ir.Model) -> Names:
    imports = dict(model.graph.opset_imports)
    convert.sort(model)
    convert.inline_functions(model)
    known = names.make_unique(model)
    convert.stamp_origins(model)
    convert.constants_to_initializers(model, known)
    convert.own_outputs(model, known)
    inference.forget_shapes(model)
    if upgrade.wants_types(model):
        inference.annotate(model, imports)
    upgrade.upgrade(model, known)
    model.graph.opset_imports.clear()
    model.graph.opset_imports.update({**imports, **CANONICAL_OPSETS})
    inference.annotate(model, CANONICAL_OPSETS)
    return known


def _metadata(proto: onnx.ModelProto) -> Metadata:
    return Metadata(
        producer_name=typestr.text(proto.producer_name),
        producer_version=typestr.text(proto.producer_version),
        domain=typestr.text(proto.domain),
        description=typestr.text(proto.doc_string),
        graph_name=typestr.text(proto.graph.name),
        graph_description=typestr.text(proto.graph.doc_string),
        version=proto.model_version,
        ir_version=proto.ir_version,
        custom_metadata_map={typestr.text(e.key): typestr.text(e.value) for e in proto.metadata_props},
    )
