"""The ONNX backend test cases: model, inputs and expected outputs, as onnx brings them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Case:
    """One backend test: every data set is (feeds, expected outputs)."""

    name: str
    kind: str
    model: onnx.ModelProto
    data: tuple[tuple[dict[str, Any], list[Any]], ...]
    rtol: float
    atol: float


@cache
def cases() -> dict[str, Case]:
    """All cases by name: node, simple, pytorch-converted, pytorch-operator and the light real models."""
    found: dict[str, Case] = {}
    for case in [*_generated(), *_stored(), *_light()]:
        found.setdefault(case.name, case)
    return found


def _generated() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite computes with infinities and NaN on purpose
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    for test in collected:
        yield _case("node", test, test.model, test.data_sets)


def _stored() -> Iterator[Case]:
    from onnx.backend.test import loader

    for kind in ("simple", "pytorch-converted", "pytorch-operator"):
        for test in loader.load_model_tests(kind=kind):
            if test.model is not None:
                yield _case(kind, test, test.model, test.data_sets)
                continue
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            sets = []
            for data in sorted(folder.glob("test_data_set_*")):
                ins = [_read(p) for p in _numbered(data, "input", model.graph.input)]
                outs = [_read(p) for p in _numbered(data, "output", model.graph.output)]
                sets.append((ins, outs))
            yield _case(kind, test, model, sets)


def _light() -> Iterator[Case]:
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    for path in sorted(folder.glob("*.onnx")):
        model = onnx.load(path)
        weights = {w.name for w in model.graph.initializer}
        (info,) = (i for i in model.graph.input if i.name not in weights)
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        count = int(np.prod(shape))
        feed = (np.arange(count).reshape(shape) / count).astype(np.float32)
        expected = onnx.TensorProto.FromString((folder / f"{path.stem}_output_0.pb").read_bytes())
        yield Case(path.stem, "light", model, (({info.name: feed}, [numpy_helper.to_array(expected)]),), 1e-3, 1e-5)


def _case(kind: str, test: Any, model: onnx.ModelProto, sets: Any) -> Case:
    weights = {w.name for w in model.graph.initializer}
    names = [i.name for i in model.graph.input]
    data = []
    for ins, outs in sets:
        if isinstance(ins, dict):
            feeds = {k: _plain(v) for k, v in ins.items()}
        else:
            fed = names if len(ins) == len(names) else [n for n in names if n not in weights]
            feeds = {n: _plain(v) for n, v in zip(fed, ins, strict=False) if n}
        wanted = [outs[o.name] for o in model.graph.output] if isinstance(outs, dict) else outs
        data.append((feeds, [_plain(v) for v in wanted]))
    return Case(test.name, kind, model, tuple(data), test.rtol, test.atol)


def _numbered(folder: Path, what: str, infos: Any) -> list[tuple[Path, Any]]:
    paths = [(folder / f"{what}_{i}.pb", info) for i, info in enumerate(infos)]
    return [(p, info) for p, info in paths if p.exists()]


def _read(item: tuple[Path, Any]) -> Any:
    path, info = item
    kinds = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    return kinds.get(info.type.WhichOneof("value"), onnx.TensorProto).FromString(path.read_bytes())


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return np.asarray(value) if isinstance(value, np.generic) else value


def differs(expected: Any, got: Any, rtol: float, atol: float) -> str | None:
    """How a value differs from what was expected (dtype and shape too), or None."""
    if expected is None:
        return None if got is None else "not None"
    if isinstance(expected, (list, tuple)):
        if got is None or len(expected) != len(got):
            return f"{len(expected)} elements expected"
        return next((d for e, g in zip(expected, got, strict=True) if (d := differs(e, g, rtol, atol))), None)
    if isinstance(expected, dict):
        if set(expected) != set(got):
            return "other keys"
        return next((d for k in expected if (d := differs(expected[k], got[k], rtol, atol))), None)
    expected, got = np.asarray(expected), np.asarray(got)
    if expected.shape != got.shape:
        return f"shape {got.shape} instead of {expected.shape}"
    if expected.dtype.kind in "OUST":
        same = [_text(v) for v in expected.ravel()] == [_text(v) for v in got.ravel()]
        return None if same else "other strings"
    if expected.dtype != got.dtype:
        return f"dtype {got.dtype} instead of {expected.dtype}"
    wide = [a if a.dtype.kind in "iubc" else a.astype(np.float64) for a in (expected, got)]
    return None if np.allclose(*wide, rtol=rtol, atol=atol, equal_nan=True) else "other values"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
