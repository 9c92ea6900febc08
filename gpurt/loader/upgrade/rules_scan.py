"""Upgrade of Scan-8, which had a batch dimension of its own, to a Scan of today inside a Scan over the batch."""

from __future__ import annotations

import onnx_ir as ir

from gpurt.errors import InvalidGraph
from gpurt.loader.opsets import since
from gpurt.loader.upgrade.registry import upgrade
from gpurt.loader.upgrade.site import ORIGIN, Site


@upgrade("Scan", upto=8)
def scan(at: Site) -> None:
    """``Scan-8(, states, sequences) -> Scan(states, sequences; body=Scan(...))``: the outer one runs over the batch."""
    if at.input(0) is not None:
        at.refuse("sequence_lens, one length for each element of a batch, went away with opset 9")
    count = at.pop("num_scan_inputs")
    directions = at.pop("directions")
    body = at.node.attributes.pop("body").as_graph()
    inputs = list(at.node.inputs[1:])
    if count is None or len(inputs) != len(body.inputs) or len(at.node.outputs) != len(body.outputs):
        raise InvalidGraph("inputs and outputs do not fit the body", node=at.node.name, op="Scan")

    formal = [_element_of_batch(at, value) for value in body.inputs[: len(inputs)]]
    if len(inputs) > count:
        for value, given in zip(formal[: len(inputs) - count], body.inputs, strict=False):
            value.shape = given.shape  # a state is the same inside and outside of the loop over the sequence
    attrs = [ir.AttrGraph("body", body), ir.AttrInt64("num_scan_inputs", count)]
    if directions is not None:
        attrs.append(ir.AttrInt64s("scan_input_directions", list(directions)))
    inner = ir.Node("", "Scan", formal, attrs, num_outputs=len(body.outputs), version=since("Scan"))
    inner.name = at.names.node(f"{at.node.name}_element")
    inner.meta[ORIGIN] = at.node.meta.get(ORIGIN)
    for value, result in zip(inner.outputs, body.outputs, strict=True):
        value.name = at.names.value(f"{inner.name}_{result.name}")
        value.type = result.type
    batch = ir.Graph(formal, list(inner.outputs), nodes=[inner], name=f"{at.node.name}_batch")
    at.set(body=batch, num_scan_inputs=len(inputs))
    at.set_inputs(*inputs)


def _element_of_batch(at: Site, value: ir.Value) -> ir.Value:
    # A state has the shape it has in the body; a sequence gets its dimension of time back, whose size is unknown.
    shape = None if value.shape is None else ir.Shape([None, *value.shape])
    return ir.Value(name=at.names.value(f"{at.node.name}_{value.name}"), type=value.type, shape=shape)
