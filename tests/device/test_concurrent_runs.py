"""Many threads and many shapes on one session of a real device: right values, and memory that stays bounded."""

import gc
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt

n = helper.make_node


def model() -> onnx.ModelProto:
    """Kernels whose plans have constants of their own for each shape (Conv's tables), and weights that all share."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((64, 64)).astype(np.float32) / 8,
        "heads": np.array([0, 0, 4, 16]),
        "filters": rng.standard_normal((8, 4, 3, 3)).astype(np.float32),
    }
    nodes = [
        n("MatMul", ["x", "w"], ["a"]),
        n("Reshape", ["a", "heads"], ["h"]),
        n("Transpose", ["h"], ["t"], perm=[0, 2, 1, 3]),
        n("Softmax", ["t"], ["s"]),
        n("Conv", ["s", "filters"], ["c"], pads=[1, 1, 1, 1]),
        n("ReduceMean", ["c"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def session(**options) -> gpurt.InferenceSession:
    if "opencl" not in gpurt.get_available_providers():
        pytest.skip("no OpenCL device")
    return gpurt.InferenceSession(
        model(), gpurt.SessionOptions(partitioning="greedy", **options), providers=["opencl", "cpu"]
    )


def feed(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).standard_normal((batch, length, 64)).astype(np.float32)


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def test_eight_threads_of_200_runs_with_changing_shapes() -> None:
    s = session(plan_cache_size=6)
    plain = gpurt.InferenceSession(model(), providers=["cpu"])
    feeds = [feed(b, k) for b, k in ((1, 3), (2, 5), (1, 8), (3, 2), (1, 1), (2, 9), (1, 17), (1, 12))]
    want = [plain.run(None, {"x": x})[0] for x in feeds]
    wrong: list[tuple[int, int]] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(200):
            k = int(rng.integers(len(feeds)))
            if not np.allclose(s.run(None, {"x": feeds[k]})[0], want[k], rtol=1e-3, atol=1e-5):
                wrong.append((seed, k))

    def all_threads() -> None:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        gc.collect()

    all_threads()
    first, held = resident(), s.memory()["opencl:0"]["held"]
    all_threads()
    assert not wrong
    assert s.memory()["opencl:0"]["held"] == held
    assert resident() - first < 8 << 20


def test_many_shapes_leave_neither_memory_nor_constants_behind() -> None:
    s = session(plan_cache_size=8, plan_cache_bytes=1 << 19)
    for length in range(1, 61):
        s.run(None, {"x": feed(1, length)})
    s.run(None, {"x": feed(1, 1)})
    gc.collect()
    first, provider = resident(), s._providers[0]
    constants, programs = len(provider.constants._held), len(provider._programs)
    for length in [*range(61, 301), 1]:
        s.run(None, {"x": feed(1, length)})
        assert s._site.plans.held() <= 1 << 19
    gc.collect()
    assert resident() - first < 8 << 20
    assert len(provider.constants._held) <= constants
    assert len(provider._programs) <= programs + 2  # they differ by classes of sizes
    assert s.memory()["opencl:0"]["in_use"] <= 1 << 19


def test_weights_stay_on_the_device_when_the_only_plan_makes_room() -> None:
    s = session(plan_cache_size=1)
    s.run(None, {"x": feed(1, 3)})
    provider = s._providers[0]
    store = provider.constants._store
    written: list[int] = []
    get = store.get
    store.get = lambda array, key: (written.append(array.nbytes), get(array, key))[1]
    try:
        for length in (4, 5, 4, 3):
            s.run(None, {"x": feed(1, length)})
    finally:
        del store.get
    assert len(s._runner.plans()) == 1
    assert max(written, default=0) < 64 * 64 * 4
