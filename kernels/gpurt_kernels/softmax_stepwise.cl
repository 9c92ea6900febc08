/* Softmax of narrow floats over short rows, rounded to their type after each step, as ONNX's function body has it: one
   item a row. Of bfloat16 each addition is rounded, of float16 only the sum. What was rounded is kept in the result's
   own memory. */
#if IS_BF16
#define READ(p, i) bf16_to_float((p)[i])
#define WRITE(p, i, v) ((p)[i] = bf16_bits(v))
#define ADDED(v) bf16_to_float(bf16_bits(v))
#define SUMMED(v) (v)
#else
#define READ(p, i) LD_HALF(p, i)
#define WRITE(p, i, v) ST_HALF(p, i, v)
#define ADDED(v) (v)
#define SUMMED(v) round_half(v)
#endif
KFN(BLOCK, 1, 1) softmax_stepwise(INPUT(T, x), TENSOR(T, y), const i64 rows, const i32 n, const i64 step) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 row = INDEX(0);
  if (row >= rows) return;
  const i64 first = row / step * step * n + row % step;
  x += first;
  y += first;
  float most = READ(x, 0);
  for (i32 i = 1; i < n; i++) {
    const float v = READ(x, i * step);
    most = v > most || v != v ? v : most;
  }
  float sum = 0.0f;
  for (i32 i = 0; i < n; i++) {
    WRITE(y, i * step, READ(x, i * step) - most);
    WRITE(y, i * step, exp(READ(y, i * step)));
    sum = ADDED(sum + READ(y, i * step));
  }
  sum = SUMMED(sum);
  for (i32 i = 0; i < n; i++) WRITE(y, i * step, READ(y, i * step) / sum);
}
