// Scores against index keys of 8 bits with one scale. Where they are whole numbers the products are integers.
//
// Queries become whole numbers of 16 bits with a scale for each head, a power of two: finer than bfloat16, and exact where
// numbers have few bits. Sums of products are exact, and equal keys have equal scores. Keys stay in their bytes until
// four of them lie in a lane: a quarter of the work of packing floats.
#pragma once

#include "../coded/row_format.hpp"
#include "candidates.hpp"

namespace indexshare {

using i16x2v = int16_t __attribute__((vector_size(4 * LANES)));

// acc + the two products of 16-bit numbers in each lane.
inline i32v multiply_pairs(i32v acc, u32v keys, uint32_t query) {
#if defined(__AVX512VNNI__)
    return (i32v)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)keys, _mm512_set1_epi32((int)query));
#elif defined(__AVX512F__)
    return acc + (i32v)_mm512_madd_epi16((__m512i)keys, _mm512_set1_epi32((int)query));
#elif defined(__AVX2__)
    return acc + (i32v)_mm256_madd_epi16((__m256i)keys, _mm256_set1_epi32((int)query));
#else
    const i32v even = (i32v)(keys << 16) >> 16, odd = (i32v)keys >> 16;
    return acc + even * (int32_t)(int16_t)query + odd * ((int32_t)query >> 16);
#endif
}

// Addresses of stored keys from `key` on, null from `end` on.
inline void key_rows(const char* keys, int64_t key_stride, int64_t key, int64_t end, const void* (&rows)[LANES]) {
    for (int lane = 0; lane < LANES; ++lane) rows[lane] = key + lane < end ? keys + (key + lane) * key_stride : nullptr;
}

struct WholeKeys {
    // Whether keys of this form have one scale and fit: 2^15 * 127 * 128 is below 2^31.
    static bool takes(const RowFormat& f) { return f.kind == INT8_ROWS && f.precise == 0 && f.width <= f.GROUP; }

    // Units of a query or a packed key: two for four values.
    static int64_t units(int64_t width) { return (width + 3) / 4 * 2; }

    // Stored keys become lanes: panel[unit][vector `v` of KEYS], and their scales. A null row counts as zeros.
    static void pack(const void* const (&rows)[LANES], int64_t width, int v, uint32_t* panel, f32v& scales) {
        const int64_t quads = units(width) / 2;
        u32v bytes[RowFormat::GROUP / 4];
        pack_rows(rows, quads, (uint32_t*)bytes, LANES);
        for (int64_t quad = 0; quad < quads; ++quad, panel += 2 * KEYS) {
            const i16x2v both = (i16x2v)bytes[quad];
            store(panel + v * LANES, (both << 8) >> 8);     // values 0 and 2
            store(panel + KEYS + v * LANES, both >> 8);     // values 1 and 3
        }
        read_scales(rows, width, scales);
    }

    static void read_scales(const void* const (&rows)[LANES], int64_t width, f32v& scales) {
        for (int lane = 0; lane < LANES; ++lane) {
            float scale = 0;
            if (rows[lane]) std::memcpy(&scale, (const char*)rows[lane] + width, 4);
            scales[lane] = scale;
        }
    }

