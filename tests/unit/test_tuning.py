"""Tuning without a device: which candidate wins, what is kept, and what files and options may say."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpurt
from gpurt.device.driver import DeviceInfo
from gpurt.device.tuning import (
    Choice,
    Choices,
    Key,
    Table,
    Tuning,
    package_tables,
    read_tables,
    tuning_for,
    write_tables,
)
from gpurt.device.tuning.tables import VERSION, facts
from gpurt.device.tuning.tuner import Tuner, difference
from gpurt.errors import InvalidArgument, NoSuchFile, OutOfMemory
from gpurt.provider import Refused, UnitPlan
from gpurt.symbolic import Guards, Size

INFO = DeviceInfo("A GPU", vendor="Vendor", driver="1.0")
KEY = Key("gemm.tile", "float32", (1, 64, 64, 64))
TILES = ("plain", "good", "best", "wrong", "refused")
MS = {"plain": 9.0, "default": 5.0, "good": 4.0, "best": 2.0, "wrong": 1.0}


class Device:
    """Units whose kernels take as long, and compute what, their parameters say; time passes only here."""

    def __init__(self, choices: Choices, keys: Sequence[Key] = (KEY,), ms: dict[str, float] | None = None) -> None:
        self.choices, self.keys, self.ms = choices, keys, {**MS, **(ms or {})}
        self.now = 0.0
        self.open: list[Running] = []
        self.plans = 0

    def plan(self) -> UnitPlan:
        self.plans += 1
        chosen = [self.choices.choose(key, TILES, "default") for key in self.keys]
        if "refused" in chosen:
            raise Refused("not with this tile")
        return UnitPlan([], kernels=chosen)

    def prepare(self, plan: UnitPlan) -> Running:
        self.now += 0.1  # a build
        self.open.append(Running(self, plan.kernels))
        return self.open[-1]

    def tuner(self, budget: float = 1000.0) -> Tuner:
        self.kept: list[Choice] = []

        def keep(choice: Choice) -> None:
            self.kept.append(choice)

        return Tuner(self.choices, budget, keep, clock=lambda: self.now)

    def tune(self, budget: float = 1000.0) -> Tuner:
        tuner = self.tuner(budget)
        tuner.tune(self.plan, self.prepare, "unit")
        return tuner


class Running:
    def __init__(self, device: Device, chosen: Sequence[str]) -> None:
        self.device, self.chosen = device, chosen
        self.closed = False

    def seconds(self) -> float:
        assert not self.closed
        took = sum(self.device.ms[c] for c in self.chosen) / 1e3
        self.device.now += took
        return took

    def outputs(self) -> list[np.ndarray]:
        return [np.full(4, 2.0 if "wrong" in self.chosen else 1.0, np.float32)]

    def close(self) -> None:
        self.closed = True


def test_the_fastest_right_candidate_wins() -> None:
    device = Device(Choices())
    tuner = device.tune()
    assert [(c.key, c.value) for c in tuner.made] == [(KEY, "best")]
    assert device.kept == tuner.made
    (choice,) = tuner.made
    assert (choice.seconds, choice.default_seconds) == (pytest.approx(2e-3), pytest.approx(5e-3))
    assert tuner.spent == pytest.approx(device.now)


def test_all_memory_is_given_back() -> None:
    device = Device(Choices())
    device.tune()
    assert device.open
    assert all(r.closed for r in device.open)


def test_a_wrong_result_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(Choices())
    with caplog.at_level(logging.WARNING, "gpurt"):
        device.tune()
    assert "candidate wrong is left out" in caplog.text


def test_the_default_stays_where_nothing_gains_much() -> None:
    device = Device(Choices(), ms={"best": 4.9, "good": 4.95})
    assert device.tune().made[0].value == "default"


def test_choices_of_a_unit_are_made_one_after_the_other() -> None:
    other = KEY._replace(family="gemm.right")
    device = Device(Choices(), [KEY, other])
    assert {c.key: c.value for c in device.tune().made} == {KEY: "best", other: "best"}


def test_what_is_known_is_not_measured_again() -> None:
    table = Table({})
    table.add(Choice(KEY, "good"))
    device = Device(Choices([table]))
    assert device.tune().made == []
    assert device.open == []


def test_a_spent_budget_leaves_defaults(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(Choices())
    with caplog.at_level(logging.INFO, "gpurt"):
        tuner = device.tune(budget=0.15)
    assert tuner.made == []
    assert tuner.ended
    assert "budget" in caplog.text
    assert all(r.closed for r in device.open)
    assert device.choices.choose(KEY, TILES, "default") == "default"


def test_no_room_leaves_defaults() -> None:
    device = Device(Choices())

    def prepare(plan: UnitPlan) -> Any:
        raise OutOfMemory("full")

    tuner = device.tuner()
    tuner.tune(device.plan, prepare, "unit")
    assert tuner.made == []


def test_a_unit_that_cannot_be_planned_says_so_itself() -> None:
    device = Device(Choices(), [])

    def plan() -> UnitPlan:
        raise Refused("too large")

    with pytest.raises(Refused, match="too large"):
        device.tuner().tune(plan, device.prepare, "unit")


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        (np.float32([1, 100]), np.float32([1.05, 100]), True),
        (np.float32([1, 100]), np.float32([1.2, 100]), False),
        (np.float32([1, np.inf]), np.float32([1, 2]), False),
        (np.float32([1, np.nan]), np.float32([1, np.nan]), True),
        (np.int32([1, 2]), np.int32([1, 3]), False),
        (np.float16([100]), np.float16([100.5]), True),
        (np.zeros((0,), np.float32), np.zeros((0,), np.float32), True),
    ],
)
def test_results_are_compared_by_their_type(expected: np.ndarray, actual: np.ndarray, same: bool) -> None:
    assert (difference([expected], [actual]) == "") == same


# --- look-up


def table(*choices: tuple[Key, Any], **match: Any) -> Table:
    made = Table(match)
    for key, value in choices:
        made.add(Choice(key, value))
    return made


def at(*sizes: int) -> Key:
    return KEY._replace(sizes=sizes)


def test_exact_sizes_come_before_near_ones_of_a_table_before() -> None:
    choices = Choices([table((at(1, 64, 64, 70), "near")), table((KEY, "exact"))])
    assert choices.choose(KEY, ("plain", "near", "exact"), "default") == "exact"
    assert (choices.hits, choices.near, choices.misses) == (1, 0, 0)


def test_the_nearest_sizes_serve() -> None:
    choices = Choices([table((at(1, 64, 64, 100), "far"), (at(1, 64, 64, 70), "near"))])
    assert choices.choose(KEY, ("plain", "near", "far"), "default") == "near"
    assert choices.near == 1


def test_sizes_too_far_off_do_not_serve() -> None:
    choices = Choices([table((at(1, 64, 64, 129), "far"))])
    assert choices.choose(KEY, ("plain", "far"), "default") == "default"
    assert choices.misses == 1


def test_a_choice_without_sizes_serves_all() -> None:
    choices = Choices([table((at(), "any"), (at(1, 64, 64, 70), "near"))])
    assert choices.choose(KEY, ("plain", "near", "any"), "default") == "near"
    assert choices.choose(at(9, 9, 9, 9), ("plain", "near", "any"), "default") == "any"


def test_what_is_no_candidate_any_more_is_not_taken() -> None:
    choices = Choices([table((KEY, "gone"))])
    assert choices.choose(KEY, ("plain", "good"), "default") == "default"


def test_another_kind_does_not_serve() -> None:
    choices = Choices([table((KEY._replace(kind="float16"), "good"))])
    assert choices.choose(KEY, ("plain", "good"), "default") == "default"


def test_symbolic_sizes_get_the_default_and_leave_no_guard() -> None:
    guards = Guards(1)
    key = KEY._replace(sizes=(1, Size.symbol(guards, 0, 64), 64, 64))  # type: ignore[arg-type]
    assert Choices([table((KEY, "good"))]).choose(key, ("plain", "good"), "default") == "default"
    assert not guards.conditions


# --- files


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    written = table((KEY, (6, 4)), (at(), "any"), vendor="intel", compute_units=2)
    written.add(Choice(KEY._replace(kind="x"), 8, 1e-3, 2e-3))
    write_tables(tmp_path / "a.json", [written])
    (read,) = read_tables(tmp_path / "a.json")
    assert read == written


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 1, "tables": [{"match": {}, "choices": [{}]}]}',
        '{"version": 1, "tables": [{"match": {"nobody": 1}, "choices": []}]}',
        '{"version": 1, "tables": [{"match": {}, "choices": [{"family": "f", "kind": "", "sizes": 3, "value": 1}]}]}',
        '{"version": 1, "tables": [{"match": {}, "choices": [{"family": "f", "kind": "", "sizes": [], "value": {}}]}]}',
        "[" * 100000,
        "\xff\xfe",
    ],
)
def test_damaged_files_are_ignored_with_a_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Tuning(INFO, "cached", tmp_path).path
    assert path is not None
    path.write_bytes(content.encode("latin-1"))
    with caplog.at_level(logging.WARNING, "gpurt"):
        tuning = Tuning(INFO, "cached", tmp_path)
    assert "is ignored" in caplog.text
    assert tuning.choices.choose(KEY, ("plain", "good"), "default") == "default"
    with pytest.raises(InvalidArgument):
        read_tables(path)


def test_other_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"version": VERSION + 1, "tables": []}))
    with pytest.raises(InvalidArgument, match="version"):
        read_tables(tmp_path / "a.json")


def test_choices_are_kept_for_the_next_session_and_merged(tmp_path: Path) -> None:
    one, two = Tuning(INFO, "online", tmp_path), Tuning(INFO, "online", tmp_path)
    for tuning, key, value in ((one, KEY, "good"), (two, at(2, 2, 2, 2), "best")):
        assert tuning.tuner is not None
        tuning.tuner.keep(Choice(key, value))
    later = Tuning(INFO, "cached", tmp_path)
    assert later.choices.exact(KEY) == "good"
    assert later.choices.exact(at(2, 2, 2, 2)) == "best"
    assert later.tuner is None


def test_another_driver_has_another_file(tmp_path: Path) -> None:
    assert Tuning(INFO, "cached", tmp_path).path != Tuning(replace(INFO, driver="2.0"), "cached", tmp_path).path


def test_off_reads_nothing(tmp_path: Path) -> None:
    tuning = Tuning(INFO, "online", tmp_path)
    assert tuning.tuner is not None
    tuning.tuner.keep(Choice(KEY, "good"))
    assert Tuning(INFO, "off", tmp_path).choices.tables == []


def test_no_folder_keeps_in_the_session_alone() -> None:
    tuning = Tuning(INFO, "online", None)
    assert tuning.tuner is not None
    tuning.tuner.keep(Choice(KEY, "good"))
    assert tuning.choices.exact(KEY) == "good"
    assert tuning.path is None


def test_an_application_ships_a_file(tmp_path: Path) -> None:
    write_tables(tmp_path / "app.json", [table((KEY, "good"), name="a gpu"), table((KEY, "other"), name="another")])
    tuning = tuning_for(INFO, {"tuning_file": tmp_path / "app.json", "cache_dir": False})
    assert tuning.choices.exact(KEY) == "good"


def test_tables_match_by_facts() -> None:
    assert Table(facts(INFO)).fits(INFO)
    assert Table({"vendor": "VEND", "compute_units": 1}).fits(INFO)
    assert not Table({"compute_units": 2}).fits(INFO)
    assert not Table({"driver": "2.0"}).fits(INFO)


def test_the_package_ships_tables_that_name_their_source() -> None:
    shipped = package_tables()
    assert shipped
    assert all(t.source and t.choices for t in shipped)


# --- options


@pytest.mark.parametrize(
    "options",
    [{"tuning": "onlin"}, {"tuning": True}, {"tuning_budget": -1}, {"tuning_budget": "1"}, {"tuning_file": 3}],
)
def test_wrong_session_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="tuning"):
        gpurt.SessionOptions(**options)


@pytest.mark.parametrize("options", [{"tuning": "onlin"}, {"tuning_budget": float("nan")}, {"tuning_budget": True}])
def test_wrong_provider_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="tuning"):
        tuning_for(INFO, options)


def test_a_tuning_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFile, match="gpurt tune"):
        tuning_for(INFO, {"tuning_file": tmp_path / "none.json"})
