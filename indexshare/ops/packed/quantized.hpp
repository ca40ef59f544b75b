// Products with weights of 8 or 4 bits that share a scale per group of 32 inputs.
//
// Weights are bytes u with w = (u - offset) * scale. Sixteen rows lie side by side, so that sums of rows are lanes and
// nothing is added across: per block of 16 rows and group, INT8 is [8 quads][16 rows][4 inputs] bytes; INT4 is
// [4][16 rows][4] bytes with quad j in the low halves and quad j + 4 in the high ones; scales are [16 rows] bfloat16.
// Rows are padded to whole blocks (scale zero), inputs to whole groups. The layout is made in `packing.py`.
//
// Activations become 16-bit integers with a scale per group, which is finer than bfloat16: what is lost is lost in the
// weights. Sums within a group are exact integers, the same on every processor.
#pragma once

#include <limits>
#include <vector>

#include "../vectors.hpp"
#include "matrix.hpp"

namespace indexshare {

constexpr int GROUP = 32, QUADS = GROUP / 4, BLOCK_ROWS = 16, PARTS = BLOCK_ROWS / LANES;
constexpr int32_t LARGEST = 0x7f7f;  // splits into two signed bytes

// One row of activations: per group two units of 32 bits for each quad of inputs, in the form that `meet` wants.
struct QuantizedRow {
    const uint32_t* units;  // [groups][2][QUADS]
    const int32_t* sums;    // [groups]
    const float* scales;    // [groups]
};

// LANES whole numbers below 2^15 as units.
inline void split(i32v x, int at, uint32_t* units) {
#if defined(__AVX512VNNI__)  // upper bytes; lower bytes
    const i32v low = (x << 24) >> 24, high = (x - low) >> 8;
    const __m128i lows = _mm512_cvtepi32_epi8((__m512i)low), highs = _mm512_cvtepi32_epi8((__m512i)high);
    store(units + at / 4, highs);
    store(units + QUADS + at / 4, lows);
#else  // 16 bits each: inputs 0 and 2; inputs 1 and 3
    for (int i = 0; i < LANES; i += 4) {
        units[(at + i) / 4] = (uint32_t)(x[i] & 0xffff) | (uint32_t)x[i + 2] << 16;
        units[QUADS + (at + i) / 4] = (uint32_t)(x[i + 1] & 0xffff) | (uint32_t)x[i + 3] << 16;
    }
#endif
}

// NaN and infinities make the group's scale NaN, and so every product with it.
template <class T>
inline void quantize_group(const T* x, int64_t count, uint32_t* units, int32_t* total, float* scale) {
    f32v values[GROUP / LANES] = {}, most{};
    for (int v = 0; v < GROUP / LANES && v * LANES < count; ++v) {
        values[v] = load_floats(x + v * LANES, count - v * LANES);
        const f32v size = values[v] < 0.0f ? -values[v] : values[v];
        most = ((size > most) | (size != size)) ? size : most;
    }
    float top = 0;
    for (int lane = 0; lane < LANES; ++lane) top = (most[lane] > top || most[lane] != most[lane]) ? most[lane] : top;
    const bool finite = top <= std::numeric_limits<float>::max();
    const float factor = finite && top > 1e-30f ? (float)LARGEST / top : 0.0f;
    *scale = finite ? top / (float)LARGEST : std::numeric_limits<float>::quiet_NaN();
    const f32v magic = splat(12582912.0f);  // 1.5 * 2^23 pushes the fraction out
    i32v sums{};
    for (int v = 0; v < GROUP / LANES; ++v) {
        const i32v whole = finite ? (i32v)(values[v] * factor + magic) - (i32v)magic : i32v{};
        split(whole, v * LANES, units);
        sums += whole;
    }
    *total = sum(sums);
}

// Sums of products of a quad of bytes in each lane with one row's quad, in two accumulators.
inline void meet(i32v& a, i32v& b, u32v weights, uint32_t first, uint32_t second) {
#if defined(__AVX512VNNI__)
    a = (i32v)_mm512_dpbusd_epi32((__m512i)a, (__m512i)weights, _mm512_set1_epi32((int)first));
    b = (i32v)_mm512_dpbusd_epi32((__m512i)b, (__m512i)weights, _mm512_set1_epi32((int)second));
#else
    const u32v even = weights & 0x00ff00ffu, odd = (weights >> 8) & 0x00ff00ffu;
#if defined(__AVX512F__)
    a += (i32v)_mm512_madd_epi16((__m512i)even, _mm512_set1_epi32((int)first));
    b += (i32v)_mm512_madd_epi16((__m512i)odd, _mm512_set1_epi32((int)second));
#elif defined(__AVX2__)
    a += (i32v)_mm256_madd_epi16((__m256i)even, _mm256_set1_epi32((int)first));
    b += (i32v)_mm256_madd_epi16((__m256i)odd, _mm256_set1_epi32((int)second));
#else
    a += (i32v)(even & 0xffffu) * (int32_t)(int16_t)first + (i32v)(even >> 16) * ((int32_t)first >> 16);
    b += (i32v)(odd & 0xffffu) * (int32_t)(int16_t)second + (i32v)(odd >> 16) * ((int32_t)second >> 16);
#endif
#endif
}

inline i32v join(i32v a, i32v b) {
#if defined(__AVX512VNNI__)
    return (a << 8) + b;
#else
    return a + b;
#endif
}

// Products of N rows of activations with LANES rows of a block (part `part` of it); out[n * stride + row].
template <int64_t KIND, int N>
inline void block_products(const char* values, const char* scales, int64_t groups, int part, const QuantizedRow* x,
                           float* out, int64_t stride) {
    constexpr int LOADS = KIND == INT4 ? QUADS / 2 : QUADS, BYTES = LOADS * BLOCK_ROWS * 4;
    constexpr int32_t OFFSET = KIND == INT4 ? 8 : 128;
    f32v acc[N] = {};
    values += part * LANES * 4;
    scales += part * LANES * 2;
    for (int64_t g = 0; g < groups; ++g, values += BYTES, scales += BLOCK_ROWS * 2) {
        i32v a[N] = {}, b[N] = {};
#pragma GCC unroll 8
        for (int load_index = 0; load_index < LOADS; ++load_index) {
            const u32v bytes = load<u32v>(values + load_index * BLOCK_ROWS * 4);
            const u32v low = KIND == INT4 ? bytes & 0x0f0f0f0fu : bytes;
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                const uint32_t* units = x[n].units + g * 2 * QUADS + load_index;
                meet(a[n], b[n], low, units[0], units[QUADS]);
                if constexpr (KIND == INT4) {
                    meet(a[n], b[n], (bytes >> 4) & 0x0f0f0f0fu, units[LOADS], units[QUADS + LOADS]);
                }
            }
        }
        const f32v scale = (f32v)(__builtin_convertvector(load<u16v>(scales), u32v) << 16);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            const i32v total = join(a[n], b[n]) - x[n].sums[g] * OFFSET;
            acc[n] += __builtin_convertvector(total, f32v) * (scale * x[n].scales[g]);
        }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(out + n * stride + part * LANES, acc[n]);
}

