/* Gather, GatherElements, GatherND: reads at indices that lie in device memory. After rows.h; T is an unsigned type of
 * the element's size, I the type of the indices. Indices out of range are clamped. ONE_BATCH is 1 where no dimension lies before the indexed ones,
 * which saves each row a division. */

/* An index counted from the end is negative; one that is out of range reads the nearest element that there is. */
FN i64 clamp_index(i64 k, const i64 n) {
  k = k < 0 ? k + n : k;
  return k < 0 ? 0 : k >= n ? n - 1 : k;
}

#if defined(GATHER)
/* x is (outer, n, inner), the indices m, y (outer, m, inner). */
ROW_KERNEL gather(INPUT(T, x), INPUT(I, indices), TENSOR(T, y), const i64 n, const i64 m, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(I, indices);
  OPEN(T, y);
  EACH_ROW(row) {
    const i64 outer = ONE_BATCH ? 0 : row / (POS)m;
    const i64 k = clamp_index((i64)indices[row - outer * m], n);
    GLOBAL const T *p = x + (outer * n + k) * inner;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) q[i] = p[i];
  }
}

#elif defined(GATHER_LAST)
/* The same with an inner size of 1: the indices are the row. */
ROW_KERNEL gather(INPUT(T, x), INPUT(I, indices), TENSOR(T, y), const i64 n, ROW_PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(I, indices);
  OPEN(T, y);
  EACH_ROW(row) {
    GLOBAL const T *p = x + row * n;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) q[i] = p[clamp_index((i64)indices[i], n)];
  }
}

#elif defined(GATHER_ELEMENTS)
/* Dimension d of the indices has n<d> elements, s<d> is its stride in the data (0 for the axis). The last dimension is
 * the row: `last` is its stride in the data, and the axis has `size` elements of stride `along`. */
ROW_KERNEL gather_elements(INPUT(T, x), INPUT(I, indices), TENSOR(T, y), const i64 size, const i64 along,
                           const i64 last, ROW_PARAMS PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(I, indices);
  OPEN(T, y);
  const i64 n[RANK] = LIST_N;
  const i64 s[RANK] = LIST_S;
  EACH_ROW(row) {
    POS rest = row;
    i64 from = 0;
    UNROLL
    for (i32 d = RANK - 1; d >= 0; d--) {
      const POS up = rest / (POS)n[d];
      from += (rest - up * n[d]) * s[d];
      rest = up;
    }
    GLOBAL const I *k = indices + (i64)row * inner;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) q[i] = x[from + i * last + clamp_index((i64)k[i], size) * along];
  }
}

#elif defined(GATHER_ND)
/* x is (batch, n0, n1, ..., inner), s<d> the stride of dimension d; the indices are (batch, per_batch, DEPTH). */
ROW_KERNEL gather_nd(INPUT(T, x), INPUT(I, indices), TENSOR(T, y), const i64 per_batch, const i64 batch_size,
                     ROW_PARAMS PARAMS) {
  OPEN_IN(T, x);
  OPEN_IN(I, indices);
  OPEN(T, y);
  const i64 n[RANK] = LIST_N;
  const i64 s[RANK] = LIST_S;
  EACH_ROW(row) {
    i64 from = ONE_BATCH ? 0 : (i64)(row / (POS)per_batch) * batch_size;
    UNROLL
    for (i32 d = 0; d < DEPTH; d++) from += clamp_index((i64)indices[(i64)row * DEPTH + d], n[d]) * s[d];
    GLOBAL const T *p = x + from;
    GLOBAL T *q = y + (i64)row * inner;
    EACH(i) q[i] = p[i];
  }
}
#endif
