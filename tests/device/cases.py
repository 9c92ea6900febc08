"""ONNX's own node cases in the form that gpurt.testing.kernels.run_op takes."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.numpy_helper


class Case(NamedTuple):
    """One node: inputs by formal position (None where left out), and the outputs that ONNX expects (None: unwanted)."""

    name: str
    op: str
    inputs: list[np.ndarray | None]
    attrs: dict[str, Any]
    expected: list[np.ndarray | None]
    rtol: float
    atol: float


@cache
def _collected() -> tuple[Any, ...]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases overflow on purpose
        return tuple(collect_testcases(None))


def _plain(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)) or attribute.type in _LISTS:
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value


_LISTS = (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)


def _array(value: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def node_cases(op_types: Collection[str], *, oldest: int | None = None) -> list[Case]:
    """Cases of single nodes of these operators ("Gather", "com.microsoft.Gelu"), newest version, tensors only.

    Where the operator only grew since version `oldest`, the cases of all versions from that on serve.
    """
    found = []
    for test in _collected():
        nodes = test.model.graph.node
        if len(nodes) != 1:
            continue
        (node,) = nodes
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if op not in op_types:
            continue
        opset = {o.domain: o.version for o in test.model.opset_import}[node.domain]
        newest = onnx.defs.get_schema(node.op_type, domain=node.domain).since_version
        if onnx.defs.get_schema(node.op_type, opset, node.domain).since_version < (oldest or newest):
            continue
        types = [v.type.WhichOneof("value") for v in (*test.model.graph.input, *test.model.graph.output)]
        if any(t != "tensor_type" for t in types):
            continue
        given, wanted = test.data_sets[0]
        values, results = iter(given), iter(wanted)
        inputs = [_array(next(values)) if name else None for name in node.input]
        expected = [_array(next(results)) if name else None for name in node.output]
        attrs = {a.name: _plain(a) for a in node.attribute}
        found.append(Case(test.name, node.op_type, inputs, attrs, expected, test.rtol, test.atol))
    return found
