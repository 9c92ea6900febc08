/* One launch for many kernels. Each group of this kernel walks the table of launches, WORDS words each:
 *
 *   kernel, position of its first parameter, groups along x, y, z
 *
 * The groups of a launch are cut into as many parts as there are walkers; a walker takes its own part in a few pieces
 * and then pieces of what others have left. It goes on to the next launch when all groups are done. Whoever waits, waits
 * for groups that run, so that it does not matter how many walkers are there at a time.
 *
 * counters: for each launch a line of 16 i32 with the number of groups done, and one for each walker with the groups
 * that were taken of its part; before them a line with the number of walkers that have left. The last one to leave
 * sets all to zero.
 */
#define LINE 16
#define PIECES 4

#if defined(__has_builtin)
#if __has_builtin(__builtin_ia32_pause)
#define PAUSE __builtin_ia32_pause()
#endif
#endif
#ifndef PAUSE
#define PAUSE
#endif

#define CASE(number, function, ...)                                                                     \
  case number:                                                                                          \
    for (; i < stop; i++) function(i % nx, i / nx % ny, i / nx / ny, nx, ny, nz, __VA_ARGS__); \
    break;

static void run_groups(const i32 kernel_number, GLOBAL const u64 *p, i32 i, const i32 stop, const i32 nx, const i32 ny,
                       const i32 nz) {
  switch (kernel_number) { CASES }
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void persistent(
    INPUT(u64, table), const i64 params, const i32 first, const i32 count, __global volatile int *counters_base,
    const i64 counters_at) {
  OPEN_IN(u64, table);
  __global volatile int *const counters = counters_base + counters_at;
  const i32 walkers = (i32)get_num_groups(0), walker = (i32)get_group_id(0), lines = (1 + walkers) * LINE;
  for (i32 launch = 0; launch < count; launch++) {
    GLOBAL const u64 *t = table + (i64)(first + launch) * WORDS;
    const i32 nx = (i32)t[2], ny = (i32)t[3], nz = (i32)t[4], n = nx * ny * nz;
    __global volatile int *const done = counters + LINE + (i64)launch * lines;
    i32 mine = 0;
    for (i32 other = 0; other < walkers; other++) {
      const i32 part = (walker + other) % walkers;
      const i32 begin = (i32)((i64)n * part / walkers), size = (i32)((i64)n * (part + 1) / walkers) - begin;
      const i32 piece = size > PIECES ? (size + PIECES - 1) / PIECES : 1;
      __global volatile int *const taken = done + (1 + part) * LINE;
      for (;;) {
        if (other && *taken >= size) break;
        const i32 at = atomic_add(taken, piece);
        if (at >= size) break;
        const i32 stop = at + piece < size ? at + piece : size;
        run_groups((i32)t[0], table + params + t[1], begin + at, begin + stop, nx, ny, nz);
        mine += stop - at;
      }
    }
    mem_fence(CLK_GLOBAL_MEM_FENCE);
    if (mine) atomic_add(done, mine);
    while (*done < n) PAUSE;
    atomic_or(done, 0); /* what others wrote before is seen after this */
    mem_fence(CLK_GLOBAL_MEM_FENCE);
  }
  if (atomic_inc(counters) == walkers - 1) {
    for (i32 launch = 0; launch < count; launch++)
      for (i32 line = 0; line <= walkers; line++) counters[LINE + (i64)launch * lines + line * LINE] = 0;
    counters[0] = 0;
    mem_fence(CLK_GLOBAL_MEM_FENCE);
  }
}
