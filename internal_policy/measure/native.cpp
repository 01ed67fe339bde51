// Multiply hidden states by the unembedding, a tile of the vocabulary at a time, and fold each tile's logits into the
// statistics of the policies while they are in the processor's cache. native.py builds, calls and explains this.
// bfloat16 factors are multiplied as they are where the processor can, and otherwise everything is float32. A policy's
// sums are of u = z - max z, added up in float32 within a tile and in float64 over the tiles.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include "native_product.h"

namespace {

constexpr float LOWEST = -80.0f;  // as in metrics.py

// e^x for x from LOWEST to 0, to a relative 1e-7; NaN stays NaN
inline Vector exponential(Vector x) {
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number in the lowest bits
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  return p * reinterpret_cast<const Vector&>(power);
}

inline Vector raised(Vector x) { return x < LOWEST ? all(LOWEST) : x; }

}  // namespace

// The order of fields is that of `Job` in native.py.
struct Job {
  int64_t rows, positions, d_model, d_vocab, top_k, scaled, kl, weights_are, exact16, spread;
  const void* hidden;     // (rows, d_model), row = point * positions + position; the first `positions` are final
  const void* weight;     // (d_vocab, d_model): 0 float32, 1 bfloat16, 2 float16
  const float* bias;      // (d_vocab,) or null
  const int64_t* target;  // (positions,)
  const float* aim;       // (rows,): a token ranks above the target if its logit is larger than this; or null
  const float* scale;     // (scaled,): of the rows from `positions` on
  double* sums;           // (rows, SUMS), kept from slice to slice
  float* top;             // (rows, top_k) logits in falling order
  int64_t* ids;           // (rows, top_k)
  int64_t* filled;        // (rows,): how many of these there are
  float factor, divisor, cap;  // cap is 0 where there is none
};

namespace {

// Columns of `sums`; three belong to the state multiplied by its scale. HALF and TWO are the sums of e^(u / 2) and
// e^(2 u), and MEAN and SQUARES are of the logits: their mean, and the sum of their squared distances from it.
enum { LARGEST, S, T, CROSS, ABOVE, TARGET, SCALED_LARGEST, SCALED_S, SCALED_T, HALF, TWO, MEAN, SQUARES, SUMS };

struct Final {  // of a tile: what the other policies of the token need to measure KL
  double fade, shrink, s_before;
};

Vector transformed(const Job& job, Vector z) {
  if (job.factor != 1) z = z * job.factor;
  if (job.divisor != 1) z = z / job.divisor;
  if (job.cap > 0) {
    const Vector x = z / job.cap, size = x < 0 ? -x : x;
    const Vector e = exponential(raised(-2.0f * size)), tanh = (1.0f - e) / (1.0f + e);
    z = (x < 0 ? -tanh : tanh) * job.cap;
  }
  return z;
}

void pack(const Job& job, int64_t first, int64_t columns, uint32_t* packed) {
  const int64_t depth = job.exact16 ? job.d_model / 2 : job.d_model, start = first * depth;
  if (job.exact16 || job.weights_are == 0)
    pack(static_cast<const uint32_t*>(job.weight) + start, columns, depth, packed);
  else if (job.weights_are == 1)
    pack(static_cast<const Bfloat16*>(job.weight) + start, columns, depth, packed);
  else
    pack(static_cast<const Float16*>(job.weight) + start, columns, depth, packed);
}

float largest(const float* z, int64_t n) {  // ignores NaN
  Vector most = all(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < n; j += LANES) most = at(z + j) > most ? at(z + j) : most;
  float part = most[0];
  for (int i = 1; i < LANES; i++) part = most[i] > part ? most[i] : part;
  return part;
}

struct Sums {
  Vector s, t, cross;
};

struct More {  // sums for SPREAD alone, which others don't pay for
  Vector half, two;
};

// Adds LANES logits, of which the first `valid` count; replaces them by e^u for a final policy
template <bool CROSS_TERM, bool KEPT, bool SPREAD, bool TAIL>
inline void add(Sums& sums, More& more, float* z, float* kept, Vector maximum, int64_t valid) {
  Vector u = at(z) - maximum;
  if (TAIL)
    for (int i = valid; i < LANES; i++) u[i] = 0;
  const Vector x = raised(u);
  Vector half = SPREAD ? exponential(0.5f * x) : Vector{}, weights = SPREAD ? half * half : exponential(x);
  if (TAIL)
    for (int i = valid; i < LANES; i++) weights[i] = half[i] = 0;
  if (SPREAD) more.half += half, more.two += weights * weights;
  sums.s += weights;
  sums.t += weights * x;
  if (CROSS_TERM) sums.cross += at(kept) * u;
  if (KEPT) at(kept) = weights;
}

template <bool CROSS_TERM, bool KEPT, bool SPREAD = false>
Sums added(float* z, float* kept, float maximum, int64_t n, More* found = nullptr) {
  Sums sums{};
  More more{};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) add<CROSS_TERM, KEPT, SPREAD, false>(sums, more, z + j, kept + j, all(maximum), 0);
  if (j < n) add<CROSS_TERM, KEPT, SPREAD, true>(sums, more, z + j, kept + j, all(maximum), n - j);
  if (SPREAD) *found = more;
  return sums;
}

