"""Backend cases that gpurt does not pass, each with its reason; a case that passes must leave the list."""

from __future__ import annotations

import re

RANDOM = "holds one draw of NumPy's generator; any other generator matches it by chance only"

# (provider lists or "*", regular expression on the whole case name, reason)
EXCLUDED: list[tuple[str, str, str]] = [
    ("*", r"test_bernoulli(_double|_seed)?(_expanded)?", RANDOM),
]


def reason(providers: str, case: str) -> str | None:
    """Why a case is expected to fail on a provider list, or None."""
    return next(
        (why for who, what, why in EXCLUDED if providers in who.split() or who == "*" if re.fullmatch(what, case)), None
    )
