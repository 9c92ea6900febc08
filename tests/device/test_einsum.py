"""Einsum against NumPy."""

from __future__ import annotations

import cases
import numpy as np
import pytest

from gpurt.device.provider import DeviceProvider
from gpurt.testing.kernels import node_for, run_op

EQUATIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("bij,bjk", (2, 3, 4), (2, 4, 5)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bhqk,bhkd->bqhd", (2, 3, 4, 5), (2, 3, 5, 6)),
    ("ij->ji", (3, 4)),
    ("ij->ij", (3, 4)),
    ("ij->", (3, 4)),
    ("ij->j", (3, 4)),
    ("i,j->ij", (3,), (4,)),
    ("i,i->", (5,), (5,)),
    ("i,i->i", (5,), (5,)),
    ("...ij,...jk->...ik", (2, 3, 4), (1, 4, 5)),
    ("...ij,jk->...ik", (7, 2, 3, 4), (4, 5)),
    ("ij,jk,kl->il", (3, 4), (4, 5), (5, 6)),
    ("abc,cd,def->afe", (2, 3, 4), (4, 5), (5, 6, 7)),
    ("acb,bda->cd", (2, 3, 4), (4, 5, 2)),
    ("bij,bik->jk", (2, 3, 4), (2, 3, 5)),
    ("nchw,ncv->nhwv", (2, 3, 4, 5), (2, 3, 6)),
    ("ab,ab,ab->a", (2, 3), (2, 3), (2, 3)),
    ("j,ij->i", (4,), (3, 4)),
    ("abij,aj->abi", (2, 3, 4, 5), (2, 5)),
    ("bi,bj->bij", (1, 3), (2, 4)),
    ("a...b->b...a", (2, 3, 4, 5)),
    ("ab,cd->dbca", (2, 3), (4, 5)),
    ("abc,abd->dca", (2, 3, 4), (2, 3, 5)),
    ("ij,jk->ki", (3, 1), (4, 5)),
    (",ij->ij", (), (2, 3)),
]


@pytest.mark.parametrize(("equation", "shapes"), [(e, s) for e, *s in EQUATIONS], ids=str)
def test_einsum(provider: DeviceProvider, equation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=s).astype(np.float32) for s in shapes]
    expected = np.einsum(equation, *inputs)
    for kind, tolerance in (("f", 1e-5), ("e", 5e-2)):
        (result,) = run_op(provider, "Einsum", [x.astype(kind) for x in inputs], {"equation": equation})
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


def test_repeated_index_is_refused(provider: DeviceProvider) -> None:
    node = node_for("Einsum", [np.zeros((3, 3), np.float32)], {"equation": "ii->i"})
    assert "repeats an index" in (provider.table.refusal(node, provider.info) or "")


def supported(case: cases.Case) -> bool:
    return case.inputs[0].dtype.kind == "f" and "ii" not in case.attrs["equation"]


@pytest.mark.parametrize("case", [c for c in cases.node_cases({"Einsum"}) if supported(c)], ids=lambda c: c.name)
def test_node(provider: DeviceProvider, case: cases.Case) -> None:
    (result,) = run_op(provider, case.op, case.inputs, case.attrs)
    np.testing.assert_allclose(result, case.expected[0], rtol=case.rtol, atol=max(case.atol, 1e-6))