    // A query as units; returns its scale, NaN if it is not finite.
    template <class T>
    static float take(const T* q, int64_t width, uint32_t* to) {
        i32v most{};
        for (int64_t c = 0; c < width; c += LANES) {
            const i32v magnitude = (i32v)load_floats(q + c, width - c) & 0x7fffffff;
            most = magnitude > most ? magnitude : most;
        }
        int32_t largest = 0;
        for (int lane = 0; lane < LANES; ++lane) largest = std::max(largest, most[lane]);
        std::fill_n(to, units(width), 0u);
        if (largest >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
        // The exponent by which the largest is below 2^15; numbers too small for that are zero.
        const int32_t exponent = std::max((largest >> 23) - 127 - 14, -100);
        const float scale = std::ldexp(1.0f, exponent), factor = std::ldexp(1.0f, -exponent);
        for (int64_t c = 0; c < width; ++c) {
            const int32_t whole = std::min((int32_t)std::nearbyint(to_float(q[c]) * factor), 0x7fff);
            to[c / 4 * 2 + c % 2] |= (uint32_t)(whole & 0xffff) << (c % 4 / 2 * 16);
        }
        return scale;
    }

    // Scores of one query against KEYS packed keys; `weights` have the queries' scales in them.
    static void score(int64_t heads, int64_t units, const uint32_t* q, const float* weights, const uint32_t* panel,
                      const f32v (&scales)[TILE_VECTORS], f32v (&score)[TILE_VECTORS]) {
        for (int v = 0; v < TILE_VECTORS; ++v) score[v] = f32v{};
        for_row_tiles(round_up(heads, ROW_GRAIN), [&](auto rows, int64_t head) {
            constexpr int R = decltype(rows)::value;
            i32v acc[R][TILE_VECTORS] = {};
            for (int64_t u = 0; u < units; ++u) {
                u32v column[TILE_VECTORS];
#pragma GCC unroll 8
                for (int v = 0; v < TILE_VECTORS; ++v) column[v] = load<u32v>(panel + u * KEYS + v * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    const uint32_t unit = q[(head + r) * units + u];
#pragma GCC unroll 8
                    for (int v = 0; v < TILE_VECTORS; ++v) acc[r][v] = multiply_pairs(acc[r][v], column[v], unit);
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                if (head + r >= heads) break;
#pragma GCC unroll 8
                for (int v = 0; v < TILE_VECTORS; ++v) {
                    score[v] += positive(__builtin_convertvector(acc[r][v], f32v)) * weights[head + r];
                }
            }
        });
        for (int v = 0; v < TILE_VECTORS; ++v) score[v] *= scales[v];
    }
};

// Keys of fp8 with one scale. It is a power of two, so that it may stand behind the sums: they are the same, bit for bit.
template <class T>
struct ScaledKeys {
    static bool takes(const RowFormat& f) {
        return f.kind == FP8_ROWS && f.precise == 0 && f.width <= f.GROUP && f.width % DEPTH<T> == 0;
    }

    // As WholeKeys::pack, into units of T.
    static void pack(const void* const (&rows)[LANES], int64_t width, int v, uint32_t* panel, f32v& scales) {
        const int64_t quads = (width + 3) / 4, units = width / DEPTH<T>;
        u32v bytes[RowFormat::GROUP / 4];
        pack_rows(rows, quads, (uint32_t*)bytes, LANES);
        panel += v * LANES;
        for (int64_t quad = 0; quad < quads; ++quad) {
            const u32v all = bytes[quad], values[4] = {(u32v)fp8_values<0>(all), (u32v)fp8_values<1>(all),
                                                       (u32v)fp8_values<2>(all), (u32v)fp8_values<3>(all)};
            for (int i = 0; i < 4 / DEPTH<T>; ++i) {
                const int64_t unit = quad * (4 / DEPTH<T>) + i;
                if (unit >= units) break;
                if constexpr (DEPTH<T> == 1) store(panel + unit * KEYS, values[i]);
                else store(panel + unit * KEYS, (values[2 * i] >> 16) | values[2 * i + 1]);
            }
        }
        WholeKeys::read_scales(rows, width, scales);
    }
};

// The prefill's scorer over keys of whole numbers; as LaneScores in scores.hpp.
template <class T>
class WholeScores {
   public:
    static constexpr int VECTORS = TILE_VECTORS, BLOCK = KEYS;
    struct Session {};

    void take(const uint32_t* q, const float* weights, int64_t count, int64_t heads, int64_t units,
              const RowFormat& format) {
        heads_ = heads;
        padded_heads_ = round_up(heads, ROW_GRAIN);
        width_ = format.width;
        units_ = WholeKeys::units(width_);
        queries_.assign(count * padded_heads_ * units_, 0);
        weights_.assign(count * padded_heads_, 0.0f);
        for (int64_t i = 0; i < count * heads; ++i) {
            const int64_t row = i / heads * padded_heads_ + i % heads;
            const float scale = WholeKeys::take((const T*)(q + i * units), width_, &queries_[row * units_]);
            weights_[row] = weights[i] * scale;
        }
        panel_.resize(units_ * BLOCK);
    }

    void meet(const char* keys, int64_t key_stride, int64_t key, int64_t end) {
        for (int v = 0; v < VECTORS; ++v) {
            const void* rows[LANES];
            key_rows(keys, key_stride, key + v * LANES, end, rows);
            WholeKeys::pack(rows, width_, v, panel_.data(), scales_[v]);
        }
    }

    void scores_of(int64_t query, f32v (&score)[VECTORS]) const {
        const int64_t row = query * padded_heads_;
        WholeKeys::score(heads_, units_, &queries_[row * units_], &weights_[row], panel_.data(), scales_, score);
    }

   private:
    int64_t heads_ = 0, padded_heads_ = 0, width_ = 0, units_ = 0;
    f32v scales_[VECTORS];
    Lines<uint32_t> panel_, queries_;
    Lines<float> weights_;
};

}  // namespace indexshare
