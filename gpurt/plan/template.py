"""Plan templates: one plan for all sizes of a window, where only sizes tell two signatures apart.

A template is made by walking the graph with symbolic sizes (see gpurt.symbolic) in place of the dimensions that differ
between two signatures. It serves a signature if that fits its pattern, every guard of the walk holds, and every value
fits the memory laid out for it: slots are sized for symbols up to the next power of two. Then only what varies is set
again: scalars and grids of launches, shapes of what the host sees. No kernel is built, no memory is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpurt.plan.budget import Share
from gpurt.plan.plan import Plan, merge_in_place
from gpurt.plan.sizes import Sizing, sized
from gpurt.plan.steps import CopyStep, DeviceStep, Draft, ReadStep, Slot, StoreStep, ViewStep, WriteStep
from gpurt.provider import DeviceMemory
from gpurt.spec import SizedSpec, Spec
from gpurt.symbolic import Expressions, Guards, Size

Signature = Sequence[Any]
"""For each value that a plan begins with: (shape, dtype number, content or place), or None; then bound outputs."""

Pair = tuple[int, int]


def varying(old: Signature, new: Signature) -> dict[Pair, int] | None:
    """The dimensions (before, now) in which two signatures differ, numbered; None if they differ in more than sizes."""
    pairs: dict[Pair, int] = {}
    if len(old) != len(new):
        return None
    for a, b in zip(old, new, strict=True):
        if a == b:
            continue
        if a is None or b is None or not isinstance(a[0], tuple) or a[1:] != b[1:] or len(a[0]) != len(b[0]):
            return None
        for pair in zip(a[0], b[0], strict=True):
            if pair[0] != pair[1]:
                pairs.setdefault(pair, len(pairs))
    return pairs


class Template:
    """A plan and the conditions under which it serves other sizes."""

    def __init__(
        self, old: Signature, new: Signature, pairs: Mapping[Pair, int], plan: Plan, holds: Callable[..., bool]
    ) -> None:
        self.plan = plan
        self._holds = holds
        self._length = len(new)
        self._first: list[tuple[int, int]] = [(-1, -1)] * len(pairs)  # where each symbol is read
        self._again: list[tuple[int, int, int]] = []  # where else it must be the same
        self._fixed: list[tuple[int, Any]] = []
        self._partly: list[tuple[int, Any, int, list[tuple[int, int]]]] = []
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            if a == b:
                self._fixed.append((i, b))
                continue
            dims = list(enumerate(zip(a[0], b[0], strict=True)))
            self._partly.append((i, b[1:], len(dims), [(d, y) for d, (x, y) in dims if x == y]))
            for d, pair in dims:
                if pair[0] == pair[1]:
                    continue
                symbol = pairs[pair]
                if self._first[symbol][0] < 0:
                    self._first[symbol] = (i, d)
                else:
                    self._again.append((i, d, symbol))

    def match(self, signature: Signature) -> tuple[int, ...] | None:
        """The symbols' values where the template serves a signature."""
        if len(signature) != self._length:
            return None
        for i, entry in self._fixed:
            if signature[i] != entry:
                return None
        for i, rest, rank, dims in self._partly:
            entry = signature[i]
            if entry is None or entry[1:] != rest or len(entry[0]) != rank:
                return None
            if any(entry[0][d] != n for d, n in dims):
                return None
        symbols = tuple([signature[i][0][d] for i, d in self._first])
        if any(signature[i][0][d] != symbols[s] for i, d, s in self._again):
            return None
        return symbols if self._holds(*symbols) else None


