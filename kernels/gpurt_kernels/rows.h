/* Kernels over rows of `inner` elements, one text for both classes: an item of a CPU takes several rows, or a chunk of a
 * long one, an item of a GPU one element.
 *
 *   ROW_KERNEL name(INPUT(T, x), TENSOR(T, y), ROW_PARAMS) {
 *     OPEN_IN(T, x);
 *     OPEN(T, y);
 *     EACH_ROW(row) {
 *       ... what the whole row needs ...
 *       EACH(i) y[row * inner + i] = x[row * inner + i];
 *     }
 *   }
 */
#ifdef GP_CPU_CLASS
#define ROW_KERNEL KFN(1, 1, 1)
#define ROW_PARAMS const i64 rows, const i64 inner, const i64 per_item, const i64 chunk
#define EACH_ROW(row) \
  const i64 row_begin = GROUP(0) * per_item; \
  const i64 row_end = row_begin + per_item < rows ? row_begin + per_item : rows; \
  const i64 begin = GROUP(1) * chunk; \
  const i64 end = begin + chunk < inner ? begin + chunk : inner; \
  for (i64 row = row_begin; row < row_end; row++)
#ifdef INNER /* the row's length as a constant: in a short row the loop would cost more than what it does */
#define EACH(i) \
  UNROLL \
  for (i64 i = 0; i < INNER; i++)
#else
#define EACH(i) for (i64 i = begin; i < end; i++)
#endif
#else
#define ROW_KERNEL KFN(256, 1, 1)
#define ROW_PARAMS const POS rows, const POS inner
#define EACH_ROW(row) \
  const POS position = (POS)INDEX(0); \
  const POS row = position / inner; \
  const POS column = position - row * inner; \
  if (row < rows)
#define EACH(i) for (POS i = column, once = 1; once; once = 0)
#endif

/* Loops with a constant count: PoCL does not unroll them unasked, and then neither vectorizes what is around them nor
 * keeps small arrays in registers. */
#define UNROLL _Pragma("unroll")
