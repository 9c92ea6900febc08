/* The gates of the recurrent layers for V, a float or a vector of floats. ACT_F, ACT_G and ACT_H (direction, x) are the
   activations of the node, CLIP(x) its clip; d is the direction, 0 or 1. */

#if GATES == 4
/* Input, output, forget and cell gate before activation; `cell` is the old cell state and becomes the new one. */
FN V lstm_cell(const i32 d, const V gi, const V go, const V gf, const V gc, const V pi, const V po, const V pf, V *cell) {
  const V old = *cell;
  const V i = ACT_F(d, CLIP(gi + pi * old));
#if INPUT_FORGET
  const V f = 1.0f - i;
#else
  const V f = ACT_F(d, CLIP(gf + pf * old));
#endif
  const V now = f * old + i * ACT_G(d, CLIP(gc));
  const V o = ACT_F(d, CLIP(go + po * now));
  *cell = now;
  return o * ACT_H(d, now);
}
#elif GATES == 3
/* The new state from the update gate z, already activated, and the candidate before activation. */
FN V gru_cell(const i32 d, const V z, const V candidate, const V old) {
  const V h = ACT_G(d, CLIP(candidate));
  return (1.0f - z) * h + z * old;
}
#endif

/* Step s of direction d reads and writes this time step, or none (-1) where a row's sequence is over. */
FN i32 time_of(const i32 s, const i32 length, const i32 reversed) {
  return s >= length ? -1 : reversed ? length - 1 - s : s;
}
