"""One engine with one model for engines.py: loads, runs once, then runs for as many seconds as each line says.

    python engine_worker.py ENGINE MODEL THREADS OUTPUTS.npz

Needs NumPy, onnx and the engine alone, so that another interpreter can run it.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

Run = Callable[[], list[Any]]
Loaded = tuple[Run, str, str]
"""What runs the model once, the engine's version, and the device."""


def _ort(model: str, given: dict[str, np.ndarray], threads: int, _: str) -> Loaded:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given), onnxruntime.__version__, "CPU"


def _gpurt(model: str, given: dict[str, np.ndarray], threads: int, what: str) -> Loaded:
    import gpurt

    listed: list[Any] = []
    for provider in what.split("+"):
        name, _, where = provider.partition("@")
        listed.append((name, {"platform": where}) if where else name)
    options = gpurt.SessionOptions(intra_op_num_threads=threads)
    session = gpurt.InferenceSession(model, options, providers=listed)
    devices = [getattr(getattr(p, "info", None), "name", p.device) for p in session._providers]  # noqa: SLF001
    return lambda: session.run(None, given), gpurt.__version__, " + ".join(devices)


def _tinygrad(model: str, given: dict[str, np.ndarray], _: int, device: str) -> Loaded:
    from importlib.metadata import version

    from tinygrad import Device, Tensor, TinyJit
    from tinygrad.nn.onnx import OnnxRunner

    runner = OnnxRunner(model)
    tensors = {name: Tensor(value).realize() for name, value in given.items()}
    jit = TinyJit(lambda **named: [t.realize() for t in runner(named).values()])

    def run() -> list[Any]:
        return [t.numpy() for t in jit(**tensors)]

    run()  # the first two calls look on, the third one replays
    run()
    if device and device.upper() != Device.DEFAULT.upper():
        raise RuntimeError(f"tinygrad took {Device.DEFAULT}")
    return run, version("tinygrad"), Device.DEFAULT


def _opencv(model: str, given: dict[str, np.ndarray], threads: int, target: str) -> Loaded:
    import cv2

    cv2.setNumThreads(threads)
    # OpenCV 5 has a second engine, which takes no targets and would run on the CPU whatever is asked.
    classic = {"engine": cv2.dnn.ENGINE_CLASSIC} if target and hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    network = cv2.dnn.readNetFromONNX(model, **classic)
    device = "CPU"
    if target == "opencl":
        cv2.ocl.setUseOpenCL(True)
        if not cv2.ocl.useOpenCL():
            raise RuntimeError("OpenCV sees no OpenCL device")
        network.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        network.setPreferableTarget(cv2.dnn.DNN_TARGET_OPENCL)
        device = cv2.ocl.Device.getDefault().name()
    names = network.getUnconnectedOutLayersNames()

    def run() -> list[Any]:
        for name, value in given.items():
            network.setInput(value, name)
        return list(network.forward(names))

    return run, cv2.__version__, device


LOADED: dict[str, Callable[[str, dict[str, np.ndarray], int, str], Loaded]] = {
    "ort": _ort,
    "gpurt": _gpurt,
    "tinygrad": _tinygrad,
    "opencv": _opencv,
}


@contextmanager
def _pocl() -> Iterator[None]:
    """Show engines that go through the system's loader the PoCL that pip has installed, if nothing else is said."""
    import importlib.util

    os.environ.setdefault("OPENCV_OPENCL_DEVICE", ":CPU:")
    os.environ.setdefault("OPENCV_DNN_OPENCL_ALLOW_ALL_DEVICES", "1")
    spec = importlib.util.find_spec("pyopencl")
    found = [] if spec is None or spec.origin is None else pathlib.Path(spec.origin).parent.glob(".libs/libpocl*")
    with tempfile.TemporaryDirectory() as folder:
        for i, library in enumerate(found):
            pathlib.Path(folder, f"pocl{i}.icd").write_text(str(library))
            os.environ.setdefault("OCL_ICD_VENDORS", folder)
        yield


def work(engine: str, model: str, threads: int, outputs: str) -> None:
    """Answer on standard output, one line of JSON for what was loaded and for each line that is read."""
    from models import feeds

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print is no answer

    def answer(what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    kind, _, detail = engine.partition(":")
    try:
        given = feeds(pathlib.Path(model))
        start = time.perf_counter()
        run, version, device = LOADED[kind](model, given, threads, detail)
        loaded = time.perf_counter()
        values = [np.asarray(v) for v in run()]
        first = time.perf_counter()
        np.savez(outputs, *[v if v.dtype.kind in "fiub" else np.zeros(0) for v in values])
        run()
    except Exception as e:  # noqa: BLE001 - the reason goes to the table
        answer({"error": f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:160]}"})
        return
    answer({"load": loaded - start, "first": first - loaded, "version": version, "device": device})
    for line in sys.stdin:
        seconds, times = float(line), []
        begin = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
            if time.perf_counter() - begin > 4 * seconds + 8:
                break
        answer(times)


if __name__ == "__main__":
    if sys.argv[1].startswith(("tinygrad", "opencv")):
        with _pocl():
            work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        work(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
