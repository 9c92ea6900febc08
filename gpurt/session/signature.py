"""A model's inputs, outputs and metadata, as a session tells them."""

from __future__ import annotations

from collections.abc import Sequence

from gpurt.errors import InvalidArgument, suggest
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
        """What the model says of itself: producer, version, description, custom metadata."""
        return self._metadata

    def _wanted(self, output_names: Sequence[str] | None) -> list[int]:
        """Positions of the outputs that a run is asked for. Raises InvalidArgument for a name that is none."""
        known = [o.name for o in self._outputs]
        if output_names is None:
            return list(range(len(known)))
        if isinstance(output_names, str):
            raise InvalidArgument(f"output_names is the string {output_names!r}", remedy="Give a list of names or None")
        for name in output_names:
            if name not in known:
                raise InvalidArgument(
                    f"the model has no output {name!r}{suggest(str(name), known)}",
                    remedy=f"Its outputs are {', '.join(known)}",
                )
        return [known.index(name) for name in output_names]
