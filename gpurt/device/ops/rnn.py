"""LSTM, GRU and RNN (ONNX 22): one product for the inputs of all steps, then the steps.

For GPUs a step is a product with R and a kernel for the gates. For CPUs a kernel does both, and where enough rows or
directions keep the cores busy, or the state is small, a single launch runs the whole sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

import gpurt_kernels
from gpurt.device.driver import DeviceInfo
from gpurt.device.lowering import Lowering, Ref
from gpurt.device.ops.gemm import FLOAT32, I32_MAX, gemm
from gpurt.device.ops.matmul import packed_panels
from gpurt.device.ops.matrices import Mat, Panels, panels
from gpurt.device.scalars import i32, i64
from gpurt.device.table import op
from gpurt.graph.view import NodeView
from gpurt.provider import Refused

MAX_STEPS: Final = 1024  # launches are made step by step; a longer sequence would make the plan itself slow
_GATES: Final = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULTS: Final = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

# Expressions over {x}, with the attribute values {a} and {b}; V is a float or a vector of floats.
_ACTIVATIONS: Final = {
    "sigmoid": "(1.0f / (1.0f + exp(-({x}))))",
    "tanh": "tanh({x})",
    "relu": "fmax({x}, 0.0f)",
    "affine": "({a} * ({x}) + {b})",
    "leakyrelu": "(({x}) < 0.0f ? {a} * ({x}) : ({x}))",
    "thresholdedrelu": "(({x}) > {a} ? ({x}) : (V)(0.0f))",
    "scaledtanh": "({a} * tanh({b} * ({x})))",
    "hardsigmoid": "fmin(fmax({a} * ({x}) + {b}, 0.0f), 1.0f)",
    "elu": "(({x}) < 0.0f ? {a} * (exp({x}) - 1.0f) : ({x}))",
    "softsign": "(({x}) / (1.0f + fabs({x})))",
    "softplus": "(fmax({x}, 0.0f) + log(1.0f + exp(-fabs({x}))))",
}
# Defaults of alpha and beta, for the functions that have them.
_ALPHA: Final = {
    "affine": 1.0,
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "scaledtanh": 1.0,
    "hardsigmoid": 0.2,
    "elu": 1.0,
}
_BETA: Final = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}


def _check(node: NodeView, _: DeviceInfo) -> str | None:
    for name in node.attr("activations") or ():
        if name.lower() not in _ACTIVATIONS:
            return f"{node.op} with activation {name}"
    return None


def _activations(node: NodeView) -> str:
    """Macros ACT_F, ACT_G and ACT_H (direction, x), and CLIP(x)."""
    defaults = _DEFAULTS[node.op_type]
    names = [n.lower() for n in node.attr("activations") or ()] or [n.lower() for n in defaults] * 2
    alphas, betas = list(node.attr("activation_alpha") or ()), list(node.attr("activation_beta") or ())
    texts = []
    for name in names:
        # The lists hold values only for the functions that take one, in the order of the functions.
        alpha = alphas.pop(0) if name in _ALPHA and alphas else _ALPHA.get(name, 0.0)
        beta = betas.pop(0) if name in _BETA and betas else _BETA.get(name, 0.0)
        texts.append(_ACTIVATIONS[name].format(x="x", a=f"{_literal(alpha)}", b=f"{_literal(beta)}"))
    count = len(defaults)
    lines = []
    for letter, forward, backward in zip("FGH", texts[:count], texts[count:] or texts, strict=False):
        body = forward if forward == backward else f"((d) == 0 ? {forward} : {backward})"
        name = f"act_{letter}"
        lines.append(f"FN V {name}(const i32 d, const V x) {{ return {body}; }}\n#define ACT_{letter} {name}\n")
    clip = node.attr("clip")
    limit = _literal(clip) if clip else ""
    lines.append(f"#define CLIP(x) fmin(fmax((x), -{limit}), {limit})\n" if clip else "#define CLIP(x) (x)\n")
    return "".join(lines)


def _literal(value: float) -> str:
    return f"({float(np.float32(value))!r}f)"


@dataclass(slots=True)
class _Layer:
    """One recurrent node with concrete shapes; strides are by direction, time and row."""

    c: Lowering
    gates: int
    steps: int
    rows: int
    hidden: int
    directions: int
    x_strides: tuple[int, int]  # of xw: time and row
    y_strides: tuple[int, int, int]
    state_strides: tuple[int, int]  # of initial and final states in the node's tensors: direction and row

    @property
    def width(self) -> int:
        """Hidden size rounded up to whole vectors."""
        return -(-self.hidden // 16) * 16

    @property
    def two_phases(self) -> bool:
        return self.c.node.op_type == "GRU" and not self.c.node.attr("linear_before_reset", 0)

    def text(self, source: str) -> str:
        v = "float16" if self.c.cpu_class else "float"
        head = f"#define V {v}\n" + _activations(self.c.node)
        return head + gpurt_kernels.text("rnn_cell.h") + gpurt_kernels.text(source)

    def defines(self) -> dict[str, int | float | str]:
        node = self.c.node
        return {
            "GATES": self.gates,
            "HAS_LENGTHS": int(self.c.has(4)),
            "INPUT_FORGET": int(node.attr("input_forget", 0)),
            "LINEAR_BEFORE_RESET": int(node.attr("linear_before_reset", 0)),
            "TWO_PHASES": int(self.two_phases),
        }

    def copy(
        self, source: Ref | None, target: Ref, n: tuple[int, int], width: int, s: tuple[int, int], t: tuple[int, int],
        second: int = 0, paired: int = 0,
    ) -> None:  # fmt: skip
        """Rows of `hidden` elements from one strided place to another, filled up with zeros to width."""
        args: list[Ref | np.generic] = [
            source or target,
            target,
            *_i32(n[1], self.hidden, width),
            *_i64(*s, *t, second),
        ]
        self.c.launch(
            self.text("rnn.cl"), "rnn_copy", [*args, *_i32(paired, int(source is not None))], [n[0] * n[1]],
            [1 if self.c.cpu_class else 64],
            types={"TX": source.dtype if source else target.dtype, "TY": target.dtype, "T": self.c.input(0).dtype},
            defines=self.defines(),
        )  # fmt: skip

    def state(self, position: int, buffers: int = 1) -> Ref:
        """A float32 state [direction][row][width] that begins with an input, or zero."""
        ref = self.c.temp(FLOAT32, (buffers, self.directions, self.rows, self.width))
        source = self.c.input(position) if self.c.has(position) else None
        strides = (self.rows * self.width, self.width)
        self.copy(source, ref, (self.directions, self.rows), self.width, self.state_strides, strides)
        return ref

    def finish(self, output: int, state: Ref) -> None:
        """Copy a state to an output."""
        if self.c.wants(output):
            strides = (self.rows * self.width, self.width)
            out = self.c.output(output)
            self.copy(state, out, (self.directions, self.rows), self.hidden, strides, self.state_strides)

    def bias(self) -> Ref:
        """Sums of both biases [direction][gate][width]; the last row is GRU's recurrent bias of the hidden gate."""
        gates, hidden = self.gates, self.hidden
        ref = self.c.temp(FLOAT32, (self.directions, gates + 1, self.width))
        source = self.c.input(3) if self.c.has(3) else None
        apart = self.c.node.op_type == "GRU" and bool(self.c.node.attr("linear_before_reset", 0))
        strides = ((gates + 1) * self.width, self.width)
        paired = 0 if source is None else gates - 1 if apart else gates
        self.copy(
            source, ref, (self.directions, gates), self.width, (2 * gates * hidden, hidden), strides,
            second=gates * hidden, paired=paired,
        )  # fmt: skip
        last = ref.at(gates * self.width, (1,))
        tail = None if source is None else source.at((2 * gates - 1) * hidden, (1,))
        self.copy(tail, last, (self.directions, 1), self.width, (2 * gates * hidden, 0), (strides[0], 0))
        return ref

    def peephole(self) -> Ref:
        """Peephole weights [direction][input, output, forget][width], zero where the node has none."""
        ref = self.c.temp(FLOAT32, (self.directions, 3, self.width))
        source = self.c.input(7) if self.c.has(7) else None
        strides = (3 * self.width, self.width)
        self.copy(source, ref, (self.directions, 3), self.width, (3 * self.hidden, self.hidden), strides)
        return ref

    def inputs(self) -> Ref:
        """The product X W^T for all steps: [direction][all rows][gates * hidden]."""
        c, x = self.c, self.c.input(0)
        k, n, m = x.shape[2], self.gates * self.hidden, self.steps * self.rows
        size = self.directions * m * n
        xw = c.temp(FLOAT32, (size + 16,))
        if c.cpu_class and self.width > self.hidden:  # the last vector of the last row is read whole
            self.copy(None, xw.at(size, (16,)), (1, 1), 16, (0, 0), (0, 0))
        packed = packed_panels(c, 1, transposed=True)
        w: Mat | Panels = Mat(c.input(1), 1, k, (n * k,)) if packed is None else Panels(packed, (-(-n // 16) * k * 16,))
        gemm(c, Mat(x, k, 1, (0,)), w, Mat(xw, n, 1, (m * n,)), (m, n, k), (self.directions,))
        return xw

    def run(self) -> None:
        c = self.c
        wide = 2 if c.cpu_class else 1
        h = self.state(5, wide)
        cell = self.state(6) if self.gates == 4 else h
        if self.steps:
            update = c.temp(FLOAT32, (2, self.directions, self.rows, self.width)) if self.two_phases else h
            y = c.output(0) if c.wants(0) else c.temp(c.input(0).dtype, c.outs[0].shape)
            bias = self.bias()
            state = [bias, self.peephole() if self.gates == 4 else bias, h, cell, update, y]
            lengths = [c.input(4)] if c.has(4) else []
            if c.cpu_class:
                self._cpu([*state, *lengths])
            else:
                self._gpu(h, update, [*state, *lengths])
        flips = self.steps % 2 if c.cpu_class else 0
        size = self.directions * self.rows * self.width
        self.finish(1, h.at(flips * size, (size,)))
        if self.gates == 4:
            self.finish(2, cell)

    def _tail(self) -> list[np.generic]:
        xd = self.steps * self.rows * self.gates * self.hidden
        return _i64(xd, *self.x_strides, *self.y_strides)

    @property
    def _backward(self) -> int:
        return int(self.c.node.attr("direction", "forward") == "reverse")

    def _cpu(self, tensors: Sequence[Ref]) -> None:
        c, g, hidden = self.c, self.gates, self.hidden
        packed = c.packed(2, f"recurrent panels {g}", lambda r: _recurrent_panels(r, g))
        if packed is None:
            packed = self._pack()
        at_once = 1 if self.rows == 1 else 4 if c.info.vector_width >= 16 else 2
        blocks = -(-self.rows // at_once)
        chunks = self.width // 16
        # Work of one step of one item that has all chunks; a launch costs a few microseconds.
        work = g * hidden * hidden * at_once
        whole = blocks * self.directions >= c.info.compute_units or work <= 300_000 or chunks == 1
        if not whole and self.steps > MAX_STEPS:
            whole = True
        split = chunks if whole else -(-chunks // max(c.info.compute_units // (blocks * self.directions), 1))
        phases = 2 if self.two_phases else 1
        parts = [(0, self.steps, 0, phases)] if whole else [
            (s, s + 1, p, p + 1) for s in range(self.steps) for p in range(phases)
        ]  # fmt: skip
        xw = self.inputs()
        text = self.text("rnn_cpu.cl")
        for part in parts:
            numbers = _i32(self.directions, self.rows, hidden, self.width, self.steps, *part, self._backward, split)
            c.launch(
                text, "rnn_cpu", [xw, packed, *tensors, *numbers, *self._tail()],
                (-(-chunks // split), blocks, self.directions), types={"T": c.input(0).dtype},
                defines={**self.defines(), "MB": at_once, "T_IS_FLOAT": int(c.input(0).dtype == FLOAT32)},
            )  # fmt: skip

    def _pack(self) -> Ref:
        c, g, n = self.c, self.gates, self.hidden
        packed = c.temp(FLOAT32, (self.directions, g, self.width // 16, n, 16))
        numbers: list[Ref | np.generic] = [
            *_i64(1, n),
            *_i64(0, 0, n * n),
            packed,
            *_i32(0, 1, self.directions * g),
            *_i32(n, n, n),
        ]
        body = gpurt_kernels.text("batch.h") + gpurt_kernels.text("gemm_pack.cl")
        r = c.input(2)
        c.launch(
            body, "gemm_pack", [r, *numbers], (self.width // 16, 1, self.directions * g), types={"T": r.dtype},
            defines={"HAS_C": 0},
        )  # fmt: skip
        return packed

    def _gpu(self, h: Ref, update: Ref, tensors: Sequence[Ref]) -> None:
        c, g, hidden, rows = self.c, self.gates, self.hidden, self.rows
        if self.steps > MAX_STEPS:
            raise Refused(f"{c.node.op}: {self.steps} steps are more than {MAX_STEPS}")
        n = g * hidden
        hr = c.temp(FLOAT32, (self.directions, rows, n))
        part = self.directions * rows * self.width
        # With two phases the product of the hidden gate waits for r * h.
        products = [(h, 0, n)]
        if self.two_phases:
            products = [(h, 0, 2 * hidden), (update.at(part, (part,)), 2 * hidden, hidden)]
        items = self.directions * rows * hidden
        xw = self.inputs()
        text = self.text("rnn.cl")
        for step in range(self.steps):
            for phase, (left, first, count) in enumerate(products):
                gemm(
                    c,
                    Mat(left, self.width, 1, (rows * self.width,)),
                    Mat(c.input(2).at(first * hidden, (1,)), 1, hidden, (n * hidden,)),
                    Mat(hr.at(first, (1,)), n, 1, (rows * n,)),
                    (rows, count, hidden),
                    (self.directions,),
                )
                numbers = _i32(self.directions, rows, hidden, self.width, self.steps, step, phase, self._backward)
                c.launch(
                    text, "rnn_step", [xw, hr, *tensors, *numbers, *self._tail()], [-(-items // 64)], [64],
                    types={"T": c.input(0).dtype, "TX": FLOAT32, "TY": FLOAT32}, defines=self.defines(),
                )  # fmt: skip


def _recurrent_panels(r: np.ndarray, gates: int) -> np.ndarray:
    directions, _, hidden = r.shape
    return panels(np.swapaxes(r.reshape(directions, gates, hidden, hidden), -1, -2))


@op("LSTM", "GRU", "RNN", types={None: "float32 float16", 4: "int32"}, check=_check)
def recurrent(c: Lowering) -> None:
    """LSTM, GRU and RNN: all directions, both layouts, initial states, sequence lengths, peepholes, clip."""
    x, r = c.input(0), c.input(2)
    directions, hidden = r.shape[0], r.shape[2]
    if c.node.attr("layout", 0):
        rows, steps = x.shape[:2]
        times, x_time, x_row = steps, 1, steps
        y_strides = (hidden, directions * hidden, times * directions * hidden)
        state_strides = (hidden, directions * hidden)
    else:
        steps, rows = x.shape[:2]
        x_time, x_row = rows, 1
        y_strides = (rows * hidden, directions * rows * hidden, hidden)
        state_strides = (rows * hidden, hidden)
    if rows == 0 or hidden == 0:
        return
    gates = _GATES[c.node.op_type]
    if math.prod((steps, rows, directions, gates, hidden)) > I32_MAX:
        raise Refused(f"{c.node.op}: more than 2^31 gate values")
    n = gates * hidden
    strides = (x_time * n, x_row * n)
    _Layer(c, gates, steps, rows, hidden, directions, strides, y_strides, state_strides).run()


def _i32(*values: int) -> list[np.generic]:
    return [i32(v) for v in values]


def _i64(*values: int) -> list[np.generic]:
    return [i64(v) for v in values]
