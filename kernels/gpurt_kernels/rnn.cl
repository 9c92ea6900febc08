/* Recurrent layers, the parts that both classes share: states, biases and peepholes between the node's tensors and
   dense float32 rows [direction][row][padded hidden], and for GPUs what follows the product of a step.
   GATES is 4 (LSTM: input, output, forget, cell), 3 (GRU: update, reset, hidden) or 1 (RNN). */

/* y[i0 * t0 + i1 * t1 + j] = x[i0 * s0 + i1 * s1 + j], plus the element `second` further on where i1 < paired; zero
   without x, and for j from H to width. */
#ifdef GP_CPU_CLASS
#define STRIDE 1
KFN(1, 1, 1)
#else
#define STRIDE 64
KFN(64, 1, 1)
#endif
rnn_copy(INPUT(TX, x), TENSOR(TY, y), const i32 n1, const i32 H, const i32 width, const i64 s0, const i64 s1,
         const i64 t0, const i64 t1, const i64 second, const i32 paired, const i32 has_x) {
  OPEN_IN(TX, x);
  OPEN(TY, y);
  const i32 i0 = GROUP(0) / n1, i1 = GROUP(0) % n1;
  for (i32 j = ITEM(0); j < width; j += STRIDE) {
    const i64 from = i0 * s0 + i1 * s1 + j;
    float v = has_x && j < H ? LD_TX(x, from) : 0.0f;
    if (i1 < paired && j < H) v += LD_TX(x, from + second);
    ST_TY(y, i0 * t0 + i1 * t1 + j, v);
  }
}

#ifndef GP_CPU_CLASS
/* One step of all directions and rows after hr = h R^T is there: an item computes one element of the new state.
   GRU without linear_before_reset takes two: phase 0 makes z and r * h, from which the host computes the last product. */
#define GATE(g) (from_x[(g) * H] + from_h[(g) * H] + b[(g) * width])
KFN(64, 1, 1) rnn_step(INPUT(float, xw), INPUT(float, hr), INPUT(float, bias), INPUT(float, peephole),
                       TENSOR(float, h), TENSOR(float, cell), TENSOR(float, update), TENSOR(T, y),
#if HAS_LENGTHS
                       INPUT(i32, lengths),
#endif
                       const i32 directions, const i32 rows, const i32 H, const i32 width, const i32 steps,
                       const i32 step, const i32 phase, const i32 backward, const i64 xd, const i64 xt, const i64 xb,
                       const i64 yd, const i64 yt, const i64 yb) {
  OPEN_IN(float, xw);
  OPEN_IN(float, hr);
  OPEN_IN(float, bias);
  OPEN_IN(float, peephole);
  OPEN(float, h);
  OPEN(float, cell);
  OPEN(float, update); /* GRU: [z, r * h][direction][row][width] */
  OPEN(T, y);
#if HAS_LENGTHS
  OPEN_IN(i32, lengths);
#endif
  const i64 index = INDEX(0);
  if (index >= (i64)directions * rows * H) return;
  const i32 j = (i32)(index % H), row = (i32)(index / H), d = row / rows, r = row % rows;
#if HAS_LENGTHS
  const i32 length = lengths[r];
#else
  const i32 length = steps;
#endif
  const i32 time = time_of(step, length, d == 1 || backward);
  if (time < 0) {
    if (phase != 0 || GATES != 3) ST_T(y, d * yd + step * yt + r * yb + j, 0.0f);
    return;
  }
  const i64 state = (i64)row * width + j, part = (i64)directions * rows * width;
  const GLOBAL float *from_x = xw + d * xd + time * xt + r * xb + j;
  const GLOBAL float *from_h = hr + (i64)row * GATES * H + j;
  const GLOBAL float *b = bias + (i64)d * (GATES + 1) * width + j;
  float now;
#if GATES == 4
  const GLOBAL float *p = peephole + (i64)d * 3 * width + j;
  float c_now = cell[state];
  now = lstm_cell(d, GATE(0), GATE(1), GATE(2), GATE(3), p[0], p[width], p[2 * width], &c_now);
  cell[state] = c_now;
#elif GATES == 3
#if LINEAR_BEFORE_RESET
  const float z = ACT_F(d, CLIP(GATE(0)));
  const float reset = ACT_F(d, CLIP(GATE(1)));
  now = gru_cell(d, z, from_x[2 * H] + b[2 * width] + reset * (from_h[2 * H] + b[3 * width]), h[state]);
#else
  if (phase == 0) {
    const float z = ACT_F(d, CLIP(GATE(0)));
    const float reset = ACT_F(d, CLIP(GATE(1)));
    update[state] = z;
    update[part + state] = reset * h[state];
    return;
  }
  now = gru_cell(d, update[state], GATE(2), h[state]);
#endif
#else
  now = ACT_F(d, CLIP(GATE(0)));
#endif
  h[state] = now;
  ST_T(y, d * yd + time * yt + r * yb + j, now);
}
#endif
