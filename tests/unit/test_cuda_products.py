"""The CUDA provider's products by cuBLAS, against a stand-in for CuPy that computes as the library documents it."""

from __future__ import annotations

import ctypes
from typing import Any

import fake_cupy
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from fake_cupy import FakeCuda

import gpurt
from gpurt.graph.view import GraphView
from gpurt.partitioner.rates import DEFAULTS
from gpurt.testing.kernels import node_for, run_op
from gpurt_cuda import CudaProvider

fake = fake_cupy.fake
GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides


CASES = [
    ((5, 7), (7, 3)),
    ((7,), (7, 3)),
    ((5, 7), (7,)),
    ((7,), (7,)),
    ((2, 4, 5, 7), (7, 3)),
    ((2, 4, 5, 7), (2, 4, 7, 3)),
    ((1, 5, 7), (4, 7, 3)),
    ((5, 7), (2, 4, 7, 3)),
    ((4, 5, 7), (1, 7, 3)),
]


@pytest.mark.parametrize("shapes", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_matmul_by_cublas(fake: FakeCuda, shapes: tuple[tuple[int, ...], ...], dtype: type) -> None:
    cuda = CudaProvider.open(0, {})
    a, b = (np.random.default_rng(0).standard_normal(s).astype(dtype) for s in shapes)
    (y,) = run_op(cuda, "MatMul", [a, b])  # type: ignore[arg-type]
    wanted = np.matmul(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(
        y, wanted, rtol=1e-5 if dtype != np.float16 else 1e-2, atol=1e-5 if dtype != np.float16 else 1e-2
    )
    assert len(fake.gemms) == 1
    assert fake.gemms[0][-1] == (70 if dtype == np.float64 else 68)
    assert fake.launches == []


@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("add", [None, "full"])
def test_gemm_by_cublas(
    fake: FakeCuda, flags: tuple[int, int], add: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = CudaProvider.open(1, {})
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal(s, np.float32) for s in ((5, 7), (7, 3), (5, 3)))
    fake.signatures["copy_elements"] = [*2 * [ctypes.c_uint64, ctypes.c_int64], ctypes.c_int64]

    def copy(x: int, _: int, y: int, __: int, n: int) -> None:
        fake.view(y, (n,), np.float32)[:] = fake.view(x, (n,), np.float32)

    fake.kernels["copy_elements"] = copy
    inputs = [a.T if flags[0] else a, b.T if flags[1] else b, *([c] if add else [])]
    inputs = [np.ascontiguousarray(x) for x in inputs]
    attrs = {"transA": flags[0], "transB": flags[1], "alpha": 0.5, "beta": 2.0}
    (y,) = run_op(cuda, "Gemm", inputs, attrs)  # type: ignore[arg-type]
    np.testing.assert_allclose(y, 0.5 * a @ b + (2 * c if add else 0), rtol=1e-5, atol=1e-5)
    assert len(fake.gemms) == 1


def test_gemm_broadcasts_its_third_input_first(fake: FakeCuda) -> None:
    cuda = CudaProvider.open(0, {})
    node = node_for("Gemm", [np.zeros((5, 7), np.float32), np.zeros((7, 3), np.float32), np.zeros(3, np.float32)])
    assert _kernels(cuda, node)[-1] == "cublas_gemm"
    assert len(_kernels(cuda, node)) == 2


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    [
        (((2, 1, 5, 7), (1, 4, 7, 3)), np.float32),  # broadcast in part
        (((5, 7), (7, 3)), np.int32),
        (((5, 0), (0, 3)), np.float32),
    ],
)
def test_what_cublas_cannot_do_goes_to_the_shared_kernels(
    fake: FakeCuda, shapes: tuple[tuple[int, ...], ...], dtype: type
) -> None:
    cuda = CudaProvider.open(0, {})
    kernels = _kernels(cuda, node_for("MatMul", [np.zeros(s, dtype) for s in shapes]))
    assert kernels
    assert "cublas_matmul" not in kernels


def test_a_session_over_cublas_alone(fake: FakeCuda) -> None:
    """Planning, arena, weights, copies and the plan's replay with new feeds; no kernel is needed for these nodes."""
    rng = np.random.default_rng(2)
    v, w = rng.standard_normal((7, 6), np.float32), rng.standard_normal((3, 4), np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["x", "v"], ["p"]),
            onnx.helper.make_node("Reshape", ["p", "shape"], ["q"]),
            onnx.helper.make_node("MatMul", ["q", "w"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 7])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in (("v", v), ("w", w), ("shape", np.array([-1, 3])))],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = gpurt.InferenceSession(model, GREEDY, providers=["cuda:1"])
    assert {n["device"] for n in session.explain().to_dict()["nodes"]} == {"cuda:1"}
    for n in (5, 5, 8):
        x = rng.standard_normal((n, 7), np.float32)
        (y,) = session.run(None, {"x": x})
        np.testing.assert_allclose(y, (x @ v).reshape(-1, 3) @ w, rtol=1e-4, atol=1e-5)
    assert len(fake.gemms) == 6
    assert fake.launches == []


