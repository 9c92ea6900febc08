/* Small kernels around quantisation: its parameters from the range of the data, and scales repeated over their blocks. */

/* Scale and zero point of DynamicQuantizeLinear from the least and the greatest element; 0 belongs to the range always.
   Where all elements are 0 any scale does. */
KFN(1, 1, 1) byte_range(INPUT(float, ends), TENSOR(float, scale), TENSOR(u8, zero), const i32 has_elements) {
  OPEN_IN(float, ends);
  OPEN(float, scale);
  OPEN(u8, zero);
  const float low = has_elements && ends[0] < 0.0f ? ends[0] : 0.0f;
  const float high = has_elements && ends[1] > 0.0f ? ends[1] : 0.0f;
  const float s = high > low ? (high - low) / 255.0f : 1.0f;
  const float z = -low / s;
  scale[0] = s;
  zero[0] = (u8)rint(z < 0.0f ? 0.0f : z > 255.0f ? 255.0f : z);
}

/* y[outer][length][inner] = x[outer][length / block, rounded up][inner] */
KFN(GROUP_SIZE, 1, 1) repeat_blocks(INPUT(T, x), TENSOR(T, y), const i64 n, const i64 length, const i64 inner, const i64 block) {
  OPEN_IN(T, x);
  OPEN(T, y);
  const i64 blocks = CEIL_DIV(length, block);
  const i64 begin = INDEX(0) * CHUNK;
  const i64 end = begin + CHUNK < n ? begin + CHUNK : n;
  for (i64 i = begin; i < end; i++) {
    const i64 row = i / inner;
    y[i] = x[(row / length * blocks + row % length / block) * inner + i % inner];
  }
}
