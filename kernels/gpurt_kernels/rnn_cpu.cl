/* Recurrent layers for CPUs: one item runs its directions' rows and chunks of 16 hidden units through its steps.

   Either an item owns all chunks of some rows, and one launch runs all steps; or the chunks are spread over items, and
   each step is a launch. The recurrent product reads R in panels [direction][gate][chunk][k][16] and keeps GATES x MB
   accumulators; the gates follow in registers. States are double-buffered, as every chunk needs the whole old state. */
struct __attribute__((packed)) unaligned {
  float16 v;
};
#define LOAD16(p) (((const GLOBAL struct unaligned *)(p))->v)
#define STORE16(p, x) (((GLOBAL struct unaligned *)(p))->v = (x))

/* acc[g][i] += row i of a times the panel of gate g. */
#define PRODUCT(count, first_gate, a, stride)                                                   \
  for (i32 k = 0; k < H; k++) {                                                                 \
    _Pragma("unroll") for (i32 g = 0; g < (count); g++) {                                       \
      const float16 v = *(const GLOBAL float16 *)(panels + (first_gate + g) * gate_size + k * 16); \
      _Pragma("unroll") for (i32 i = 0; i < MB; i++) acc[g][i] += (a)[(i < last ? i : last) * (i64)(stride) + k] * v; \
    }                                                                                           \
  }

KFN(1, 1, 1) rnn_cpu(INPUT(float, xw), INPUT(float, r), INPUT(float, bias), INPUT(float, peephole), TENSOR(float, h),
                     TENSOR(float, cell), TENSOR(float, update), TENSOR(T, y),
#if HAS_LENGTHS
                     INPUT(i32, lengths),
#endif
                     const i32 directions, const i32 rows, const i32 H, const i32 width, const i32 steps,
                     const i32 first_step, const i32 end_step, const i32 first_phase, const i32 end_phase,
                     const i32 backward, const i32 chunks, const i64 xd, const i64 xt, const i64 xb, const i64 yd,
                     const i64 yt, const i64 yb) {
  OPEN_IN(float, xw);
  OPEN_IN(float, r);
  OPEN_IN(float, bias);
  OPEN_IN(float, peephole);
  OPEN(float, h);
  OPEN(float, cell);
  OPEN(float, update);
  OPEN(T, y);
#if HAS_LENGTHS
  OPEN_IN(i32, lengths);
#endif
  const i32 d = GROUP(2), row0 = GROUP(1) * MB;
  const i32 last = rows - row0 < MB ? rows - row0 - 1 : MB - 1;
  const i32 all_chunks = width / 16;
  const i32 chunk0 = GROUP(0) * chunks, chunk1 = chunk0 + chunks < all_chunks ? chunk0 + chunks : all_chunks;
  const i64 gate_size = (i64)width * H, part = (i64)directions * rows * width;
  const i64 base = ((i64)d * rows + row0) * width;
  bias += (i64)d * (GATES + 1) * width;

  for (i32 s = first_step; s < end_step; s++) {
    const GLOBAL float *old = h + (s & 1) * part + base;
    GLOBAL float *fresh = h + ((s + 1) & 1) * part + base;
    for (i32 phase = first_phase; phase < end_phase; phase++) {
      for (i32 chunk = chunk0; chunk < chunk1; chunk++) {
        const i32 j = chunk * 16;
        const GLOBAL float *panels = r + (i64)d * GATES * gate_size + (i64)j * H;
        float16 acc[GATES][MB];
        for (i32 g = 0; g < GATES; g++)
          for (i32 i = 0; i < MB; i++) acc[g][i] = (float16)(0.0f);
#if TWO_PHASES
        if (phase == 0) {
          PRODUCT(2, 0, old, width)
        } else {
          PRODUCT(1, 2, update + part + base, width)
        }
#else
        PRODUCT(GATES, 0, old, width)
#endif
        for (i32 i = 0; i <= last; i++) {
#if HAS_LENGTHS
          const i32 length = lengths[row0 + i];
#else
          const i32 length = steps;
#endif
          const i32 time = time_of(s, length, d == 1 || backward);
          const i64 state = (i64)i * width + j;
          const float16 before = LOAD16(old + state);
          float16 now = before;
          if (time >= 0) {
            const GLOBAL float *from_x = xw + d * xd + time * xt + (row0 + i) * xb + j;
#define GATE(g, a) (LOAD16(from_x + (g) * H) + LOAD16(bias + (g) * width + j) + acc[a][i])
#if GATES == 4
            const GLOBAL float *p = peephole + (i64)d * 3 * width + j;
            float16 c_now = LOAD16(cell + base + state);
            now = lstm_cell(d, GATE(0, 0), GATE(1, 1), GATE(2, 2), GATE(3, 3), LOAD16(p), LOAD16(p + width),
                            LOAD16(p + 2 * width), &c_now);
            STORE16(cell + base + state, c_now);
#elif TWO_PHASES
            if (phase == 0) {
              STORE16(update + base + state, ACT_F(d, CLIP(GATE(0, 0))));
              STORE16(update + part + base + state, ACT_F(d, CLIP(GATE(1, 1))) * before);
              continue;
            }
            now = gru_cell(d, LOAD16(update + base + state), GATE(2, 0), before);
#elif GATES == 3
            const float16 z = ACT_F(d, CLIP(GATE(0, 0)));
            const float16 reset = ACT_F(d, CLIP(GATE(1, 1)));
            now = gru_cell(d, z, LOAD16(from_x + 2 * H) + LOAD16(bias + 2 * width + j) +
                                     reset * (acc[2][i] + LOAD16(bias + 3 * width + j)), before);
#else
            now = ACT_F(d, CLIP(GATE(0, 0)));
#endif
          } else if (TWO_PHASES && phase == 0) {
            continue;
          }
          STORE16(fresh + state, now);
          if (time < 0) now = (float16)(0.0f);
          GLOBAL T *out = y + d * yd + (time < 0 ? s : time) * yt + (row0 + i) * yb + j;
          if (T_IS_FLOAT && j + 16 <= H) {
            STORE16(out, now);
          } else {
            for (i32 l = 0; l < 16 && j + l < H; l++) ST_T(out, l, ((float *)&now)[l]);
          }
        }
      }
    }
  }
}
