"""The CUDA provider's host side, against a stand-in for CuPy; kernels are compiled for CUDA by ci/cuda_compile.py."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from fake_cupy import CUDARuntimeError, FakeCuda

import gpurt
from gpurt.device import TensorArg
from gpurt.errors import EPFail, InvalidArgument
from gpurt.graph.view import GraphView
from gpurt.partitioner.rates import DEFAULTS
from gpurt.provider import BufferRef, Unavailable
from gpurt.testing.kernels import node_for, run_op
from gpurt_cuda import CudaProvider, compiler
from gpurt_cuda import provider as cuda_provider

GREEDY = gpurt.SessionOptions(partitioning="greedy")  # so that no rate of this machine decides

SCALE = [ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int64, ctypes.c_float, ctypes.c_int64]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeCuda]:
    made = FakeCuda()
    made.install(monkeypatch)
    monkeypatch.setenv("GPURT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "include_dirs", lambda: ("/cuda/include",))
    monkeypatch.setattr(cuda_provider, "_DRIVERS", {})
    return made


@pytest.fixture
def driver(fake: FakeCuda) -> Any:
    from gpurt_cuda.driver import CudaDriver

    return CudaDriver(1)


def test_probe_lists_devices(fake: FakeCuda) -> None:
    devices = CudaProvider.probe()
    assert [d.name for d in devices] == ["cuda:0", "cuda:1"]
    assert "compute capability 9.0" in devices[0].description


@pytest.mark.parametrize(
    ("version", "status", "reason"),
    [
        (0, 35, "the NVIDIA driver or a GPU is missing"),
        (12020, 35, "the NVIDIA driver is for CUDA 12.2, CuPy for CUDA 13.0"),
        (13000, 999, "CUDA does not start: it failed"),
    ],
)
def test_probe_says_what_is_missing(fake: FakeCuda, version: int, status: int, reason: str) -> None:
    fake.version, fake.failure = version, CUDARuntimeError(status, "it failed")
    with pytest.raises(Unavailable) as e:
        CudaProvider.probe()
    assert e.value.reason == reason
    assert e.value.remedy


def test_probe_without_headers_or_cupy(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(compiler, "include_dirs", tuple)
        with pytest.raises(Unavailable, match=r"cuda_fp16.h.*gpurt\[cuda12\]"):
            CudaProvider.probe()
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    monkeypatch.setitem(__import__("sys").modules, "cupy.cuda", None)
    with pytest.raises(Unavailable, match=r"CuPy is not installed.*gpurt\[cuda12\]"):
        CudaProvider.probe()


def test_real_cupy_without_gpu_is_refused_cleanly() -> None:
    pytest.importorskip("cupy")
    from cupy.cuda import runtime

    if runtime.driverGetVersion():
        pytest.skip("there is a driver here")
    with pytest.raises(Unavailable, match="driver or a GPU is missing"):
        CudaProvider.probe()


def test_real_cupy_has_what_the_driver_calls() -> None:
    pytest.importorskip("cupy")
    from cupy.cuda import driver, function, nvrtc, runtime

    expected = {
        runtime: [
            "malloc",
            "free",
            "memcpyAsync",
            "memGetInfo",
            "getDeviceProperties",
            "memcpyHostToDevice",
            "eventElapsedTime",
        ],
        driver: ["launchKernel"],
        function: ["Module", "Function"],
        nvrtc: ["createProgram", "compileProgram", "getCUBIN", "getPTX", "getProgramLog", "getSupportedArchs"],
    }
    for module, names in expected.items():
        assert [n for n in names if not hasattr(module, n)] == []
    assert driver.launchKernel.__doc__.count(",") == 10
    assert hasattr(function.Function, "ptr")
    assert hasattr(runtime.CUDARuntimeError(2), "status")


def test_forked_child_is_refused(fake: FakeCuda) -> None:
    CudaProvider.open(0, {})
    drivers = cuda_provider._DRIVERS
    drivers[os.getpid() + 1, 0] = drivers.pop((os.getpid(), 0))
    with pytest.raises(Unavailable, match="forked"):
        CudaProvider.open(0, {})


def test_open_checks_index_and_options(fake: FakeCuda) -> None:
    with pytest.raises(Unavailable, match=r"no cuda:2.*cuda:0: Fake"):
        CudaProvider.open(2, {})
    with pytest.raises(InvalidArgument, match="kernel_class"):
        CudaProvider.open(0, {"kernel_class": "cpu"})
    with pytest.raises(InvalidArgument, match="use_tf32"):
        CudaProvider.open(0, {"use_tf32": "yes"})


def test_copies_are_queued_and_offsets_are_bytes(fake: FakeCuda, driver: Any) -> None:
    a, b = driver.alloc(64), driver.alloc(64)
    stream = driver.stream()
    data = np.arange(8, dtype=np.float32)
    out = np.zeros(4, np.float32)
    driver.write(BufferRef(a, 16, 32), data, stream)
    driver.copy(BufferRef(b, 4, 32), BufferRef(a, 16, 32), 32, stream)
    driver.read(out, BufferRef(b, 8, 16), stream)
    assert len(stream.held) == 2, "host memory must live until the queue has passed it"
    assert not out.any(), "nothing may happen before the queue is waited for"
    driver.synchronize(stream)
    assert out.tolist() == [1, 2, 3, 4]
    assert stream.held == []


def test_out_of_memory(fake: FakeCuda, driver: Any) -> None:
    block = driver.alloc(fake.memory)
    with pytest.raises(MemoryError, match="1000 bytes"):
        driver.alloc(1000)
    assert fake.pool_freed == 1, "CuPy's unused blocks are given back before giving up"
    driver.free(block)
    driver.free(driver.alloc(1000))
    assert fake.allocations == {}


def test_failure_of_the_device_is_typed(fake: FakeCuda, driver: Any) -> None:
    stream = driver.stream()
    fake.failure = CUDARuntimeError(700, "cudaErrorIllegalAddress")
    with pytest.raises(EPFail, match="IllegalAddress"):
        driver.synchronize(stream)


def test_launch_lays_out_parameters(fake: FakeCuda, driver: Any) -> None:
    fake.signatures["scale"] = SCALE

    def scale(x: int, x_at: int, y: int, y_at: int, factor: float, n: int) -> None:
        fake.view(y + 4 * y_at, (n,), np.float32)[:] = factor * fake.view(x + 4 * x_at, (n,), np.float32)

    fake.kernels["scale"] = scale
    x, y = driver.alloc(256), driver.alloc(256)
    program = driver.build("text", "Scale")
    at_x, at_y = TensorArg(BufferRef(x, 128, 16), 4), TensorArg(BufferRef(y, 0, 16), 4)
    launcher = driver.prepare(program, "scale", [at_x, at_y, np.float32(0.5), np.int64(4)], (3, 2, 1), (64, 1, 1))
    stream = driver.stream()
    driver.write(BufferRef(x, 128, 16), np.array([2, 4, 6, 8], np.float32), stream)
    launcher(stream)
    launcher.set(1, TensorArg(BufferRef(y, 64, 16), 4))
    launcher(stream)
    out = np.zeros(4, np.float32)
    driver.read(out, BufferRef(y, 64, 16), stream)
    driver.synchronize(stream)
    assert out.tolist() == [1, 2, 3, 4]
    name, grid, block, args, queue, device = fake.launches[0]
    assert (name, grid, block, queue, device) == ("scale", (3, 2, 1), (64, 1, 1), stream.ptr, 1)
    assert args == [x + 128, 0, y, 0, 0.5, 4]
    assert fake.launches[1][3][2] == y + 64
    assert fake.current == 0, "the caller's current device is left as it was"


def test_timer_tells_when_the_device_worked(fake: FakeCuda, driver: Any) -> None:
    fake.signatures["k"] = [ctypes.c_int32]
    fake.kernels["k"] = lambda _: None
    launcher = driver.prepare(driver.build("text", "K"), "k", [np.int32(1)], (2, 1, 1), (8, 1, 1))
    assert (launcher.grid, launcher.block) == ((2, 1, 1), (8, 1, 1))
    timer = driver.timer()
    before = time.perf_counter_ns()
    timer.align()
    after = time.perf_counter_ns()
    tokens = [timer.time(launcher) for _ in range(3)]
    driver.synchronize(timer.stream)
    spans = [timer.span(t) for t in tokens]
    assert before <= spans[0][0] <= after
    assert [(a - spans[0][0], b - spans[0][0]) for a, b in spans] == [
        (0, 10**6),
        (10**6, 2 * 10**6),
        (2 * 10**6, 3 * 10**6),
    ]


def test_mark_waits_for_what_is_on_the_stream_by_now(fake: FakeCuda, driver: Any) -> None:
    stream, done = driver.stream(), []
    fake.queues[stream.ptr].append(lambda: done.append(1))
    wait = driver.mark(stream)
    fake.queues[stream.ptr].append(lambda: done.append(2))
    wait()
    assert done == [1]


def test_launch_from_another_thread_makes_the_context_current(fake: FakeCuda, driver: Any) -> None:
    fake.signatures["k"] = [ctypes.c_int32]
    launcher = driver.prepare(driver.build("text", "K"), "k", [np.int32(-7)], (1, 1, 1), (1, 1, 1))
    stream = driver.stream()
    thread = threading.Thread(target=lambda: launcher(stream))
    thread.start()
    thread.join()
    assert fake.launches[0][3] == [-7]


def test_build_compiles_once_and_keeps_the_code(fake: FakeCuda, driver: Any, tmp_path: Path) -> None:
    driver.build("text", "Op")
    driver.build("text", "Op")
    assert len(fake.compiled) == 1
    assert fake.compiled[0][1] == ("-std=c++17", "-arch=sm_90", "-I/cuda/include")
    assert len(list((tmp_path / "cuda").iterdir())) == 1
    with pytest.raises(EPFail, match=r"(?s)kernel for Op does not compile for sm_90: the log"):
        driver.build("#error", "Op")


def test_devices_newer_and_older_than_the_compiler(fake: FakeCuda) -> None:
    assert compiler.target(120) == ("-arch=compute_90", "ptx")
    assert compiler.compile_text("text", "Op", 120).code == b"ptx\0"
    with pytest.raises(EPFail, match="no compute capability 6"):
        compiler.target(60)


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
    fake.signatures["copy_elements"] = [*SCALE[:4], ctypes.c_int64]

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


def test_a_stream_follows_what_is_on_another_one_by_now(fake: FakeCuda, driver: Any) -> None:
    leader, stream, done = driver.stream(), driver.stream(), []
    fake.queues[leader.ptr].append(lambda: done.append("before"))
    driver.follow(stream, leader)
    fake.queues[leader.ptr].append(lambda: done.append("after"))
    fake.queues[stream.ptr].append(lambda: done.append("follower"))
    driver.synchronize(stream)
    assert done == ["before", "follower"]
