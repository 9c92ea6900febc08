"""What the tests of the optimizer share: a model in, its operators after optimization out, its values compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from conftest import make_model

import gpurt
from gpurt import registry
from gpurt.loader import load
from gpurt.optimizer import Report, optimize
from gpurt.options import GraphOptimizationLevel
from gpurt.session.site import Evaluator

n = onnx.helper.make_node
_RNG = np.random.default_rng(7)


def optimized(
    model: onnx.ModelProto, level: Any = GraphOptimizationLevel.ORT_ENABLE_ALL, **how: Any
) -> tuple[list[str], Report, Any]:
    """Operators that are left, the optimizer's report, and the model."""
    loaded = load(model)
    evaluate = Evaluator(registry.open_provider(registry.Request("cpu", None, {})))
    report = optimize(loaded.model, level, evaluate, loaded.names, **how)
    return [node.op_type for node in loaded.model.graph], report, loaded.model


def values(model: onnx.ModelProto, feeds: dict[str, np.ndarray], level: str = "all", **options: Any) -> list[Any]:
    """What the model gives on the cpu at a level."""
    chosen = gpurt.SessionOptions(graph_optimization_level=level, **options)
    return gpurt.InferenceSession(model, chosen, providers=["cpu"]).run(None, feeds)


def same_values(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: Any) -> None:
    """Fail unless the optimized model gives what the model as it is gives."""
    want, got = values(model, feeds, "disable_all"), values(model, feeds, **options)
    for one, two in zip(want, got, strict=True):
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        if one.dtype.kind in "fV":
            tolerance = 1e-5 if one.dtype.itemsize >= 4 else 5e-3
            np.testing.assert_allclose(two.astype("f8"), one.astype("f8"), rtol=tolerance, atol=tolerance)
        else:
            np.testing.assert_array_equal(two, one)


def feed(shapes: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Example inputs: a tuple is the shape of floats, an array is itself."""
    rng = np.random.default_rng(seed)
    return {k: v if isinstance(v, np.ndarray) else rng.standard_normal(v).astype(np.float32) for k, v in shapes.items()}


def model_of(
    nodes: list[onnx.NodeProto], shapes: dict[str, Any], constants: dict[str, Any] | None = None, **more: Any
) -> onnx.ModelProto:
    """A model whose outputs are ``y`` and, where a node makes it, ``z``."""
    made = {o for node in nodes for o in node.output}
    arrays = {k: v if isinstance(v, np.ndarray) else np.asarray(v) for k, v in (constants or {}).items()}
    return make_model(nodes, feed(shapes), [o for o in ("y", "z") if o in made], arrays, **more)


class Writer:
    """Writes nodes as an exporter does: ``w.Relu("x")`` returns the name of the result; arrays become constants.

    The names of a body begin with a prefix of their own.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def __getattr__(self, op_type: str) -> Any:
        def call(*inputs: Any, _out: str | None = None, _outputs: int = 1, _domain: str = "", **attrs: Any) -> Any:
            number = len(self.nodes)
            outs = [f"{self._prefix}v{number}_{i}" for i in range(_outputs)] if _out is None else [_out]
            read = [v if isinstance(v, str) else self.constant(v) for v in inputs]
            self.nodes.append(n(op_type, read, outs, f"{self._prefix}{op_type}_{number}", domain=_domain, **attrs))
            return outs[0] if len(outs) == 1 else outs

        return call

    def constant(self, content: Any) -> str:
        """A constant; integers are int64, other numbers float32."""
        array = np.asarray(content)
        if not isinstance(content, np.ndarray):
            array = array.astype({"i": np.int64, "f": np.float32, "b": np.bool_}[array.dtype.kind])
        name = f"{self._prefix}c{len(self.constants)}"
        self.constants[name] = array
        return name

    def weight(self, *shape: int) -> np.ndarray:
        """A constant of random numbers."""
        rng = np.random.default_rng(len(self.constants))
        return (rng.standard_normal(shape) / max(shape[0], 1) ** 0.5).astype(np.float32)

    def size(self, value: str, axis: int) -> str:
        """A dimension as torch's script exporter takes it: a Gather of the Shape, with an axis again for Concat."""
        return self.Unsqueeze(self.Gather(self.Shape(value), np.array(axis), axis=0), [0])

    def model(self, inputs: dict[str, Any], outputs: Sequence[str] = ("y",), opset: int = 21) -> onnx.ModelProto:
        """The model; inputs by example array or (element type, dimensions)."""
        return make_model(self.nodes, inputs, list(outputs), self.constants, opset=opset)


def f32(*shape: int) -> np.ndarray:
    """Normal numbers."""
    return _RNG.standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    """A vector: axes, sizes, bounds."""
    return np.array(values, np.int64)


def one(value: Any, dtype: Any = np.float32) -> np.ndarray:
    """An array of this content; a number becomes a scalar."""
    return np.asarray(value, dtype)