def make_template(
    old: Signature,
    new: Signature,
    specs: Mapping[str, Spec | None],
    walk: Callable[[Mapping[str, Spec | None]], Draft],
    memories: Sequence[DeviceMemory | None],
    share: Share,
    narrow: bool = False,
) -> Template | None:
    """The template for what two signatures have in common; None where a plan would serve one of them only.

    Args:
        old: a signature that there is a plan for.
        new: the signature at hand.
        specs: by name, in the order of the signature.
        walk: makes a draft from specs; it may raise whatever code that does not expect sizes makes of them.
        memories, share: see Plan.
        narrow: whether a template for one size is welcome: beside others, it shares their kernels.
    """
    pairs = varying(old, new)
    if not pairs:
        return None
    guards = Guards(len(pairs))
    symbols = [Size.symbol(guards, i, now) for i, (_, now) in enumerate(pairs)]
    entries: dict[str, Spec | None] = {}
    # Behind the values, a signature may have what else there is to a plan: where outputs are wanted.
    for (name, spec), a, b in zip(specs.items(), old, new, strict=False):
        if a == b or spec is None:
            entries[name] = spec
            continue
        if spec.const is not None:
            return None
        dims = zip(a[0], b[0], strict=True)
        entries[name] = Spec(spec.dtype, tuple(y if x == y else symbols[pairs[x, y]] for x, y in dims))  # type: ignore[misc]
    draft = walk(entries)
    merge_in_place(draft)
    largest = [1 << max(s.value, 1).bit_length() for s in symbols]
    limits = _lay_out(draft, guards, largest)
    sizing = Sizing(_collect(draft, guards))
    guards.close()
    holds = sizing.expressions.compile(limits)
    values = [s.value for s in symbols]
    steps = [[v + step for v in values] for step in (1, -1)]
    if not narrow and not any(holds(*v) for v in steps):
        return None
    plan = Plan(draft, memories, share, sizing)
    return Template(old, new, pairs, plan, holds) if plan.fits() else None


def _lay_out(draft: Draft, guards: Guards, largest: Sequence[int]) -> list[tuple[Size, int]]:
    """Give slots the bytes that they need at the window's end; returns the limits that follow for their sizes."""
    slots: dict[int, Slot] = {id(s): s for s in draft.slots}
    for step in draft.steps:
        if isinstance(step, DeviceStep):
            slots.update((id(s), s) for s in step.slots)
        elif isinstance(step, (ReadStep, ViewStep, WriteStep, StoreStep)):
            slots[id(step.slot)] = step.slot
        elif isinstance(step, CopyStep):
            slots[id(step.source)], slots[id(step.slot)] = step.source, step.slot
    for _, place in draft.outputs:
        slots.update((id(s), s) for s in place.slots.values())
    for slot in list(slots.values()):
        while slot.parent is not None:
            slot = slot.parent
            slots[id(slot)] = slot
    symbolic = [s for s in slots.values() if isinstance(s.nbytes, Size)]
    expressions = Expressions(guards)
    where = [expressions.index(s.nbytes) for s in symbolic]  # type: ignore[arg-type]
    at_end = expressions.values(largest)
    limits = []
    for slot, i in zip(symbolic, where, strict=True):
        size: Any = slot.nbytes
        slot.nbytes = max(at_end[i], size.value)
        limits.append((size, slot.nbytes))
    return limits


def _collect(draft: Draft, guards: Guards) -> Expressions:
    """All sizes that a run needs the values of."""
    expressions = Expressions(guards)
    specs: list[Spec | None] = [p.spec for _, p in draft.outputs]
    for step in draft.steps:
        if isinstance(step, DeviceStep):
            for size in step.plan.sizes:
                expressions.index(size)
        elif isinstance(step, (ReadStep, ViewStep)):
            specs.append(step.spec)
        elif isinstance(step, CopyStep) and isinstance(step.nbytes, Size):
            expressions.index(step.nbytes)
    specs += [value for _, value in draft.preset if isinstance(value, SizedSpec)]
    for spec in specs:
        if spec is None or not sized(spec):
            continue
        for n in [*spec.shape, *(spec.sizes.reshape(-1) if isinstance(spec, SizedSpec) else ())]:
            if isinstance(n, Size):
                expressions.index(n)
    return expressions