// Adds a tile's logits to the mean and squares of the `seen` before them, by their distance from the tile's own mean.
void disperse(double* sums, const float* z, int64_t seen, int64_t n) {
  const float pivot = z[0];  // smaller numbers have smaller rounding errors
  double total = 0, squares = 0;
  Vector part{};
  int64_t j = 0;
  for (; j + LANES <= n; j += LANES) part += at(z + j) - pivot;
  for (total = sum(part); j < n; j++) total += z[j] - pivot;
  const double mean = pivot + total / n, apart = mean - sums[MEAN];
  part = Vector{};
  for (j = 0; j + LANES <= n; j += LANES) {
    const Vector x = (at(z + j) - pivot) - float(total / n);
    part += x * x;
  }
  for (squares = sum(part); j < n; j++) squares += (z[j] - mean) * (z[j] - mean);
  sums[SQUARES] += squares + apart * apart * seen * n / (seen + n);
  sums[MEAN] += apart * n / (seen + n);
}

// Rescales running sums to a maximum that may have risen, and returns how much lower the earlier one was.
Final risen(double* s, double* t, double* maximum, float next) {
  const double before = *maximum;
  *maximum = next > before ? next : before;
  const double shrink = before - *maximum, least = std::max(shrink, double(LOWEST)), fade = std::exp(least);
  const Final found{fade, shrink, *s};
  *t = fade * (*t + *s * least);
  *s *= fade;
  return found;
}

void keep(const Job& job, int64_t row, const float* z, int64_t first, int64_t n) {
  float* top = job.top + row * job.top_k;
  int64_t *ids = job.ids + row * job.top_k, &filled = job.filled[row];
  for (int64_t j = 0; j < n; j++) {
    const bool room = filled < job.top_k;
    if (!room && !(z[j] > top[job.top_k - 1])) continue;
    int64_t place = room ? filled++ : job.top_k - 1;
    for (; place && z[j] > top[place - 1]; place--) top[place] = top[place - 1], ids[place] = ids[place - 1];
    top[place] = z[j], ids[place] = first + j;
  }
}

