"""The garbage collector while sessions are made."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from onnx import helper

import gpurt
from gpurt.errors import GpurtError
from gpurt.session import opening
from gpurt.session.collecting import uncollected


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_it_is_off_until_the_last_one_ends() -> None:
    first, second = uncollected(), uncollected()
    with first:
        assert not gc.isenabled()
        with second:
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_sessions_that_overlap() -> None:
    first, second = uncollected(), uncollected()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_whoever_switched_it_off_keeps_it_off() -> None:
    gc.disable()
    with uncollected():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_sessions_use_it_and_errors_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    opened = opening.open_providers

    def look(*args: object, **options: object) -> object:
        seen.append(gc.isenabled())
        return opened(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("gpurt.session.session.open_providers", look)
    info = [helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", info[:1], info[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    gpurt.InferenceSession(model, providers=["cpu"])
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(GpurtError):
        gpurt.InferenceSession(b"none", providers=["cpu"])
    assert gc.isenabled()
