/* A pass of a discrete Fourier transform (Stockham's, which sorts itself). After rows.h.
 *
 * n elements along the axis, radix r, runs of `run` elements that are transformed already: output (block, u, j) of
 * (n / (run r), r, run) is the sum over t of the inputs j + run block + t n / r times a root of unity, whose exponent is
 * linear in t. A pass with radix n is the plain sum. Each item makes one output: radices are small, and no two items
 * need the same registers. roots: (n, 2), cosine and sine, of the sign wanted.
 *
 * FIRST: the input is a tensor of T with PARTS numbers an element, of which `given` are there; the others are zero.
 * HERMITIAN: it is the first half of a symmetric spectrum. WINDOW: elements have weights. LAST: the output is a tensor
 * of D, of which `kept` elements are wanted, with a factor; REAL: only their real parts. In between are pairs of A.
 * A row of the input is row / frames * lead + row % frames * hop numbers in; `across` neighbours have axes of their own.
 */
#ifdef FIRST
#define IN T
#else
#define IN A
#endif
#ifdef LAST
#define OUT D
#else
#define OUT A
#endif

ROW_KERNEL dft_pass(INPUT(IN, x), INPUT(A, roots),
#ifdef WINDOW
                    INPUT(T, window),
#endif
                    TENSOR(OUT, y), const i32 n, const i32 radix, const i32 run, const i32 given, const i32 kept,
                    const i64 across, const i64 frames, const i64 lead, const i64 hop, const A factor, ROW_PARAMS) {
  OPEN_IN(IN, x);
  OPEN_IN(A, roots);
#ifdef WINDOW
  OPEN_IN(T, window);
#endif
  OPEN(OUT, y);
  const i32 far = n / radix; /* between the inputs of a sum */
  EACH_ROW(row) {
#ifdef FIRST
    const GLOBAL T *p = x + (row / frames * lead + row % frames * hop);
#else
    const GLOBAL A *p = x + (i64)row * n * across * 2;
#endif
    EACH(i) {
      const i32 k = (i32)(i / across);
      const i64 beside = i - k * across;
      const i32 block = k / (run * radix), u = k / run % radix, j = k % run;
      const i32 begin = block * run + j;
      i32 step = j * (far / run) + u * far;
      step = step >= n ? step - n : step;
      i32 e = 0;
      A re = 0, im = 0;
      for (i32 t = 0; t < radix; t++) {
        i32 at = begin + t * far;
        A a, b = 0;
#ifdef FIRST
        A sign = 1;
#ifdef HERMITIAN
        if (at > n / 2) {
          at = n - at;
          sign = -1;
        }
#endif
        if (at < given) {
          a = LD_T(p, (at * across + beside) * PARTS);
          if (PARTS == 2) b = sign * (A)LD_T(p, (at * across + beside) * PARTS + 1);
#ifdef WINDOW
          const A weight = LD_T(window, at);
          a *= weight;
          b *= weight;
#endif
        } else {
          a = 0;
        }
#else
        a = p[(at * across + beside) * 2];
        b = p[(at * across + beside) * 2 + 1];
#endif
        const A c = roots[2 * e], s = roots[2 * e + 1];
        re += a * c - b * s;
        im += a * s + b * c;
        e += step;
        e = e >= n ? e - n : e;
      }
#ifdef LAST
      const i64 to = ((i64)row * kept + k) * across + beside;
#ifdef REAL
      ST_D(y, to, re * factor);
#else
      ST_D(y, 2 * to, re * factor);
      ST_D(y, 2 * to + 1, im * factor);
#endif
#else
      const i64 to = ((i64)row * n + k) * across + beside;
      y[2 * to] = re;
      y[2 * to + 1] = im;
#endif
    }
  }
}
