"""Severities for each session and each run: nothing of one leaks into another, and normal use is quiet."""

import logging
import threading

import numpy as np
import pytest
from conftest import make_model
from onnx import TensorProto, helper

import gpurt
from gpurt import logs

X = np.ones((2, 3), np.float32)


@pytest.fixture(autouse=True)
def level():
    before = logging.getLogger("gpurt").level
    yield
    logging.getLogger("gpurt").setLevel(before)


def session(**options):
    model = make_model([helper.make_node("Relu", ["x"], ["y"], "r")], {"x": (TensorProto.FLOAT, ["n", 3])}, ["y"])
    return gpurt.InferenceSession(model, gpurt.SessionOptions(**options), providers=["cpu"])


def test_normal_use_is_quiet(caplog, capfd):
    session().run(None, {"x": X})
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_verbose_session_tells_phases_placement_and_plans(caplog):
    session(log_severity_level=0, logid="100%").run(None, {"x": X})
    told = [r.getMessage() for r in caplog.records]
    assert any(m.startswith("[100%] session created: load ") and "compile" in m for m in told)
    assert "[100%] 1 nodes: 1 on cpu; 0 removed, 0 copies, 0 casts" in told
    assert any("planned test from item 0 to 1" in m for m in told)
    assert {r.name.split(".")[0] for r in caplog.records} == {"gpurt"}


def test_a_session_keeps_its_severity_to_itself(caplog):
    loud, quiet = session(log_severity_level=0), session(log_severity_level=4)
    plain = session()
    caplog.clear()
    quiet.run(None, {"x": X})
    plain.run(None, {"x": X})
    assert not caplog.records
    loud.run(None, {"x": X})
    assert caplog.records


def test_threads_keep_their_severities(caplog):
    loud, plain = session(log_severity_level=0, logid="loud"), session(logid="plain")
    caplog.clear()

    def work(s):
        for n in range(1, 20):
            s.run(None, {"x": np.ones((n, 3), np.float32)})

    threads = [threading.Thread(target=work, args=(s,)) for s in (loud, plain)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(caplog.records) == 19
    assert all(r.getMessage().startswith("[loud] planned") for r in caplog.records)


def test_a_run_has_a_severity_of_its_own(caplog):
    s = session(logid="s")
    s.run(None, {"x": X}, gpurt.RunOptions(log_severity_level=0, logid="first"))
    assert [r.getMessage()[:18] for r in caplog.records] == ["[s/first] planned "]
    caplog.clear()
    s.run(None, {"x": X[:1]})
    assert not caplog.records


def test_the_time_of_each_run_is_a_detail(caplog):
    s = session(log_severity_level=0, log_verbosity_level=1)
    s.run(None, {"x": X})
    caplog.clear()
    s.run(None, {"x": X})
    assert [r.getMessage()[:7] for r in caplog.records] == ["run of "]


def test_the_default_severity(caplog):
    gpurt.set_default_logger_severity(1)
    session()
    assert len(caplog.records) == 2
    caplog.clear()
    gpurt.set_default_logger_severity(3)
    session()
    assert not caplog.records
    for wrong in (5, -1, "info", True):
        with pytest.raises(gpurt.InvalidArgument, match="severity"):
            gpurt.set_default_logger_severity(wrong)


def test_verbosity_counts_under_severity_0(caplog):
    logger = logs.get("gpurt.test")
    for scope, shown in (
        (logs.Scope(0, 2), [0, 1, 2]),
        (logs.Scope(0), [0]),
        (logs.Scope(1, 9), []),
        (logs.Scope(), []),
    ):
        caplog.clear()
        with logs.scope(scope):
            for detail in range(4):
                logger.verbose(detail, "%d", detail)
        assert [int(r.getMessage()) for r in caplog.records] == shown


def test_a_severity_that_was_asked_for_is_shown_without_handlers(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    session(log_severity_level=1, logid="me")
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 2
    assert "[I:gpurt.session.session] [me] session created" in shown[0]
