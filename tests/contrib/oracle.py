"""One node of com.microsoft in gpurt's cpu provider and in ONNX Runtime, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper, numpy_helper

import gpurt

MS = "com.microsoft"
Arrays = Sequence[np.ndarray | None]
# Few examples, the same in each run: one costs two sessions, and a red build must be reproducible.
quick = settings(
    max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def model(
    op: str, inputs: Arrays, attrs: dict[str, Any], outputs: int | Sequence[bool] = 1, domain: str = MS
) -> onnx.ModelProto:
    """A model of one node whose inputs are all fed; ``outputs`` says how many it has, or which of them are wanted."""
    wanted = [True] * outputs if isinstance(outputs, int) else outputs
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    made = [f"y{i}" if want else "" for i, want in enumerate(wanted)]
    graph = helper.make_graph(
        [helper.make_node(op, names, made, domain=domain, **attrs)],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), list(x.shape))
            for n, x in zip(names, inputs, strict=True)
            if x is not None
        ],
        [onnx.ValueInfoProto(name=n) for n in made if n],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _feeds(inputs: Arrays) -> dict[str, np.ndarray]:
    return {f"x{i}": np.asarray(x) for i, x in enumerate(inputs) if x is not None}


def ours(
    op: str, inputs: Arrays, attrs: dict[str, Any] | None = None, outputs: int | Sequence[bool] = 1
) -> list[np.ndarray]:
    """The node's outputs from gpurt."""
    proto = model(op, inputs, attrs or {}, outputs)
    for out in proto.graph.output:  # the types come from gpurt's own inference
        out.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.UNDEFINED, None))
    session = gpurt.InferenceSession(proto.SerializeToString(), providers=["cpu"])
    return session.run(None, _feeds(inputs))


def theirs(
    op: str,
    inputs: Arrays,
    attrs: dict[str, Any],
    like: Sequence[np.ndarray],
    outputs: int | Sequence[bool] = 0,
    domain: str = MS,
) -> list[np.ndarray]:
    """The node's outputs from ONNX Runtime, which is told their types, and which makes exact integer products here."""
    proto = model(op, inputs, attrs, outputs or len(like), domain)
    for out, x in zip(proto.graph.output, like, strict=True):
        out.type.CopyFrom(helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(x.dtype), None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, _feeds(inputs))


def both(
    op: str, inputs: Arrays, attrs: dict[str, Any] | None = None, outputs: int | Sequence[bool] = 1
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of an output of gpurt and that of ONNX Runtime."""
    got = ours(op, inputs, attrs, outputs)
    pairs = list(zip(got, theirs(op, inputs, attrs or {}, got, outputs), strict=True))
    for g, w in pairs:
        assert (g.dtype, g.shape) == (w.dtype, w.shape)
    return pairs


def close(
    op: str,
    inputs: Arrays,
    attrs: dict[str, Any] | None = None,
    outputs: int | Sequence[bool] = 1,
    *,
    tol: float = 1e-5,
) -> None:
    """Assert that all outputs agree, relative to the greatest of each."""
    for g, w in both(op, inputs, attrs, outputs):
        near(g, w, tol)


def near(got: np.ndarray, wanted: np.ndarray, tol: float = 1e-5) -> None:
    """Assert that two arrays agree within a tolerance relative to the greatest value."""
    wide = wanted.astype(np.float64)
    scale = max(float(np.abs(wide).max(initial=0)), 1e-3)
    np.testing.assert_allclose(got.astype(np.float64), wide, rtol=0, atol=tol * scale)


def steps(op: str, inputs: Arrays, attrs: dict[str, Any] | None = None) -> None:
    """Assert that quantized outputs agree, but for single steps where the real value lies halfway between two."""
    for g, w in both(op, inputs, attrs):
        off = np.abs(g.astype(np.int64) - w.astype(np.int64))
        assert off.max(initial=0) <= 1
        assert np.count_nonzero(off) <= 1 + off.size // 50


def array(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers."""
    return rng.normal(size=shape).astype(dtype)


def codes(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    """Any numbers of an integer type."""
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def constants(proto: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model with some of its inputs made initializers."""
    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    kept = [i for i in proto.graph.input if i.name not in values]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return proto
