"""The CUDA provider's host side, against a stand-in for CuPy; kernels are compiled for CUDA by ci/cuda_compile.py."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from fake_cupy import CUDARuntimeError, FakeCuda

from gpurt.device import TensorArg
from gpurt.errors import EPFail, InvalidArgument
from gpurt.provider import BufferRef, Unavailable
from gpurt_cuda import CudaProvider, compiler
from gpurt_cuda import provider as cuda_provider

SCALE = [ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint64, ctypes.c_int64, ctypes.c_float, ctypes.c_int64]


fake = fake_cupy.fake


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


def test_a_stream_follows_what_is_on_another_one_by_now(fake: FakeCuda, driver: Any) -> None:
    leader, stream, done = driver.stream(), driver.stream(), []
    fake.queues[leader.ptr].append(lambda: done.append("before"))
    driver.follow(stream, leader)
    fake.queues[leader.ptr].append(lambda: done.append("after"))
    fake.queues[stream.ptr].append(lambda: done.append("follower"))
    driver.synchronize(stream)
    assert done == ["before", "follower"]
