"""From a file, bytes or a ModelProto to a model in canonical form: checked, inlined, newest opset, unique names."""

from gpurt.loader.functions import Expansion, expand, has_body
from gpurt.loader.model import LoadedModel, Metadata, Parsed, load
from gpurt.loader.names import Names
from gpurt.loader.opsets import CANONICAL_OPSETS
from gpurt.loader.typestr import GraphInput
from gpurt.loader.views import Views, array_of, graph_view, node_view

__all__ = [
    "CANONICAL_OPSETS",
    "Expansion",
    "GraphInput",
    "LoadedModel",
    "Metadata",
    "Names",
    "Parsed",
    "Views",
    "array_of",
    "expand",
    "graph_view",
    "has_body",
    "load",
    "node_view",
]