def test_branches_on_several_streams(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chains of products under the parallel execution mode, each on a stream of its own."""
    from gpurt.plan import schedule
    from gpurt.plan.steps import DeviceStep, Step

    def divide(steps: list[Step], space: int, machine: Any) -> None:
        for step in steps:
            if isinstance(step, DeviceStep):
                step.queue = 2 * step.unit.nodes[0].name.startswith("b")

    monkeypatch.setattr(schedule, "divide", divide)
    monkeypatch.setattr("gpurt.session.lanes.rates", lambda provider, folder: DEFAULTS["gpu"])
    rng = np.random.default_rng(3)
    weights = {f"{branch}w{k}": rng.standard_normal((6, 6), np.float32) for branch in "ab" for k in range(4)}
    make, nodes = onnx.helper.make_node, []
    for branch in "ab":
        for k in range(4):
            source = f"{branch}{k - 1}" if k else "x"
            nodes.append(make("MatMul", [source, f"{branch}w{k}"], [f"{branch}{k}"], f"{branch}_{k}"))
    nodes.append(make("MatMul", ["a3", "b3"], ["y"], "join"))
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", kind, [6, 6])],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = gpurt.SessionOptions(
        partitioning="greedy", graph_optimization_level="disable_all", execution_mode="parallel"
    )
    session = gpurt.InferenceSession(model, options, providers=["cuda:1"])
    for _ in range(3):
        x = rng.standard_normal((6, 6), np.float32)
        a, b = x, x
        for k in range(4):
            a, b = a @ weights[f"aw{k}"], b @ weights[f"bw{k}"]
        np.testing.assert_allclose(session.run(None, {"x": x})[0], a @ b, rtol=1e-3, atol=1e-3)
    (streams,) = session._site._idle
    assert len(streams) == 2
    assert len({stream.blas() for stream in streams.values()}) == 2  # workspaces


def test_tf32_only_when_asked(fake: FakeCuda) -> None:
    a, b = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    run_op(CudaProvider.open(0, {"use_tf32": True}), "MatMul", [a, b])  # type: ignore[arg-type]
    run_op(CudaProvider.open(0, {}), "MatMul", [a, b])  # type: ignore[arg-type]
    assert [g[-1] for g in fake.gemms] == [77, 68]


def test_without_cublas_the_shared_rows_serve(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delattr(sys.modules["cupy.cuda"], "cublas")
    monkeypatch.delitem(sys.modules, "cupy.cuda.cublas")
    cuda = CudaProvider.open(0, {})
    kernels = _kernels(cuda, node_for("MatMul", [np.zeros((5, 7), np.float32), np.zeros((7, 3), np.float32)]))
    assert "cublas_matmul" not in kernels
    assert any("cuBLAS was not found" in note for note in CudaProvider.notes())


def _kernels(cuda: Any, node: Any) -> list[str]:
    from gpurt.spec import Spec

    graph = GraphView((node,), tuple(v for v in node.inputs if v), tuple(v for v in node.outputs if v))
    (unit,) = cuda.compile(graph)
    return list(unit.plan([Spec(v.dtype, v.shape) for v in node.inputs]).kernels)
