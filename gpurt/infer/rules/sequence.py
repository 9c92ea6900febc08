"""Operators that take sequences or optionals and give a tensor; those that give sequences have no rule."""

from __future__ import annotations

from gpurt.graph.view import NodeView
from gpurt.infer.arguments import BOOL, I64, Inputs
from gpurt.infer.table import rule
from gpurt.spec import Spec, Unknown


@rule("SequenceLength")
def sequence_length(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(I64, ())]


@rule("OptionalHasElement")
def optional_has_element(node: NodeView, inputs: Inputs) -> list[Spec]:
    return [Spec(BOOL, ())]


@rule("SequenceAt", "ConcatFromSequence")
def from_sequence(node: NodeView, inputs: Inputs) -> list[Spec]:
    raise Unknown(f"{node.op} needs the elements of a sequence")


@rule("OptionalGetElement")
def optional_get_element(node: NodeView, inputs: Inputs) -> list[Spec]:
    # A plain tensor is a legal input too, and is passed on.
    if inputs and inputs[0] is not None:
        return [Spec(inputs[0].dtype, inputs[0].shape)]
    raise Unknown(f"{node.op} needs the element of an optional")