// Folds the logits of one policy in; `z` has room for whole vectors, and is overwritten.
void fold(const Job& job, int64_t row, float* z, float* room, int64_t first, int64_t n, float* kept, Final* finals) {
  const int64_t token = row % job.positions, whole = (n + LANES - 1) / LANES * LANES;
  double* sums = job.sums + row * SUMS;
  for (int64_t j = n; j < whole; j++) z[j] = -std::numeric_limits<float>::infinity();
  if (row >= job.positions && row < job.positions + job.scaled) {
    const float scale = job.scale[row - job.positions];
    for (int64_t j = 0; j < whole; j += LANES) {
      const Vector x = at(z + j) * scale;
      at(room + j) = transformed(job, job.bias ? x + at(job.bias + first + j) : x);
    }
    for (int64_t j = n; j < whole; j++) room[j] = -std::numeric_limits<float>::infinity();
    risen(sums + SCALED_S, sums + SCALED_T, sums + SCALED_LARGEST, largest(room, whole));
    const Sums found = added<false, false>(room, kept, float(sums[SCALED_LARGEST]), n);
    sums[SCALED_S] += sum(found.s), sums[SCALED_T] += sum(found.t);
  }
  if (job.bias)
    for (int64_t j = 0; j < whole; j += LANES) at(z + j) += at(job.bias + first + j);
  const int64_t own = job.target[token] - first;
  if (own >= 0 && own < n) sums[TARGET] = z[own];
  if (job.aim) {
    Integers above{};
    const Vector aim = all(job.aim[row]);
    for (int64_t j = 0; j < whole; j += LANES) above -= at(z + j) > aim;
    for (int i = 0; i < LANES; i++) sums[ABOVE] += above[i];
  }
  float most = largest(z, whole);
  if (job.top_k && (job.filled[row] < job.top_k || most > job.top[(row + 1) * job.top_k - 1]))
    keep(job, row, z, first, n);
  if (job.factor != 1 || job.divisor != 1 || job.cap > 0) {
    for (int64_t j = 0; j < n; j += LANES) at(z + j) = transformed(job, at(z + j));
    most = transformed(job, all(most))[0];
  }
  if (job.spread) disperse(sums, z, first, n);
  const Final before = risen(sums + S, sums + T, sums + LARGEST, most);
  const float maximum = float(sums[LARGEST]);
  const bool is_final = row < job.positions, crosses = job.kl && !is_final;
  More more;
  Sums found;
  if (!job.spread)
    found = crosses           ? added<true, false>(z, kept, maximum, n)
            : job.kl          ? added<false, true>(z, kept, maximum, n)
                              : added<false, false>(z, kept, maximum, n);
  else
    found = crosses           ? added<true, false, true>(z, kept, maximum, n, &more)
            : job.kl          ? added<false, true, true>(z, kept, maximum, n, &more)
                              : added<false, false, true>(z, kept, maximum, n, &more);
  if (job.kl && is_final) finals[token] = before;
  if (crosses) {
    const Final& final = finals[token];
    sums[CROSS] = final.fade * (sums[CROSS] + final.s_before * before.shrink) + sum(found.cross);
  }
  sums[S] += sum(found.s), sums[T] += sum(found.t);
  if (!job.spread) return;
  sums[HALF] = std::sqrt(before.fade) * sums[HALF] + sum(more.half);
  sums[TWO] = before.fade * before.fade * sums[TWO] + sum(more.two);
}

}  // namespace

// Whether bfloat16 factors are multiplied as they are.
extern "C" int64_t multiplies_bfloat16() {
#if defined(__AVX512BF16__)
  return 1;
#else
  return 0;
#endif
}

// Folds in the vocabulary's entries from `start` to `end`, `tile` of them at a time. Returns 0, or 1 without memory.
extern "C" int64_t measure(const Job* given, int64_t start, int64_t end, int64_t tile) {
  const Job& job = *given;
  const int64_t depth = job.exact16 ? job.d_model / 2 : job.d_model;
  const int64_t panels = std::max<int64_t>(1, tile / PANEL), width = panels * PANEL;
  const auto multiply = job.exact16 ? product16 : product;
  const int64_t step = job.exact16 ? DEPTH16 : DEPTH;
  using Memory = std::unique_ptr<void, decltype(&std::free)>;
  const auto memory = [](int64_t entries) {
    return Memory(std::aligned_alloc(64, (entries * 4 + 63) / 64 * 64), std::free);
  };
  const Memory packed_ = memory(width * depth), z_ = memory((ROWS + 1) * width),
               kept_ = memory((job.positions + 1) * width);
  const auto finals = std::unique_ptr<Final[]>(new (std::nothrow) Final[job.positions]);
  if (!packed_ || !z_ || !kept_ || !finals) return 1;
  auto* packed = static_cast<uint32_t*>(packed_.get());
  auto *z = static_cast<float*>(z_.get()), *kept = static_cast<float*>(kept_.get()), *room = z + ROWS * width;
  for (int64_t first = start; first < end; first += width) {
    const int64_t n = std::min(width, end - first), used = (n + PANEL - 1) / PANEL;
    for (int64_t p = 0; p < used; p++)
      pack(job, first + p * PANEL, std::min<int64_t>(PANEL, n - p * PANEL), packed + p * PANEL * depth);
    for (int64_t row = 0; row < job.rows; row += ROWS) {
      const float* a[ROWS];
      for (int64_t i = 0; i < ROWS; i++)
        a[i] = static_cast<const float*>(job.hidden) + std::min(row + i, job.rows - 1) * depth;
      for (int64_t k = 0; k < depth; k += step)
        for (int64_t p = 0; p < used; p++)
          multiply(a, packed + p * PANEL * depth, k, std::min(k + step, depth), z + p * PANEL, width);
      for (int64_t i = 0; i < ROWS && row + i < job.rows; i++)
        fold(job, row + i, z + i * width, room, first, n, kept + (row + i) % job.positions * width, finals.get());
    }
  }
  return 0;
}
