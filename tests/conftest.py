"""Shared fixtures: models built in a line, and the simulated plug-in registered in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

PLUGIN = Path(__file__).parent / "plugins" / "gpurt-sim"


def make_model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray | tuple[int, list]],
    outputs: list[str],
    constants: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 21,
) -> onnx.ModelProto:
    """A model from nodes; inputs by example array or (type, shape); outputs get their types by inference."""

    def info(name, value):
        if isinstance(value, np.ndarray):
            value = (helper.np_dtype_to_tensor_dtype(value.dtype), list(value.shape))
        return helper.make_tensor_value_info(name, *value)

    graph = helper.make_graph(
        nodes,
        "test",
        [info(n, v) for n, v in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    for out in inferred.graph.output:
        if not out.type.WhichOneof("value"):
            out.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    return inferred


def plugin() -> Any:
    """The module of the simulated plug-in, which need not be installed."""
    sys.path.insert(0, str(PLUGIN))
    try:
        return importlib.import_module("gpurt_sim")
    finally:
        sys.path.remove(str(PLUGIN))


@contextmanager
def registered(*providers: Any) -> Iterator[None]:
    """Provider classes, known to sessions by their names for a while."""
    from gpurt import registry

    for provider in providers:
        registry.register(provider)
    try:
        yield
    finally:
        for provider in providers:
            registry.unregister(provider.name)


@pytest.fixture
def sim() -> Iterator[str]:
    """The name of the simulated provider, registered without being installed."""
    with registered(plugin().SimProvider):
        yield "sim"