// Rows first .. first+count-1 (first a multiple of BLOCK_ROWS) of matrix `member` with `n` rows of activations.
template <int64_t KIND>
inline void quantized_products(const Matrix& m, int64_t member, int64_t first, int64_t count, const QuantizedRow* x,
                               int64_t n, float* out, int64_t stride) {
    const int64_t groups = (m.inputs + GROUP - 1) / GROUP;
    const int64_t bytes = groups * GROUP * BLOCK_ROWS / (KIND == INT4 ? 2 : 1);
    for (int64_t row = 0; row < count; row += BLOCK_ROWS) {
        const int64_t block = (first + row) / BLOCK_ROWS;
        const char* values = m.values + member * m.stride + block * bytes;
        const char* scales = m.scales + member * m.scale_stride + block * groups * BLOCK_ROWS * 2;
        for (int part = 0; part < PARTS; ++part) {
            int64_t i = 0;
            for (; i + 4 <= n; i += 4) {
                block_products<KIND, 4>(values, scales, groups, part, x + i, out + i * stride + row, stride);
            }
            for (; i < n; ++i) {
                block_products<KIND, 1>(values, scales, groups, part, x + i, out + i * stride + row, stride);
            }
        }
    }
}

// Weights times scales of one block of rows of matrix `member`: to[row][input], rows m.inputs apart.
template <class T>
inline void dequantize_block(const Matrix& m, int64_t member, int64_t block, T* to) {
    const bool small = m.kind == INT4;
    const int64_t groups = (m.inputs + GROUP - 1) / GROUP, rows = std::min<int64_t>(BLOCK_ROWS, m.rows - block * BLOCK_ROWS);
    const int64_t bytes = GROUP * BLOCK_ROWS / (small ? 2 : 1);
    const uint8_t* values = (const uint8_t*)m.values + member * m.stride + block * groups * bytes;
    const bf16* scales = (const bf16*)(m.scales + member * m.scale_stride) + block * groups * BLOCK_ROWS;
    for (int64_t g = 0; g < groups; ++g, values += bytes, scales += BLOCK_ROWS) {
        const int64_t width = std::min<int64_t>(GROUP, m.inputs - g * GROUP);
        for (int64_t r = 0; r < rows; ++r) {
            float row[GROUP];
            for (int64_t c = 0; c < GROUP; ++c) {
                const int64_t quad = c / 4, stored = small ? quad % (QUADS / 2) : quad;
                const int32_t byte = values[(stored * BLOCK_ROWS + r) * 4 + c % 4];
                const int32_t value = !small ? byte - 128 : (quad < QUADS / 2 ? byte & 15 : byte >> 4) - 8;
                row[c] = (float)value * to_float(scales[r]);
            }
            for (int64_t c = 0; c < width; c += LANES) {
                store_floats(to + r * m.inputs + g * GROUP + c, load<f32v>(row + c), width - c);
            }
        }
    }
}

}  // namespace indexshare
