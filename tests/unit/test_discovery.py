"""Which OpenCL devices are found, in which order, and which one is meant."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpurt.errors import InvalidArgument
from gpurt.provider import Unavailable
from gpurt_opencl import discovery, runtimes


def _platform(name: str, version: str) -> Any:
    return SimpleNamespace(name=name, version=version)


POCL = "Portable Computing Language"
PIP = _platform(POCL, "OpenCL 3.0 PoCL 3.0-rc2  Linux, Release, LLVM 14.0.6")
DEBIAN = _platform(POCL, "OpenCL 3.0 PoCL 3.1+debian  Linux, None+Asserts, LLVM 15.0.6")
INTEL = _platform("Intel(R) OpenCL", "OpenCL 3.0 LINUX")
NVIDIA = _platform("NVIDIA CUDA", "OpenCL 3.0 CUDA 12.9")
FPGA = _platform("Intel(R) FPGA Emulation", "OpenCL 1.2")
AMD = _platform("AMD CPU", "OpenCL 1.2")
OCLGRIND = _platform("Oclgrind", "OpenCL 1.2 (Oclgrind 21.10)")


def _device(name: str, platform: Any) -> Any:
    return SimpleNamespace(
        name=name, platform=platform, driver_version="1", max_compute_units=4, global_mem_size=1 << 30
    )


GPU0, GPU1 = _device("RTX 4090", NVIDIA), _device("GTX 1080", NVIDIA)
LISTED = [
    ("gpu", GPU0),
    ("gpu", GPU1),
    ("accelerator", _device("FPGA", FPGA)),
    ("cpu", _device("pthread", PIP)),
    ("cpu", _device("pthread", DEBIAN)),
    ("cpu", _device("Xeon", INTEL)),
    ("cpu", _device("Xeon", AMD)),
    ("emulator", _device("Oclgrind Simulator", OCLGRIND)),
]


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_found", discovery._Found(os.getpid(), LISTED, []))


def test_order() -> None:
    shuffled = [LISTED[i] for i in (7, 6, 5, 4, 3, 0, 2, 1)]
    assert discovery._order(shuffled, "3.0") == LISTED
    without_pip = discovery._order(shuffled, None)
    assert [d.platform for _, d in without_pip[3:5]] == [PIP, DEBIAN], "PoCLs by version"


def test_pip_pocl_comes_before_a_newer_one() -> None:
    newer = ("cpu", _device("pthread", _platform(POCL, "OpenCL 3.0 PoCL 6.0  Linux")))
    older = ("cpu", _device("pthread", _platform(POCL, "OpenCL 3.0 PoCL 1.8  Linux")))
    assert discovery._order([newer, older, LISTED[3]], "3.0") == [LISTED[3], older, newer]


def test_one_driver_named_twice_is_listed_once() -> None:
    twin = _platform(PIP.name, PIP.version)
    two_gpus = [("gpu", _device("RTX", NVIDIA)), ("gpu", _device("RTX", NVIDIA))]
    found = [(PIP, [LISTED[3]]), (twin, [("cpu", _device("pthread", twin))]), (DEBIAN, [LISTED[4]]), (NVIDIA, two_gpus)]
    assert discovery._without_twins(found) == [LISTED[3], LISTED[4], *two_gpus]


@pytest.mark.parametrize(
    ("index", "platform", "device", "number"),
    [
        (None, None, None, 0),
        (1, None, None, 1),
        (None, "intel(r) opencl", None, 5),
        (None, "PoCL 3.1", None, 4),
        (None, "pocl", 1, 4),
        (None, 0, 1, 1),
        (None, 2, None, 3),
        (None, None, "gtx", 1),
        (None, "NVIDIA", "1080", 1),
        (4, "PoCL", None, 4),
    ],
)
@pytest.mark.usefixtures("eight")
def test_choose(index: int | None, platform: Any, device: Any, number: int) -> None:
    assert discovery.choose(index, platform, device) == (number, LISTED[number][1])


@pytest.mark.parametrize(
    ("index", "platform", "device", "words"),
    [
        (8, None, None, r"no opencl:8.*0: RTX 4090"),
        (None, "Mali", None, r"platform matches 'Mali'.*NVIDIA CUDA"),
        (None, 9, None, r"platform matches 9"),
        (None, -1, None, r"platform matches -1"),
        (None, "Intel(R) OpenCL", "GPU", r"on platform 'Intel\(R\) OpenCL' matches 'GPU'.*0: Xeon"),
        (None, "NVIDIA", 2, r"matches 2"),
        (0, "PoCL", None, r"opencl:0 is RTX 4090.*not platform 'PoCL'"),
    ],
)
@pytest.mark.usefixtures("eight")
def test_no_match_says_what_there_is(index: int | None, platform: Any, device: Any, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        discovery.choose(index, platform, device)


@pytest.mark.parametrize("value", [1.5, True, ["Intel"]])
@pytest.mark.usefixtures("eight")
def test_options_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="platform is"):
        discovery.choose(None, value, None)


def test_a_forked_child_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_found", discovery._Found(os.getpid() + 1, LISTED, []))
    with pytest.raises(Unavailable, match="forked"):
        discovery.devices()
    assert discovery.notes() == []


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path, mode: loaded.append(path))
    monkeypatch.delenv(runtimes.VARIABLE, raising=False)
    monkeypatch.delenv("OPENCL_VENDOR_PATH", raising=False)
    return tmp_path / "lib" / "libintelocl.so"


def _icds() -> dict[str, str]:
    return {p.name: p.read_text().strip() for p in Path(os.environ[runtimes.VARIABLE]).iterdir()}


def test_the_users_folder_is_kept(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "vendors"
    folder.mkdir()
    (folder / "a.icd").write_text("libnvidia-opencl.so.1\n")
    (folder / "gone.icd").write_text("/nowhere/libgone.so\n")
    monkeypatch.setenv(runtimes.VARIABLE, str(folder))
    with runtimes.vendors(library):
        assert _icds() == {"a.icd": "libnvidia-opencl.so.1", "gpurt-intel-cpu.icd": str(library)}
        private = os.environ[runtimes.VARIABLE]
    assert os.environ[runtimes.VARIABLE] == str(folder)
    assert not os.path.exists(private)


def test_the_systems_folder_is_kept(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system.icd").write_text("libmali.so")
    monkeypatch.setenv("OPENCL_VENDOR_PATH", str(tmp_path))
    with runtimes.vendors(library):
        assert _icds()["system.icd"] == "libmali.so"
    assert runtimes.VARIABLE not in os.environ


def test_a_driver_that_the_user_names_alone_stays_alone(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtimes.VARIABLE, "/opt/liboclgrind-rt-icd.so")
    with runtimes.vendors(library):
        assert os.environ[runtimes.VARIABLE] == "/opt/liboclgrind-rt-icd.so"


def test_nothing_happens_without_intels_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtimes.VARIABLE, raising=False)
    with runtimes.vendors(None):
        assert runtimes.VARIABLE not in os.environ


def _process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


LIST = """
import os
from gpurt_opencl import OpenCLProvider
print([d.description for d in OpenCLProvider.probe()], OpenCLProvider.notes(), os.environ.get("OCL_ICD_VENDORS"))
"""
needs_intel = pytest.mark.skipif(runtimes.intel_library() is None, reason="Intel's runtime is not installed")


@needs_intel
def test_intels_runtime_is_found_beside_the_others() -> None:
    pytest.importorskip("pyopencl")
    told = _process("import pyopencl\n" + LIST)  # an import alone does not start the loader
    assert "Intel(R) OpenCL" in told
    assert told.strip().endswith("[] None")


@needs_intel
def test_intels_runtime_is_missed_if_opencl_was_in_use() -> None:
    pytest.importorskip("pyopencl")
    told = _process("import pyopencl\ntry: pyopencl.get_platforms()\nexcept pyopencl.Error: pass\n" + LIST)
    if "Intel(R) OpenCL" not in told.split("] [")[0]:  # unless the system has it, too
        assert "Intel's CPU runtime is installed, but not visible" in told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_session_in_a_forked_child_fails_instead_of_hanging() -> None:
    pytest.importorskip("pyopencl")
    code = """
import os, numpy as np
from gpurt.provider import Unavailable
from gpurt.errors import EPFail
from gpurt.testing.kernels import run_op
from gpurt_opencl import OpenCLProvider
try:
    provider = OpenCLProvider.open(None, {})
except Unavailable:
    print("child says EPFail, Unavailable")  # nothing to test here
    raise SystemExit
run_op(provider, "ReduceSum", [np.ones((2, 3), np.float32), np.array([1])])
pid = os.fork()
if pid == 0:
    said = []
    for action in (lambda: run_op(provider, "ReduceSum", [np.ones((2, 3), np.float32), np.array([1])]),
                   lambda: OpenCLProvider.open(None, {})):
        try:
            action()
        except (EPFail, Unavailable) as e:
            said.append(type(e).__name__)
    print("child says", ", ".join(said), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert "child says EPFail, Unavailable" in _process(code)
