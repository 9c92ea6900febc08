"""What the kinds of attention share: heads as strided matrices, two products and a masked softmax between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.attention_cpu import attend_cpu, takes
from gpurt.device.ops.gemm import gemm
from gpurt.device.ops.lanes import F32, F64, Args, group_size, lanes, share
from gpurt.device.ops.matrices import Mat, dense_strides
from gpurt.device.scalars import i32, i64
from gpurt.device.views import whole
from gpurt.provider import Refused

SCORE_BYTES: Final = 64 << 20  # of scores at a time: queries beyond it take turns


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """A tensor of heads, with strides in elements; the elements of a head lie side by side.

    Attributes:
        ref: the tensor, from the first head's first element on.
        heads: number of heads.
        length: tokens of a sequence.
        size: elements of a head.
        steps: to the next sequence, head and token.
    """

    ref: Ref
    heads: int
    length: int
    size: int
    steps: tuple[int, int, int]

    @staticmethod
    def of(ref: Ref, heads: int | None) -> Heads:
        """Of (batch, heads, length, size), or of (batch, length, heads * size) with the number of heads."""
        steps = whole(ref).steps
        if len(ref.shape) == 4:
            _, count, length, size = ref.shape
            return Heads(ref, count, length, size, steps[:3])  # type: ignore[arg-type]
        _, length, hidden = ref.shape
        assert heads, "the shape rule has seen to it"
        size = hidden // heads
        return Heads(ref, heads, length, size, (steps[0], size, steps[1]))

    def rows(self, first: int, count: int) -> Heads:
        """Some tokens of each sequence."""
        return replace(self, ref=self.ref.at(first * self.steps[2], self.ref.shape), length=count)


@dataclass(frozen=True, slots=True, eq=False)
class Masking:
    """Which keys a query sees, and what is done to its scores before the softmax.

    Attributes:
        queries: tokens of the queries.
        keys: tokens of the keys.
        past: position of the first query among the keys, where ``ends`` does not say.
        left: how many keys before its own position a query sees; -1 for all.
        right: how many keys after its own position a query sees; -1 for all.
        mask: added to the scores, or bool, of up to 4 axes that broadcast to (batch, heads, queries, mask keys).
        ends: int64 number of keys of each sequence, or, with ``last``, int32 position of its last key.
        last: see ends; then a sequence with fewer keys than queries begins at 0, and its last queries mean nothing.
        cap: soft cap of the scores; 0 for none.
        kept: what is stored of the scores as an output, and where: see attention.cl.
    """

    queries: int
    keys: int
    past: int = 0
    left: int = -1
    right: int = -1
    mask: Ref | None = None
    ends: Ref | None = None
    last: bool = False
    cap: float = 0.0
    kept: tuple[int, Ref] | None = None

    def keys_for(self, queries: int) -> int:
        """Keys that the first queries can see, where that is known when the plan is made; others need no scores."""
        if self.right < 0 or self.ends is not None or self.kept is not None:
            return self.keys
        return min(self.keys, self.past + queries + self.right)

    def mask_steps(self, c: Lowering, batch: int, heads: int) -> tuple[int, int, int]:
        """Strides of the mask for sequences, heads and queries. Raises Refused where it does not broadcast."""
        if self.mask is None:
            return 0, 0, 0
        given = self.mask.shape
        if not 1 <= len(given) <= 4:
            raise Refused(f"{c.node.op}: a mask of shape {list(given)}")
        shape = (1,) * (4 - len(given)) + given
        for size, full in zip(shape[:3], (batch, heads, self.queries), strict=True):
            if size not in (1, full):
                raise Refused(f"{c.node.op}: a mask of shape {list(given)} for {self.queries} queries")
        one, two, three = (0 if n == 1 else s for n, s in zip(shape[:3], dense_strides(shape)[:3], strict=True))
        return one, two, three


def attend(c: Lowering, q: Heads, k: Heads, v: Heads, out: Heads, masking: Masking, scale: float) -> None:
    """Emit softmax(q k^T * scale, masked) v into out, in parts of the queries. Scores of halves are float32.

    Args:
        c: the operator's context.
        q: queries of (batch, heads).
        k: keys; groups of queries' heads may share one.
        v: values, with keys' heads.
        out: as q, with the values' size.
        masking: which keys count.
        scale: factor of the scores.
    """
    acc = F64 if q.ref.dtype == F64 else F32
    batch = q.ref.shape[0]
    steps = masking.mask_steps(c, batch, q.heads)
    if takes(c, q, v, masking):
        attend_cpu(c, q, k, v, out, masking, scale, steps)
        return
    line = batch * q.heads * k.length * acc.itemsize
    at_once = q.length if masking.kept is not None else min(q.length, max(1, SCORE_BYTES // line))
    for first in range(0, q.length, at_once):
        rows = min(at_once, q.length - first)
        used = masking.keys_for(first + rows)
        scores = c.temp(acc, (batch, q.heads, rows, used))
        _product(c, q.rows(first, rows), k, scores, used, scale)
        _softmax(c, masking, scores, first, steps, q.ref.dtype)
        _weighted(c, scores, v, out.rows(first, rows))


def _grouped(x: Heads, k_heads: int) -> tuple[int, int, tuple[int, int, int]]:
    """Rows of a product, the stride between them, and the batch strides: sequence, head of keys, head in its group.

    With one query a sequence the heads of a group are the rows: they have keys and values in common.
    """
    group = x.heads // k_heads
    if x.length == 1:
        return group, x.steps[1], (x.steps[0], group * x.steps[1], 0)
    return x.length, x.steps[2], (x.steps[0], group * x.steps[1], x.steps[1])


def _score_heads(scores: Ref) -> Heads:
    _, heads, rows, used = scores.shape
    return Heads(scores, heads, rows, used, (heads * rows * used, rows * used, used))


def _product(c: Lowering, q: Heads, k: Heads, scores: Ref, used: int, scale: float) -> None:
    rows, q_row, q_batch = _grouped(q, k.heads)
    _, s_row, s_batch = _grouped(_score_heads(scores), k.heads)
    gemm(
        c,
        Mat(q.ref, q_row, 1, q_batch),
        Mat(k.ref, 1, k.steps[2], (k.steps[0], k.steps[1], 0)),
        Mat(scores, s_row, 1, s_batch),
        (rows, used, q.size),
        (scores.shape[0], k.heads, 1 if q.length == 1 else q.heads // k.heads),
        alpha=scale,
    )


def _weighted(c: Lowering, scores: Ref, v: Heads, out: Heads) -> None:
    rows, y_row, y_batch = _grouped(out, v.heads)
    _, s_row, s_batch = _grouped(_score_heads(scores), v.heads)
    gemm(
        c,
        Mat(scores, s_row, 1, s_batch),
        Mat(v.ref, v.steps[2], 1, (v.steps[0], v.steps[1], 0)),
        Mat(out.ref, y_row, 1, y_batch),
        (rows, v.size, scores.shape[3]),
        (scores.shape[0], v.heads, 1 if out.length == 1 else out.heads // v.heads),
    )


def _softmax(
    c: Lowering, masking: Masking, scores: Ref, first: int, steps: tuple[int, int, int], dtype: np.dtype
) -> None:
    batch, heads, rows, used = scores.shape
    acc = scores.dtype
    types = {"A": acc, "T": dtype}
    defines: dict[str, int | float | str] = {}
    args: Args = [scores]
    mask_keys = masking.keys
    if masking.mask is not None:
        # A shorter mask hides the keys beyond it, one of a single key too.
        mask_keys = min(mask_keys, masking.mask.shape[-1])
        defines["MASK"] = 1
        types["M"] = masking.mask.dtype
        if types["M"] == np.bool_:
            defines["MASK_BOOL"] = 1
        args.append(masking.mask)
    if masking.ends is not None:
        defines["VALID"] = 1
        types["N"] = masking.ends.dtype
        if masking.last:
            defines["VALID_LAST"] = 1
        args.append(masking.ends)
    if masking.kept is not None:
        defines["QK"], out = masking.kept
        args.append(out)
    if masking.cap > 0:
        defines["CAP"] = 1
    tasks = batch * heads * rows
    groups, per = share(tasks, 8 * used) if c.cpu_class else (tasks, i64(1))
    block = 1 if c.cpu_class else group_size(c, used)
    defines["GROUP_SIZE"] = block
    args += [i64(s) for s in steps] + [i64(tasks), per]
    numbers = (heads, masking.queries, rows, first, used, used, masking.past, masking.left, masking.right, mask_keys)
    args += [i32(n) for n in numbers]
    body = gpurt_kernels.text("attention.cl")
    if c.cpu_class:
        body = lanes(acc, {role: t for role, t in types.items() if role not in "TN"}) + body
    c.launch(body, "masked_softmax", [*args, acc.type(masking.cap)], [groups], [block], types=types, defines=defines)
