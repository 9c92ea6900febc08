"""A model's inputs, outputs and metadata, as a session tells them."""

from __future__ import annotations

from collections.abc import Sequence

from gpurt.loader import GraphInput, Metadata
from gpurt.session.node_arg import NodeArg, arg


class Signature:
    """The part of a session that is about its model as the file describes it."""

    _inputs: Sequence[GraphInput]
    _outputs: Sequence[GraphInput]
    _overridable: frozenset[str]
    _metadata: Metadata

    def get_inputs(self) -> list[NodeArg]:
        """What has to be fed."""
        return [arg(i) for i in self._inputs if i.name not in self._overridable]

    def get_outputs(self) -> list[NodeArg]:
        """What can be fetched."""
        return [arg(o) for o in self._outputs]

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Inputs that have a default in the model."""
        return [arg(i) for i in self._inputs if i.name in self._overridable]

    def get_modelmeta(self) -> Metadata:
        """What the model says of itself: producer, version, descriptions, custom metadata."""
        return self._metadata
