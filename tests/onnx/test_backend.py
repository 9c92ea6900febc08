"""Every ONNX backend case on the host, on OpenCL before the host, and a sample in the kernel class of GPUs.

GPURT_BACKEND_SAMPLE=1 runs all cases in the GPU class too (ci/conformance.py does). GPURT_BACKEND_PLATFORM=Intel runs
the two OpenCL lists on the platform with that in its name instead of the default one, and leaves the host's out.
GPURT_BACKEND_LEVELS=basic,layout runs all cases of the lists at these optimization levels; without it all lists run at
level all, and a sample of the host's at the others.
"""

from __future__ import annotations

import os

import pytest
from cases import cases, differs
from exclusions import EXCLUDED, reason

import gpurt
from gpurt import registry

ALL_LEVELS = ("disable_all", "basic", "extended", "layout", "all")
LEVELS = [level for level in os.environ.get("GPURT_BACKEND_LEVELS", "").split(",") if level]
OPTIONS = {  # greedy, so that no rate of this machine decides
    level: gpurt.SessionOptions(partitioning="greedy", graph_optimization_level=level) for level in ALL_LEVELS
}

PLATFORM = os.environ.get("GPURT_BACKEND_PLATFORM")
_DEVICE = {"platform": PLATFORM} if PLATFORM else {}
LISTS = {
    "cpu": ["cpu"],
    "opencl": [("opencl", _DEVICE), "cpu"],
    "opencl-gpu-class": [("opencl", {**_DEVICE, "kernel_class": "gpu"}), "cpu"],
}
SAMPLE = int(os.environ.get("GPURT_BACKEND_SAMPLE", "4"))
LEVEL_SAMPLE = 25
NATIVE_FLOOR = 1650  # node cases wholly on opencl in its default class
_native: set[str] = set()
_ran: set[str] = set()


def _parameters():
    for label in LISTS if PLATFORM is None else ("opencl", "opencl-gpu-class"):
        for level in LEVELS or (ALL_LEVELS if label == "cpu" else ("all",)):
            each = SAMPLE if label == "opencl-gpu-class" else 1 if LEVELS or level == "all" else LEVEL_SAMPLE
            for name in sorted(cases())[::each]:
                at = "" if level == "all" else f"{level}-"
                yield pytest.param(label, level, name, id=f"{label}-{at}{name}")


@pytest.mark.parametrize(("label", "level", "name"), list(_parameters()))
def test_backend(label, level, name):
    if label != "cpu" and not registry.status("opencl").usable:
        pytest.skip(f"no OpenCL device: {registry.status('opencl').reason}")
    case, expected_failure = cases()[name], reason(label, name)
    try:
        session = gpurt.InferenceSession(case.model.SerializeToString(), OPTIONS[level], providers=LISTS[label])
        if PLATFORM and "opencl" not in " ".join(session.get_providers()).lower():
            pytest.skip(f"no OpenCL platform has {PLATFORM!r} in its name")
        for feeds, expected in case.data:
            got = session.run(None, feeds)
            assert len(got) == len(expected)
            for e, g in zip(expected, got, strict=True):
                assert (difference := differs(e, g, case.rtol, case.atol)) is None, difference
        if label == "opencl" and level == "all" and case.kind == "node":
            _ran.add(name)
            if {n["provider"] for n in session.explain().to_dict()["nodes"]} == {"opencl"}:
                _native.add(name)
    except (gpurt.GpurtError, AssertionError) as e:
        if expected_failure:
            pytest.xfail(f"{expected_failure}: {type(e).__name__}")
        raise
    if expected_failure and "generator" not in expected_failure:
        pytest.fail(f"passes, so its exclusion is stale: {expected_failure}")


def test_enough_cases_run_wholly_on_opencl():
    if len(_ran) < 1500:
        pytest.skip(f"only {len(_ran)} node cases were run on opencl in this process")
    assert len(_native) >= NATIVE_FLOOR, len(_native)


def test_the_suite_has_not_shrunk_and_exclusions_match_something():
    import re

    assert len(cases()) >= 2000
    for _, pattern, _ in EXCLUDED:
        assert any(re.fullmatch(pattern, name) for name in cases()), pattern
