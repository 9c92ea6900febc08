/* ScatterElements, ScatterND, TensorScatter: writes into a copy of the data. After rows.h.
 *
 * Updates that meet in one element are applied by one item in the order of the indices, so every result is
 * deterministic and equal to a serial loop's. Where too few items would come of that, the data is cut into parts: each
 * item looks at all the indices and takes those of its own part. With many indices that takes a GPU too long: see LINKED.
 * Indices out of range are skipped.
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

#elif defined(LINKED)
/* The way of GPUs with many indices: `total` items, one for each, instead of a loop over all of them. An item's place in
 * the indices is j, `target` the place that it writes to, negative where the index is out of range.
 *
 *   scatter_clear: head[target] = -1, only for targets that are written to
 *   scatter_link:  head[target] = the last j of the target, or the start of a list of all its j: link[j] is the next one
 *   scatter_write: the one item of a target whose j is the head writes it
 *
 * Lists come in any order, so the writing item picks their smallest, the next one, and so on. That is quadratic: when
 * a list is long it looks at all the indices that may lead to its target. They begin at FIRST(j), STEP apart. */

#ifdef LINKED_ELEMENTS
#define PLACES const i64 size, const i64 along, const i32 count, const i32 step
#define FIRST(j) ((j) - (j) / step % count * step)
#define STEP step
#define FIND_TARGET(target, j) \
  i64 target; \
  { \
    i64 k = (i64)indices[j]; \
    k = k < 0 ? k + size : k; \
    i32 rest = j; \
    target = k * along; \
    UNROLL \
    for (i32 d = RANK - 1; d >= 0; d--) { \
      const i32 up = rest / (i32)n[d]; \
      target += (rest - up * (i32)n[d]) * t[d]; \
      rest = up; \
    } \
    if (k < 0 || k >= size) target = -1; \
  }
#else
#define PLACES const i32 count
#define FIRST(j) 0
#define STEP 1
#define FIND_TARGET(target, j) \
  i64 target = 0; \
  { \
    i32 inside = 1; \
    UNROLL \
    for (i32 d = 0; d < DEPTH; d++) { \
      i64 k = (i64)indices[(i64)(j)*DEPTH + d]; \
      k = k < 0 ? k + n[d] : k; \
      inside = inside && k >= 0 && k < n[d]; \
      target += k * t[d]; \
    } \
    if (!inside) target = -1; \
  }
#endif
#define OPEN_PLACES \
  OPEN_IN(I, indices); \
  OPEN(i32, head); \
  OPEN(i32, link); \
  const i64 n[RANK] = LIST_N; \
  const i64 t[RANK] = LIST_T;

ROW_KERNEL scatter_clear(INPUT(I, indices), TENSOR(i32, head), TENSOR(i32, link), PLACES, ROW_PARAMS PARAMS) {
  OPEN_PLACES
  EACH_ROW(row) {
    const i32 j = (i32)row;
    FIND_TARGET(target, j)
    if (target >= 0) head[target] = -1;
  }
}

ROW_KERNEL scatter_link(INPUT(I, indices), TENSOR(i32, head), TENSOR(i32, link), PLACES, ROW_PARAMS PARAMS) {
  OPEN_PLACES
  EACH_ROW(row) {
    const i32 j = (i32)row;
    FIND_TARGET(target, j)
    if (target >= 0) {
#ifdef REDUCE_NONE
      ATOMIC_MAX(head + target, j);
#else
      link[j] = ATOMIC_SWAP(head + target, j);
#endif
    }
  }
}

ROW_KERNEL scatter_write(INPUT(I, indices), TENSOR(i32, head), TENSOR(i32, link), INPUT(T, u), TENSOR(T, y), PLACES,
                         ROW_PARAMS PARAMS) {
  OPEN_PLACES
  OPEN_IN(T, u);
  OPEN(T, y);
  EACH_ROW(row) {
    const i32 j = (i32)row;
    FIND_TARGET(target, j)
    if (target >= 0 && head[target] == j) {
      EACH(i) {
        const i64 to = target * inner + i;
#ifdef REDUCE_NONE
        APPLY(to, (i64)j * inner + i);
#else
        i64 length = 0;
        for (i32 k = j; k >= 0; k = link[k]) length++;
        if (length * length <= count / 8 + 16) {
          for (i32 done = -1; length > 0; length--) {
            i32 next = 0x7fffffff;
            for (i32 k = j; k >= 0; k = link[k])
              if (k > done && k < next) next = k;
            APPLY(to, (i64)next * inner + i);
            done = next;
          }
        } else {
          i32 place = FIRST(j); /* not k, which FIND_TARGET declares */
          for (i32 seen = 0; seen < count; seen++, place += STEP) {
            FIND_TARGET(other, place)
            if (other == target) APPLY(to, (i64)place * inner + i);
          }
        }
#endif
      }
    }
  }
}
#endif
