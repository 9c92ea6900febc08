"""Tuning on the embedded OpenCL device: every candidate is right, and what is measured serves later sessions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import gpurt
from gpurt import cli
from gpurt.device.ops import gemm, group_tiles, lanes
from gpurt.device.tuning import Choices, Key, read_tables
from gpurt.errors import InvalidArgument, NoSuchFile
from gpurt.provider import Unavailable

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def _device() -> None:
    try:
        from gpurt_opencl import OpenCLProvider

        OpenCLProvider.probe()
    except (ImportError, Unavailable) as e:
        pytest.skip(f"no OpenCL device: {e}")


class Says(Choices):
    """Answers by family; where it says nothing, and where that is no candidate, the default."""

    def __init__(self, **answers: Any) -> None:
        super().__init__()
        self.answers = {name.replace("_", "."): v for name, v in answers.items()}
        self.asked: dict[str, Sequence[Any]] = {}

    def choose(self, key: Key, candidates: Sequence[Any], default: Any) -> Any:
        self.asked[key.family] = candidates
        value = self.answers.get(key.family)
        return value if value in candidates else default


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(nodes: Sequence[Any], x: Sequence[int], weights: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, n) for n, w in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(made.SerializeToString())


def product() -> tuple[bytes, np.ndarray, np.ndarray]:
    x, w = floats(70, 45), floats(45, 133)
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], x.shape, {"w": w}), x, x @ w


def convolution() -> tuple[bytes, np.ndarray]:
    node = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
    made = [node, helper.make_node("Relu", ["c"], ["y"])]
    return model(made, (1, 32, 12, 12), {"w": floats(33, 32, 3, 3)}), floats(1, 32, 12, 12)


def session(content: bytes, kernel_class: str, **options: Any) -> gpurt.InferenceSession:
    given = gpurt.SessionOptions(partitioning="greedy", graph_optimization_level="extended", **options)
    return gpurt.InferenceSession(content, given, providers=[("opencl", {"kernel_class": kernel_class}), "cpu"])


def run(content: bytes, x: np.ndarray, kernel_class: str, choices: Choices) -> np.ndarray:
    made = session(content, kernel_class)
    made.tunings()["opencl:0"].choices = choices
    (y,) = made.run(None, {"x": x})
    return y


@pytest.mark.parametrize("tile", group_tiles.TILES, ids=str)
def test_every_group_tile_computes_the_product(tile: tuple[int, ...]) -> None:
    content, x, expected = product()
    says = Says(gemm_group=tile)
    np.testing.assert_allclose(run(content, x, "gpu", says), expected, rtol=1e-4, atol=1e-4)
    assert tile in says.asked["gemm.group"]


@pytest.mark.parametrize("tile", group_tiles.TILES, ids=str)
def test_every_group_tile_computes_the_convolution(tile: tuple[int, ...]) -> None:
    content, x = convolution()
    plain = run(content, x, "gpu", Says())
    np.testing.assert_allclose(run(content, x, "gpu", Says(gemm_group=tile)), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", group_tiles.TILES, ids=str)
def test_group_tiles_fit_groups_and_columns(tile: tuple[int, ...]) -> None:
    items = group_tiles.items_of(tile)  # type: ignore[arg-type]
    assert items <= 256
    assert items % tile[1] == 0
    assert (tile[0] % tile[3], tile[1] % tile[4]) == (0, 0)


@pytest.mark.parametrize("tile", sorted({tuple(t) for tiles in gemm.TILES.values() for t in tiles}))
@pytest.mark.parametrize("right", ["packed", "in place"])
def test_every_register_tile_computes_the_product(
    tile: tuple[int, int], right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tuple(dict.fromkeys(t for tiles in gemm.TILES.values() for t in tiles))
    monkeypatch.setattr(gemm, "TILES", {True: both, False: both})
    content, x, expected = product()
    says = Says(gemm_tile=tile, gemm_right=right, gemm_parts=4)
    np.testing.assert_allclose(run(content, x, "cpu", says), expected, rtol=1e-4, atol=1e-4)
    assert set(says.asked) >= {"gemm.tile", "gemm.parts"}


@pytest.mark.parametrize("how", ["direct", "winograd"])
def test_convolutions_are_the_same_by_both_ways(how: str) -> None:
    content, x = convolution()
    says = Says(conv_3x3=how)
    y = run(content, x, "cpu", says)
    np.testing.assert_allclose(y, run(content, x, "gpu", Says()), rtol=1e-3, atol=1e-3)
    assert says.asked["conv.3x3"] == ("direct", "winograd")


def rows() -> tuple[bytes, np.ndarray]:
    """A chain of kernels that have a size for work-items or groups, and one that may be cut into parts."""
    node = helper.make_node
    nodes = [
        node("Mul", ["x", "x"], ["a"]),
        node("Softmax", ["a"], ["b"]),
        node("LayerNormalization", ["b", "s"], ["c"]),
        node("ReduceMean", ["c", "axes"], ["d"]),
        node("ReduceSum", ["x", "both"], ["e"]),
        node("Div", ["d", "e"], ["y"]),
    ]
    weights = {"s": floats(700), "axes": np.array([1]), "both": np.array([0, 1])}
    return model(nodes, (130, 700), weights), floats(130, 700) + 2


@pytest.mark.parametrize("kernel_class", ["cpu", "gpu"])
@pytest.mark.parametrize("number", range(5))
def test_reductions_are_the_same_by_every_size(kernel_class: str, number: int) -> None:
    content, x = rows()
    plain = run(content, x, kernel_class, Choices())
    families = ("reduce", "softmax", "norm")
    parameter, values = ("work", lanes.WORKS) if kernel_class == "cpu" else ("group", lanes.GROUPS)
    says = Says(
        **{f"{family}_{parameter}": values[number] for family in families}, reduce_parts=(1, 2, 4, 8, 16)[number]
    )
    np.testing.assert_allclose(run(content, x, kernel_class, says), plain, rtol=1e-4, atol=1e-6)
    assert {f"{family}.{parameter}" for family in families} | {"reduce.parts"} <= set(says.asked)
    assert values[number] in says.asked[f"reduce.{parameter}"] or parameter == "work"


@pytest.mark.parametrize("kernel_class", ["cpu", "gpu"])
def test_what_is_measured_serves_later_sessions(
    kernel_class: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which candidate wins is the device's affair; that one is chosen, kept, found again and right is ours."""
    monkeypatch.setattr(gemm, "TILES", {True: gemm.TILES[True][:2], False: gemm.TILES[False][:2]})
    monkeypatch.setattr(group_tiles, "TILES", group_tiles.TILES[:2])
    content, x, expected = product()
    first = session(content, kernel_class, tuning="online", cache_dir=tmp_path, tuning_budget=1e6)
    np.testing.assert_allclose(first.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
    tuning = first.tunings()["opencl:0"]
    made = tuning.tuner.made
    assert made
    assert all(c.seconds > 0 and c.default_seconds >= c.seconds for c in made)
    assert tuning.path.parent == tmp_path
    assert tuning.path.is_file()

    later = session(content, kernel_class, cache_dir=tmp_path)
    np.testing.assert_allclose(later.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
    choices = later.tunings()["opencl:0"].choices
    assert choices.hits >= len({c.key.family for c in made if c.value in _candidates(kernel_class, c.key.family)})

    again = session(content, kernel_class, tuning="online", cache_dir=tmp_path, tuning_budget=1e6)
    again.run(None, {"x": x})
    assert [c.key for c in again.tunings()["opencl:0"].tuner.made if c.key in {m.key for m in made}] == []


def _candidates(kernel_class: str, family: str) -> Sequence[Any]:
    """What a choice that was made must be among for later sessions to count it as found."""
    if family == "gemm.group":
        return group_tiles.TILES
    return {"gemm.right": ("in place", "packed"), "gemm.parts": (1, 2, 4, 8, 16)}.get(family, ())


def test_memory_for_measuring_is_given_back(tmp_path: Path) -> None:
    content, x, _ = product()
    made = session(content, "gpu", tuning="online", cache_dir=tmp_path, tuning_budget=1e6)
    made.run(None, {"x": x})
    plain = session(content, "gpu", tuning="off", cache_dir=tmp_path)
    plain.run(None, {"x": x})
    in_use = [s._providers[0].arena.stats()["in_use"] for s in (made, plain)]
    assert in_use[0] == in_use[1]


def test_a_wrong_file_is_an_error_and_another_session_works(tmp_path: Path) -> None:
    content, x, expected = product()
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"bad\.json"):
        session(content, "cpu", tuning_file=tmp_path / "bad.json")
    with pytest.raises(NoSuchFile, match=r"none\.json"):
        session(content, "cpu", tuning_file=tmp_path / "none.json")
    np.testing.assert_allclose(session(content, "cpu").run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_a_budget_of_nothing_measures_nothing(tmp_path: Path) -> None:
    content, x, expected = product()
    made = session(content, "gpu", tuning="online", cache_dir=tmp_path, tuning_budget=0)
    np.testing.assert_allclose(made.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
    tuner = made.tunings()["opencl:0"].tuner
    assert tuner.made == []
    assert tuner.ended


def test_the_command_line_tunes_and_writes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPURT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(gemm, "TILES", {True: gemm.TILES[True][:2], False: gemm.TILES[False][:2]})
    content, x, expected = product()
    (tmp_path / "m.onnx").write_bytes(content)
    args = ["tune", str(tmp_path / "m.onnx"), "--providers", "opencl", "--output", str(tmp_path / "t.json")]
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 0, result.output
    assert "choices measured" in result.output
    (written,) = read_tables(tmp_path / "t.json")
    monkeypatch.setenv("GPURT_CACHE_DIR", "")
    shipped = session(content, "cpu", tuning_file=tmp_path / "t.json")
    tables = shipped.tunings()["opencl:0"].choices.tables
    assert any(t.choices == written.choices for t in tables)
    np.testing.assert_allclose(shipped.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def test_the_command_line_says_what_cannot_be_tuned(tmp_path: Path) -> None:
    content, _, _ = product()
    (tmp_path / "m.onnx").write_bytes(content)
    result = CliRunner().invoke(cli.main, ["tune", str(tmp_path / "m.onnx"), "--providers", "cpu"])
    assert result.exit_code == 1
    assert "can be tuned" in result.output
