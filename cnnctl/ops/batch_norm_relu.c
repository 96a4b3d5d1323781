// Batch norm, an addition and ReLU in training, forward and backward: bfloat16 on a CPU, rows of C
// channels (channels_last). Sums are of chunks of rows in float and over chunks, in order, in
// double: the bits depend on no number of threads.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

enum { WIDE = 256, CHUNK = 1 << 15 }; // values of a wide row at most; of a chunk about

static inline float wider(bf16 half) {
  uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static inline bf16 rounded(float value) { // to the nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)nearest;
}

static inline bf16 passed(bf16 gradient, bf16 result) { // where ReLU's result is not 0
  return result & 0x7fff ? gradient : 0;
}

// How (rows, C) is walked: several rows of few channels at a time, as (rows / k, k * C).
typedef struct {
  long rows, width, step, chunks;
  int threads;
} Walk;

static Walk walk_of(long rows, long channels, int threads) {
  long k = 1;
  while (2 * k * channels <= WIDE && rows % (2 * k) == 0) k *= 2;
  long step = CHUNK / (k * channels) > 0 ? CHUNK / (k * channels) : 1;
  return (Walk){rows / k, k * channels, step, (rows / k + step - 1) / step, threads};
}

static long end_of(const Walk *walk, long chunk) {
  long stop = (chunk + 1) * walk->step;
  return (stop < walk->rows ? stop : walk->rows) * walk->width;
}

// (C,) two totals of each channel: over all chunks, and over what stands side by side in a row.
static void total(const Walk *walk, const float *parts, long channels, double *sums) {
  memset(sums, 0, 2 * channels * sizeof(double));
  for (long i = 0; i < walk->chunks; i++)
    for (long kind = 0; kind < 2; kind++)
      for (long j = 0; j < walk->width; j++)
        sums[kind * channels + j % channels] += parts[(2 * i + kind) * walk->width + j];
}

// Of each chunk: sum of x - pivot, and of its square. The pivot keeps the variance of values that
// are far from 0 exact.
static void moments(const Walk *walk, const bf16 *x, const float *restrict pivot, float *parts) {
  long width = walk->width;
#pragma omp parallel for num_threads(walk->threads) schedule(static)
  for (long i = 0; i < walk->chunks; i++) {
    float *restrict sum = parts + i * 2 * width, *restrict square = sum + width;
    memset(sum, 0, 2 * width * sizeof(float));
    for (long at = i * walk->step * width, stop = end_of(walk, i); at < stop; at += width)
      for (long j = 0; j < width; j++) {
        float value = wider(x[at + j]) - pivot[j];
        sum[j] += value;
        square[j] += value * value;
      }
  }
}

// y = max(0, x * scale + shift + added); ``added`` may be null.
static void normalise(const Walk *walk, const bf16 *x, const bf16 *added, bf16 *y,
                      const float *restrict scale, const float *restrict shift) {
  long width = walk->width;
#pragma omp parallel for num_threads(walk->threads) schedule(static)
  for (long i = 0; i < walk->chunks; i++)
    for (long at = i * walk->step * width, stop = end_of(walk, i); at < stop; at += width) {
      const bf16 *restrict in = x + at, *restrict more = added ? added + at : 0;
      bf16 *restrict out = y + at;
      if (more)
        for (long j = 0; j < width; j++) {
          float value = wider(in[j]) * scale[j] + shift[j] + wider(more[j]);
          out[j] = rounded(value < 0 ? 0 : value);
        }
      else
        for (long j = 0; j < width; j++) {
          float value = wider(in[j]) * scale[j] + shift[j];
          out[j] = rounded(value < 0 ? 0 : value);
        }
    }
}

// x, added, y (rows, C); weight, bias (C,) -> y; mean, biased variance and 1 / deviation (C,).
// Returns 0, or 1 where there is no memory.
int forward(const bf16 *x, const bf16 *added, bf16 *y, long rows, long channels,
            const float *weight, const float *bias, double eps, float *mean, float *variance,
            float *inverse, int threads) {
  Walk walk = walk_of(rows, channels, threads);
  long width = walk.width;
  float *parts = malloc((walk.chunks * 2 + 3) * width * sizeof(float));
  double *sums = malloc(2 * channels * sizeof(double));
  if (!parts || !sums) return free(parts), free(sums), 1;
  float *pivot = parts + walk.chunks * 2 * width, *scale = pivot + width, *shift = scale + width;
  for (long j = 0; j < width; j++) pivot[j] = wider(x[j % channels]);
  moments(&walk, x, pivot, parts);
  total(&walk, parts, channels, sums);
  for (long c = 0; c < channels; c++) {
    double centre = sums[c] / rows, spread = sums[channels + c] / rows - centre * centre;
    mean[c] = pivot[c] + centre;
    variance[c] = spread < 0 ? 0 : spread;
    inverse[c] = 1 / sqrt(variance[c] + eps);
    for (long j = c; j < width; j += channels) {
      scale[j] = weight[c] * inverse[c];
      shift[j] = bias[c] - mean[c] * scale[j];
    }
  }
  normalise(&walk, x, added, y, scale, shift);
  return free(parts), free(sums), 0;
}

// Of each chunk: sum of g and of g * (x - mean), where g is the gradient that ReLU passes; ``kept``
// gets g where it is not null.
static void products(const Walk *walk, const bf16 *dy, const bf16 *y, const bf16 *x, bf16 *kept,
                     const float *restrict mean, float *parts) {
  long width = walk->width;
#pragma omp parallel for num_threads(walk->threads) schedule(static)
  for (long i = 0; i < walk->chunks; i++) {
    float *restrict sum = parts + i * 2 * width, *restrict product = sum + width;
    memset(sum, 0, 2 * width * sizeof(float));
    for (long at = i * walk->step * width, stop = end_of(walk, i); at < stop; at += width) {
      const bf16 *restrict d = dy + at, *restrict out = y + at, *restrict in = x + at;
      for (long j = 0; j < width; j++) {
        float g = wider(passed(d[j], out[j]));
        sum[j] += g;
        product[j] += g * (wider(in[j]) - mean[j]);
      }
      if (kept) {
        bf16 *restrict to = kept + at;
        for (long j = 0; j < width; j++) to[j] = passed(d[j], out[j]);
      }
    }
  }
}

// dx = g * scale + (x - mean) * slope + shift
static void pull_back(const Walk *walk, const bf16 *dy, const bf16 *y, const bf16 *x, bf16 *dx,
                      const float *restrict mean, const float *restrict scale,
                      const float *restrict slope, const float *restrict shift) {
  long width = walk->width;
#pragma omp parallel for num_threads(walk->threads) schedule(static)
  for (long i = 0; i < walk->chunks; i++)
    for (long at = i * walk->step * width, stop = end_of(walk, i); at < stop; at += width) {
      const bf16 *restrict d = dy + at, *restrict out = y + at, *restrict in = x + at;
      bf16 *restrict to = dx + at;
      for (long j = 0; j < width; j++) {
        float g = wider(passed(d[j], out[j]));
        to[j] = rounded(g * scale[j] + (wider(in[j]) - mean[j]) * slope[j] + shift[j]);
      }
    }
}

// The gradients of x, of what was added (null where nothing was), of weight and of bias.
// Returns 0, or 1 where there is no memory.
int backward(const bf16 *dy, const bf16 *y, const bf16 *x, bf16 *dx, bf16 *dadded, long rows,
             long channels, const float *weight, const float *mean, const float *inverse,
             float *dweight, float *dbias, int threads) {
  Walk walk = walk_of(rows, channels, threads);
  long width = walk.width;
  float *parts = malloc((walk.chunks * 2 + 4) * width * sizeof(float));
  double *sums = malloc(2 * channels * sizeof(double));
  if (!parts || !sums) return free(parts), free(sums), 1;
  float *centre = parts + walk.chunks * 2 * width, *scale = centre + width;
  float *slope = scale + width, *shift = slope + width;
  for (long j = 0; j < width; j++) centre[j] = mean[j % channels];
  products(&walk, dy, y, x, dadded, centre, parts);
  total(&walk, parts, channels, sums);
  for (long c = 0; c < channels; c++) {
    double by = (double)weight[c] * inverse[c];
    dbias[c] = sums[c];
    dweight[c] = sums[channels + c] * inverse[c];
    for (long j = c; j < width; j += channels) {
      scale[j] = by;
      slope[j] = -by * inverse[c] * inverse[c] * sums[channels + c] / rows;
      shift[j] = -by * sums[c] / rows;
    }
  }
  pull_back(&walk, dy, y, x, dx, centre, scale, slope, shift);
  return free(parts), free(sums), 0;
}
