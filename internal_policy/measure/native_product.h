// Multiply hidden states by a panel of the unembedding, in registers, for the processor that this is compiled for.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 4;
#elif defined(__aarch64__)
constexpr int LANES = 4, ROWS = 8;
#else
constexpr int LANES = 4, ROWS = 4;
#endif
constexpr int VECTORS = 3, PANEL = VECTORS * LANES;  // a product's sums of ROWS x PANEL logits stay in registers
constexpr int64_t DEPTH = 256, DEPTH16 = 512;  // factors summed up at a time, for small errors and in the first cache

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

const Vector& at(const float* p) { return *reinterpret_cast<const Vector*>(p); }
Vector& at(float* p) { return *reinterpret_cast<Vector*>(p); }
Vector all(float x) { return x - Vector{}; }

float sum(Vector x) {
  float part[LANES];
  std::memcpy(part, &x, sizeof part);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

uint32_t bits_of(uint32_t x) { return x; }  // two bfloat16 numbers, or a float32

struct Bfloat16 {
  uint16_t bits;
};
uint32_t bits_of(Bfloat16 x) { return uint32_t(x.bits) << 16; }

struct Float16 {
  uint16_t bits;
};
uint32_t bits_of(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  if (exponent) return sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
  const float small = float(mantissa) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &small, 4);
  return sign | bits;
}

// Columns of a panel beside each other, `depth` numbers each, as float32 or pairs of bfloat16; 0 after the last column.
template <typename Number>
void pack(const Number* weight, int64_t columns, int64_t depth, uint32_t* packed) {
  constexpr int64_t BLOCK = 16;  // reads a line of the cache at a time
  if (columns < PANEL) std::memset(packed, 0, depth * PANEL * 4);
  for (int64_t k = 0; k < depth; k += BLOCK)
    for (int64_t j = 0; j < columns; j++) {
      const Number* from = weight + j * depth + k;
      __builtin_prefetch(from + 4 * BLOCK);
      uint32_t* to = packed + k * PANEL + j;
      if (depth - k >= BLOCK)
#pragma GCC unroll 16
        for (int64_t i = 0; i < BLOCK; i++) to[i * PANEL] = bits_of(from[i]);
      else
        for (int64_t i = 0; i < depth - k; i++) to[i * PANEL] = bits_of(from[i]);
    }
}

// Adds the products from `k` to `end` to ROWS x PANEL logits, which start at 0.
void product(const float* const* a, const uint32_t* packed, int64_t k, int64_t end, float* z, int64_t width) {
  const float* b = reinterpret_cast<const float*>(packed) + k * PANEL;
  const bool first = k == 0;
  Vector c[ROWS][VECTORS] = {};
  for (; k < end; k++, b += PANEL) {
    const Vector b0 = at(b), b1 = at(b + LANES), b2 = at(b + 2 * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      const Vector x = all(a[i][k]);
      c[i][0] += x * b0, c[i][1] += x * b1, c[i][2] += x * b2;
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++) {
      Vector& sum = at(z + i * width + j * LANES);
      sum = first ? c[i][j] : sum + c[i][j];
    }
}

void product16(const float* const* a, const uint32_t* packed, int64_t k, int64_t end, float* z, int64_t width) {
#if defined(__AVX512BF16__)
  const uint32_t* b = packed + k * PANEL;
  const bool first = k == 0;
  __m512 c[ROWS][VECTORS] = {};
  for (; k < end; k++, b += PANEL) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + LANES),
                   b2 = (__m512bh)_mm512_loadu_si512(b + 2 * LANES);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++) {
      int32_t pair;
      std::memcpy(&pair, a[i] + k, 4);
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      c[i][0] = _mm512_dpbf16_ps(c[i][0], x, b0);
      c[i][1] = _mm512_dpbf16_ps(c[i][1], x, b1);
      c[i][2] = _mm512_dpbf16_ps(c[i][2], x, b2);
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < VECTORS; j++) {
      Vector& sum = at(z + i * width + j * LANES);
      sum = first ? Vector(c[i][j]) : sum + Vector(c[i][j]);
    }
#endif
}

}  // namespace
