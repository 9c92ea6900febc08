"""A plan with its memory assigned, and its pool of states: one run at a time has a state, then it is pooled."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from gpurt.errors import OutOfMemory
from gpurt.memory.offsets import Lifetime, assign, lower_bound, rounded
from gpurt.plan.branches import branching, conflicts, join
from gpurt.plan.budget import Share
from gpurt.plan.delivery import carried
from gpurt.plan.destination import Destination
from gpurt.plan.overlap import overlap
from gpurt.plan.sizes import Sizing
from gpurt.plan.state import Constants, PlanState
from gpurt.plan.steps import DeviceStep, Draft, Slot, StoreStep
from gpurt.plan.streaming import Streamed, stream_weights
from gpurt.plan.values import Held, Run
from gpurt.provider import DeviceMemory


class Plan:
    """Steps, slots with offsets, and blocks by space, none of which change; and the states that runs take in turn.

    Args:
        draft: the steps; the plan takes it over.
        memories: by space.
        share: of the limits of devices that weights are streamed to.
        sizing: of a template.
    """

    def __init__(
        self, draft: Draft, memories: Sequence[DeviceMemory | None], share: Share, sizing: Sizing | None = None
    ) -> None:
        self.end = draft.end
        self.copies = draft.copies
        self._draft = draft
        self._memories = memories
        self._sizing = sizing
        if sizing is None:  # else it was done while sizes could still leave guards
            merge_in_place(draft)
        self.streamed: dict[int, Streamed] = {}
        self._streams = any(m is not None and m.streams_weights for m in memories)
        for space, memory in enumerate(memories):
            if memory is not None and memory.streams_weights:
                found = stream_weights(draft, space, memory, share)
                if found is not None:
                    self.streamed[space] = found
        divided = branching(draft.steps)
        self._places: dict[Slot, tuple[int, int]] = {}
        self.blocks: dict[int, Sequence[int]] = {}
        self.lower_bounds: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        self.yields: dict[int, int] = {}
        for space, memory in enumerate(memories):
            if memory is None:
                continue
            slots = [s for s in draft.slots if s.space == space and s.parent is None and s.last >= 0 and not s.target]
            lifetimes = [Lifetime(s.nbytes, s.first, s.last) for s in slots]
            unlike = conflicts(draft, space, slots) if space in divided else None
            layout = assign(lifetimes, memory.arena.alignment, memory.arena.max_block, unlike)
            self._places.update(zip(slots, layout.places, strict=True))
            self.blocks[space] = layout.blocks
            self.lower_bounds[space] = lower_bound(lifetimes, memory.arena.alignment)
            self.sizes[space] = layout.peak
            roots = {p.slots[space].root()[0] for _, p in draft.outputs if space in p.slots}
            self.yields[space] = sum(rounded(r.nbytes, memory.arena.alignment) for r in roots if r in self._places)
        self._beside = overlap(draft, self._places, [None if s in divided else m for s, m in enumerate(memories)])
        join(draft, divided)
        self._stores = {s.slot.space for s in draft.steps if isinstance(s, StoreStep)}
        self.used = 0  # when it was last asked for, in ticks of the cache that keeps it
        self.nbytes = sum(self.sizes.values())
        self._states = 0
        self._constants: Constants = {}
        self._inherited: list[Constants] = []
        self._pool: list[PlanState] = []
        self._retired = False
        # The last reader of what a plan yielded may be the garbage collector's, in the midst of a call on this plan.
        self._lock = threading.RLock()

    def execute(
        self,
        run: Run,
        env: dict[str, Held],
        destinations: Mapping[str, Destination],
        symbols: tuple[int, ...] = (),
    ) -> None:
        """Replay over the held values of env; what later steps need is put back into it.

        Raises InvalidArgument, before anything is launched, if an output does not fit into its destination.
        """
        state = self._used_before(run)
        if state is None:
            with self._lock:
                state = self._pool.pop() if self._pool else None
        if state is None:
            state = self._state(run, env, destinations, symbols)
        run.usage.begin(self.sizes, self.lower_bounds)
        lease = run.lease(lambda: self._give_back(state, run))
        try:
            for space, found in self.streamed.items():
                run.usage.copied(space, found.copied)
            state.resize(symbols)
            state.execute(run, env, destinations, lease)
        finally:
            run.usage.yielded(self.yields)

    def fits(self) -> bool:
        """Whether it keeps the limits of the devices that it streams weights to.

        A template's memory is for the largest sizes of its window: it may not fit where a plan for one size does.
        """
        return all(self.sizes[s] + found.resident <= found.limit for s, found in self.streamed.items())

    def held(self) -> int:
        """Bytes of device memory that its states hold."""
        return self._states * self.nbytes

    def trim(self, keep: int = 0) -> None:
        """Give the memory of states that no run has back to the arenas, but for the first `keep` of them."""
        with self._lock:
            self._pool, idle = self._pool[:keep], self._pool[keep:]
            self._states -= len(idle)
            if self._streams and not self._states and not self._retired:
                self._constants.clear()  # others may need the room; the next state takes them anew
        for state in idle:
            state.close()

    def inherit(self, other: Plan) -> None:
        """Keep the constants of a plan that is let go until this one has those that it uses, too."""
        self._inherited.append(other._constants)

    def retire(self) -> None:
        """Keep no memory from now on: what runs still have is given back when they end."""
        self._retired = True
        self.trim()

    def _state(
        self, run: Run, env: Mapping[str, Held], destinations: Mapping[str, Destination], symbols: tuple[int, ...]
    ) -> PlanState:
        """A new state; where memory is short, idle states of all plans make room first."""
        args = (
            self._draft,
            self._places,
            self.blocks,
            self._memories,
            self._constants,
            run,
            env,
            destinations,
            self._sizing,
            symbols,
        )
        with run.span("Session", "bind", {}):
            try:
                state = PlanState(*args)
            except OutOfMemory:
                run.make_room()
                state = PlanState(*args)
        self._inherited.clear()
        with self._lock:
            self._states += 1
        run.grew = True
        return state

    def _used_before(self, run: Run) -> PlanState | None:
        """A state that this run has had, for its next turn: what it enqueues now comes after all that used it."""
        idle = run.idle.get(self)
        if not idle:
            return None
        for space in self._stores:
            run.synchronize(space)  # the host is about to write where kernels of the last turn may still read
        for space in self._beside:
            run.memory(space).follow(run.copies(space), run.stream(space))  # and so may the copy queue be
        state: PlanState = idle.pop()
        return state

    def _give_back(self, state: PlanState, run: Run) -> None:
        run.usage.end(self.sizes, self.yields)
        if run.finished:
            self.pool(state)
        else:
            run.idle.setdefault(self, []).append(state)

    def pool(self, state: PlanState) -> None:
        """Take a state back whose queues are empty."""
        with self._lock:
            self._pool.append(state)
        if self._retired:
            self.trim()


def merge_in_place(draft: Draft) -> None:
    """Let outputs take the memory of inputs that nobody reads later, where the unit allows it."""
    for number, step in enumerate(draft.steps):
        if not isinstance(step, DeviceStep):
            continue
        by_key = {(o.kind, o.index): s for o, s in zip(step.plan.operands, step.slots, strict=True)}
        for out, candidates in step.plan.inplace.items():
            target = by_key.get(("out", out))
            if target is None or target.parent is not None or target.target:
                continue
            for position in candidates:
                source = by_key.get(("in", position))
                root, shift = source.root() if source is not None else (target, 0)
                if root is target or root.name or root.bound is not None or root.last != number:
                    continue
                shared = (s for s in step.slots if s is not source and s.root()[0] is root)
                if any(s.root()[1] or s.nbytes != root.nbytes for s in shared):
                    continue  # another operand is a part of the same memory: it is read after this is written
                skip = carried(step, out, position)
                if skip and sum(s.root()[0] is root for s in step.slots) > 1:
                    continue  # the input is read in other places than those that are written
                if shift == 0 and root.nbytes == target.nbytes and root.first < number:
                    target.parent, target.shift = root, 0
                    root.last = max(root.last, target.last)
                    step.skip |= skip
                    break
