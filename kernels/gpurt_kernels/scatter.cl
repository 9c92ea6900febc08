/* ScatterElements, ScatterND, TensorScatter: writes into a copy of the data. After rows.h.
 *
 * Updates that meet in one element are applied by one item in the order of the indices, so every result is
 * deterministic and equal to a serial loop's. Where too few items would come of that, the data is cut into parts: each
 * item looks at all the indices and takes those of its own part. Indices out of range are skipped.
 */

#if defined(REDUCE_ADD)
#define APPLY(at, from) ST_T(y, at, LD_T(y, at) + LD_T(u, from))
#elif defined(REDUCE_MUL)
#define APPLY(at, from) ST_T(y, at, LD_T(y, at) * LD_T(u, from))
#elif defined(REDUCE_MAX) || defined(REDUCE_MIN)
#ifdef REDUCE_MAX
#define PICK MAX_NAN
#else
#define PICK MIN_NAN
#endif
#define APPLY(at, from) \
  { \
    const T_ACC old = LD_T(y, at), new_ = LD_T(u, from); \
    ST_T(y, at, PICK(old, new_)); \
  }
#else
#define APPLY(at, from) y[at] = u[from]
#endif

#if defined(SCATTER_ELEMENTS)
/* Lanes are the places of the indices outside of the axis; n<d> are their sizes, s<d> and t<d> their strides in the data
 * and in the indices. The innermost lanes are a row when they are contiguous on both sides. */
ROW_KERNEL scatter_elements(INPUT(I, indices), INPUT(T, u), TENSOR(T, y), const i64 lanes, const i64 span,
                            const i64 size, const i64 along, const i64 count, const i64 step, ROW_PARAMS PARAMS) {
  OPEN_IN(I, indices);
  OPEN_IN(T, u);
  OPEN(T, y);
  const i64 n[RANK] = LIST_N;
  const i64 s[RANK] = LIST_S;
  const i64 t[RANK] = LIST_T;
  EACH_ROW(row) {
    const i64 part = (i64)row / lanes;
    const i64 low = part * span;
    const i64 high = low + span < size ? low + span : size;
    i64 rest = (i64)row - part * lanes;
    i64 to = 0, from = 0;
    UNROLL
    for (i32 d = RANK - 1; d >= 0; d--) {
      const i64 at = rest % n[d];
      rest /= n[d];
      to += at * s[d];
      from += at * t[d];
    }
    for (i64 j = 0; j < count; j++, from += step) {
      EACH(i) {
        i64 k = (i64)indices[from + i];
        k = k < 0 ? k + size : k;
        if (k >= low && k < high) APPLY(to + k * along + i, from + i);
      }
    }
  }
}

#elif defined(SCATTER_ND)
/* The data is (n0, n1, ..., inner), t<d> the number of rows in a step of dimension d; the indices are (count, DEPTH). */
ROW_KERNEL scatter_nd(INPUT(I, indices), INPUT(T, u), TENSOR(T, y), const i64 span, const i64 count,
                      ROW_PARAMS PARAMS) {
  OPEN_IN(I, indices);
  OPEN_IN(T, u);
  OPEN(T, y);
  const i64 n[RANK] = LIST_N;
  const i64 t[RANK] = LIST_T;
  EACH_ROW(row) {
    const i64 low = (i64)row * span;
    for (i64 j = 0; j < count; j++) {
      i64 target = 0;
      i32 inside = 1;
      UNROLL
      for (i32 d = 0; d < DEPTH; d++) {
        i64 k = (i64)indices[j * DEPTH + d];
        k = k < 0 ? k + n[d] : k;
        inside = inside && k >= 0 && k < n[d];
        target += k * t[d];
      }
      if (inside && target >= low && target < low + span) {
        EACH(i) APPLY(target * inner + i, j * inner + i);
      }
    }
  }
}

#elif defined(TENSOR_SCATTER)
/* The data is (batch, middle, size, inner), the updates (batch, middle, count, inner). */
ROW_KERNEL tensor_scatter(OFFSETS INPUT(T, u), TENSOR(T, y), const i64 middle, const i64 size, const i64 count,
                          ROW_PARAMS) {
  OPEN_OFFSETS
  OPEN_IN(T, u);
  OPEN(T, y);
  EACH_ROW(row) {
    const i64 block = (i64)row / count;
    i64 k = OFFSET(block / middle) + ((i64)row - block * count);
    if (CIRCULAR) k = (k % size + size) % size;
    if (k >= 0 && k < size) {
      EACH(i) y[(block * size + k) * inner + i] = u[(i64)row * inner + i];
    }
  }
}
#endif
