"""GroupQueryAttention: prompts, steps with a cache, windows, rotation, sinks; against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import array, both, near, ours, quick

from gpurt.errors import GpurtError

SEED = st.integers(0, 1 << 20)
OP = "GroupQueryAttention"


class Case:
    """Inputs of one step for a batch whose sequences may differ in length."""

    def __init__(self, rng, *, prompt, packed=False, rotary=False, room=0, one=False):
        self.batch = 1 if not prompt and one else int(rng.integers(1, 4))
        self.groups, share = (int(v) for v in rng.integers(1, 4, 2))
        self.heads, self.size = self.groups * share, 16 * int(rng.integers(1, 3))
        self.length = int(rng.integers(1, 6)) if prompt or one else 1
        past = np.zeros(self.batch, int) if prompt else rng.integers(1, 8, self.batch)
        # In a prompt the sequences may be padded at the end; in a step the caches may be filled differently.
        self.totals = rng.integers(1, self.length + 1, self.batch) if prompt else past + self.length
        if prompt:
            self.totals[0] = self.length
        self.total = int(self.totals.max())
        self.held = 0 if prompt and not room else int(past.max()) + (self.length + room if room else 0)
        query, shared = self.heads * self.size, self.groups * self.size
        parts = [array(rng, self.batch, self.length, n) for n in (query, shared, shared)]
        cache = [array(rng, self.batch, self.groups, self.held, self.size) if self.held else None for _ in range(2)]
        self.inputs = [np.concatenate(parts, axis=2), None, None] if packed else parts
        self.inputs += [*cache, (self.totals - 1).astype(np.int32), np.array(self.total, np.int32)]
        self.attrs = {"num_heads": self.heads, "kv_num_heads": self.groups}
        if rotary:
            angles = rng.uniform(0, 6, (40, self.size // 2)).astype(np.float32)
            self.inputs += [np.cos(angles), np.sin(angles)]
            self.attrs["do_rotary"] = 1
        self.inputs += [None] * (12 - len(self.inputs))

    def check(self, outputs=3):
        pairs = both(OP, self.inputs, self.attrs, outputs)
        for b, total in enumerate(self.totals):
            rows = min(self.length, int(total))  # what lies behind the end of a sequence means nothing
            near(pairs[0][0][b, :rows], pairs[0][1][b, :rows], 2e-5)
            for got, wanted in pairs[1:3]:
                near(got[b, :, :total], wanted[b, :, :total])
            for got, wanted in pairs[3:]:
                near(got[b, :, :rows, :total], wanted[b, :, :rows, :total], 2e-5)


@quick
@given(SEED, st.booleans(), st.booleans(), st.booleans())
def test_prompt(seed, packed, rotary, interleaved):
    case = Case(np.random.default_rng(seed), prompt=True, packed=packed, rotary=rotary)
    case.attrs["rotary_interleaved"] = int(interleaved)
    case.check()


@quick
@given(SEED, st.booleans(), st.booleans(), st.integers(0, 4))
def test_step(seed, packed, rotary, room):
    Case(np.random.default_rng(seed), prompt=False, packed=packed, rotary=rotary, room=room).check()


@quick
@given(SEED, st.booleans(), st.integers(0, 4))
def test_several_new_rows_behind_a_cache(seed, rotary, room):
    Case(np.random.default_rng(seed), prompt=False, rotary=rotary, room=room, one=True).check()


@quick
@given(SEED, st.booleans(), st.sampled_from(["window", "softcap", "smooth", "sink", "scale", "bias", "both ways"]))
def test_variants(seed, prompt, what):
    rng = np.random.default_rng(seed)
    case = Case(rng, prompt=prompt, one=not prompt)
    if what == "window":
        case.attrs["local_window_size"] = int(rng.integers(1, 5))
    elif what == "softcap":
        case.attrs["softcap"] = 0.7
    elif what == "smooth":
        case.attrs["smooth_softmax"] = 1
    elif what == "sink":
        case.inputs[11] = array(rng, case.heads)
    elif what == "scale":
        case.attrs["scale"] = 0.3
    elif what == "bias":
        case.inputs[10] = array(rng, 1, case.heads, case.length, case.total)
        case.attrs["softcap"] = 0.7
    else:
        case.attrs["causal"] = 0
    case.check()


@quick
@given(SEED, st.booleans(), st.sampled_from([1, 2]))
def test_products(seed, prompt, which):
    case = Case(np.random.default_rng(seed), prompt=prompt, one=not prompt)
    case.attrs["qk_output"] = which
    case.check(4)


@pytest.mark.parametrize("prompt", [True, False])
def test_positions(prompt):
    rng = np.random.default_rng(1)
    case = Case(rng, prompt=prompt, rotary=True, one=True)
    case.inputs[9] = rng.integers(0, 40, (case.batch, case.length))
    case.check()


def test_norms_of_the_heads():
    # ONNX Runtime has these on GPUs only: the same as normalising before.
    rng = np.random.default_rng(2)
    case = Case(rng, prompt=True, rotary=True)
    weight = [array(rng, case.size) for _ in range(2)]
    normed = []
    for x, w in zip(case.inputs[:2], weight, strict=True):
        heads = x.reshape(case.batch, case.length, -1, case.size).astype(np.float64)
        heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-6) * w
        normed.append(heads.reshape(x.shape).astype(np.float32))
    wanted = ours(OP, [*normed, *case.inputs[2:]], case.attrs, 3)
    got = ours(OP, [*case.inputs, None, None, *weight], case.attrs, 3)
    for g, w in zip(got, wanted, strict=True):
        near(g, w)


def test_padded_chunks():
    rng = np.random.default_rng(3)
    heads, size, room = 2, 16, 12
    queries = np.array([3, 1, 0], np.int32)
    totals = np.array([5, 6, 4], np.int32)
    q, k, v = (array(rng, 3, 3, heads * size) for _ in range(3))
    past = array(rng, 3, heads, room, size)
    attrs = {"num_heads": heads, "kv_num_heads": heads}
    inputs = [q, k, v, past, past, totals - 1, np.array(room, np.int32), *[None] * 9, queries]
    (y, wanted), *caches = both(OP, inputs, attrs, 3)
    for b, (rows, total) in enumerate(zip(queries, totals, strict=True)):
        near(y[b, :rows], wanted[b, :rows])
        for got, want in caches:
            near(got[b, :, :total], want[b, :, :total])


def test_refusals():
    case = Case(np.random.default_rng(0), prompt=True)
    for attrs, message in (
        ({"k_quant_type": "PER_TENSOR"}, "quantized"),
        ({"sliding_window_cache": 1, "local_window_size": 2}, "window"),
        ({"do_rotary": 1}, "cos_cache"),
    ):
        with pytest.raises(GpurtError, match=message):
            ours(OP, case.inputs, case.attrs | attrs, 3)
    case.inputs[5] = case.inputs[5] + 3
    with pytest.raises(GpurtError, match="do not fit"):
        ours(OP, case.inputs, case.attrs, 3)
