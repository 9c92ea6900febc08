"""Persistent kernels on a real device: the values of launches one by one, from fewer launches."""

import logging
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt.device.persistent import Part, Programs
from gpurt.device.persistent.table import Table
from gpurt.provider import BufferRef

pytestmark = pytest.mark.parametrize("provider", ["cpu"], indirect=True)

n = helper.make_node

KERNEL = """
KFN(1, 1, 1) slowly_add(TENSOR(float, y), const float what, const i32 rounds) {
  OPEN(float, y);
  float v = y[GROUP(0)];
  for (i32 i = 0; i < rounds; i++) v = v * 1.0f + 0.0f;
  y[GROUP(0)] = v + what;
}
"""


def model() -> onnx.ModelProto:
    """Eight launches at least, of kernels that share helpers: products, rows, reductions, elementwise chains."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((32, 32)).astype(np.float32) / 6,
        "v": rng.standard_normal((32, 48)).astype(np.float32) / 6,
        "picked": np.array([3, 1, 30], np.int64),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        n("MatMul", ["x", "w"], ["a"]),
        n("Softmax", ["a"], ["b"]),
        n("MatMul", ["b", "w"], ["c"]),
        n("Erf", ["c"], ["d"]),
        n("CumSum", ["d", "axis"], ["e"]),
        n("Softmax", ["e"], ["f"], axis=0),
        n("MatMul", ["f", "v"], ["g"]),
        n("ReduceMean", ["g"], ["h"], axes=[1]),
        n("Sigmoid", ["h"], ["i"]),
        n("Gather", ["g", "picked"], ["j"], axis=1),
        n("Mul", ["i", "j"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None), helper.make_tensor_value_info("g", 1, None)],
        [numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def session(persistent, **options) -> gpurt.InferenceSession:
    providers = [("opencl", {"persistent_kernels": persistent, "kernel_class": "cpu"}), "cpu"]
    return gpurt.InferenceSession(model(), gpurt.SessionOptions(partitioning="greedy", **options), providers=providers)


def feed(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 32)).astype(np.float32)}


@pytest.fixture
def enqueued(monkeypatch):
    """How many kernels were enqueued, as a list that grows."""
    from gpurt_opencl.driver import OpenCLLauncher

    calls = []
    call = OpenCLLauncher.__call__
    monkeypatch.setattr(OpenCLLauncher, "__call__", lambda self, stream: calls.append(self) or call(self, stream))
    return calls


def shares_host(provider):
    if not provider.info.shares_host:
        pytest.skip(f"{provider.info.name} does not compute in the host's memory")


def test_a_run_is_one_launch_with_equal_values(provider, enqueued):
    shares_host(provider)
    plain, persistent = session(False), session(True)
    expected = plain.run(None, feed(20))
    one_by_one = len(enqueued)
    made = persistent.run(None, feed(20))
    assert len(enqueued) - one_by_one == 1
    assert one_by_one >= 8
    for a, b in zip(made, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_feeds_and_shapes_may_change(provider):
    shares_host(provider)
    plain, persistent = session(False), session(True)
    for seed, rows in enumerate((20, 20, 3, 64, 1, 20)):
        for a, b in zip(persistent.run(None, feed(rows, seed)), plain.run(None, feed(rows, seed)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_plan_for_another_shape_builds_no_second_program(provider):
    shares_host(provider)
    persistent = session(True)
    for rows in (20, 24, 28, 64):
        persistent.run(None, feed(rows))
    assert len(persistent._providers[0]._persistent._known) == 1


def test_many_threads_on_one_session(provider):
    shares_host(provider)
    plain, persistent = session(False), session(True)
    expected = [plain.run(None, feed(8 + i % 3, i)) for i in range(6)]
    wrong = []

    def work(first: int) -> None:
        for i in range(first, first + 12):
            made = persistent.run(None, feed(8 + i % 6 % 3, i % 6))
            wrong.extend(i for a, b in zip(made, expected[i % 6], strict=True) if not np.array_equal(a, b))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_a_profile_shows_every_kernel(provider, tmp_path):
    shares_host(provider)
    import json

    kernels = []
    for persistent in (False, True):
        opened = session(persistent, enable_profiling=True, profile_file_prefix=str(tmp_path / str(persistent)))
        opened.run(None, feed(20))
        events = json.loads(open(opened.end_profiling(), encoding="utf-8").read())  # noqa: SIM115
        events = events if isinstance(events, list) else events["traceEvents"]
        kernels.append([e["name"] for e in events if e.get("cat") == "Kernel"])
    assert kernels[0] == kernels[1]
    assert len(kernels[0]) >= 8


def test_terminate_ends_a_run_between_kernels(provider):
    shares_host(provider)
    opened, options = session(True), gpurt.RunOptions()
    expected = opened.run(None, feed(20))
    made = opened.run(None, feed(20), options)
    np.testing.assert_array_equal(made[0], expected[0])
    options.terminate = True
    with pytest.raises(gpurt.errors.GpurtError, match="terminate"):
        opened.run(None, feed(20), options)
    np.testing.assert_array_equal(opened.run(None, feed(20))[0], expected[0])


def test_a_program_that_does_not_build_is_done_without(provider, monkeypatch, caplog):
    shares_host(provider)
    expected = session(False).run(None, feed(20))

    def broken(*_):
        raise ValueError("the text has no kernel of the name")

    monkeypatch.setattr("gpurt.device.persistent.programs.merged", broken)
    opened = session(True, cache_dir=False)
    with caplog.at_level(logging.WARNING, logger="gpurt"):
        made = opened.run(None, feed(20))
    assert "one by one" in caplog.text
    np.testing.assert_array_equal(made[0], expected[0])


def test_persistent_kernels_takes_three_values(provider):
    with pytest.raises(gpurt.errors.InvalidArgument, match="persistent_kernels is 'on'"):
        session("on")


def test_arguments_set_while_a_launch_is_under_way_hold_for_the_next(provider):
    shares_host(provider)
    driver = provider.driver
    text = _text(provider)
    block = np.zeros(64 + 16, np.float32)
    y = block[(-block.ctypes.data % 64) // 4 :][:16]
    ref = BufferRef(driver.wrap(y), 0, y.nbytes)
    part = Part(driver, lambda: None, text, "slowly_add", _args(ref, 0.0), (16, 1, 1))
    other = Part(driver, lambda: None, text, "slowly_add", _args(ref, 0.5), (0, 1, 1))
    programs = Programs(driver, provider.info, provider.program)
    steps = programs.merged([part, other, part, other])
    assert len(steps) == 1
    assert isinstance(steps[0], Table)
    stream = driver.stream()
    for i in range(40):
        part.set(1, np.float32(i))
        steps[0](stream)
    driver.synchronize(stream)
    # The first of the two rows of `part` keeps 0: a part is known by its last row.
    np.testing.assert_array_equal(y, np.full(16, sum(range(40)), np.float32))
    other.resize((16, 1, 1))
    steps[0](stream)
    driver.synchronize(stream)
    assert y[0] == sum(range(40)) + 39 + 0.5


def _text(provider):
    from gpurt.device.source import program_text

    return program_text(provider.info, KERNEL, {}, {})


def _args(ref, what):
    from gpurt.device.driver import TensorArg

    return [TensorArg(ref, 4), np.float32(what), np.int32(200000)]
