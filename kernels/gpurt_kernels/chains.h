/* Elementwise nodes around a kernel: its data are a tensor x of T, or what gpurt.device.prologue computes of others where
 * they are read; a result is stored as it is, or as gpurt.device.epilogue makes it.
 *
 * Of the data a slice is [r, inner], columns lie side by side; ROW* is for inner = 1. Results are at place e.
 */
#ifdef PROLOGUE
#define DATA_PARAM PROLOGUE_PARAMS
#define OPEN_DATA PROLOGUE_OPEN
#define SLICE(o, size) PROLOGUE_SLICE((i64)(o))
#define ROW1(k) prologue1(k, 0 PROLOGUE_PASS)
#define ROW8(k) prologue8(k, 0 PROLOGUE_PASS)
#define AT1(k, c) prologue1(k, c PROLOGUE_PASS)
#define AT8(k, c) prologue8(k, c PROLOGUE_PASS)
#else
#define DATA_PARAM INPUT(T, x),
#define OPEN_DATA OPEN_IN(T, x)
#define SLICE(o, size) const GLOBAL T *p = x + (o) * (size)
#define ROW1(k) LD_T(p, k)
#define ROW8(k) LD8_T(p, k)
#define AT1(k, c) LD_T(p, (k) * inner + (c))
#define AT8(k, c) LD8_T(p, (k) * inner + (c))
#endif
#ifdef EPILOGUE
#define DONE1(v, e) epilogue1(v, e_first + (e)EPILOGUE_PASS)
#define DONE8(v, e) epilogue8(v, e_first + (e)EPILOGUE_PASS)
#else
#define EPILOGUE_PARAMS
#define EPILOGUE_OPEN
#define DONE1(v, e) (v)
#define DONE8(v, e) (v)
#endif
