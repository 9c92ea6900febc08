"""What a session says of a model's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from gpurt.loader import GraphInput


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output of a model.

    Attributes:
        name: its name.
        shape: for each dimension an int, a symbolic name or None; None where the rank is not known.
        type: ONNX type string: ``tensor(float)``, ``seq(map(int64,tensor(float)))``.
    """

    name: str
    shape: list[int | str | None] | None
    type: str


def arg(info: GraphInput) -> NodeArg:
    """An input or output as the public interface has it."""
    return NodeArg(info.name, None if info.shape is None else list(info.shape), info.type)
