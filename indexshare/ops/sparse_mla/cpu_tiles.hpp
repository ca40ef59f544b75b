// What sparse latent attention works on, and the backward pass's packing and small products.
//
// Shape letters as in ops/sparse_mla/reference.py: A heads (padded to a whole row tile), R row width, C value width.
// `width` is the number of chosen rows padded to whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "head_lanes.hpp"

namespace indexshare {

constexpr int CHUNK = 64;  // rows summed at a time: packed as values they fit the first-level cache

struct SparseProblem {
    const char* q;
    const char* pool;
    int64_t pool_stride;  // bytes
    const int64_t* slots;
    int64_t queries, heads, padded_heads, units, row_width, values, chosen, rows;
    float scale;
    RowFormat format;  // of the pool
};

// Pointers to the chosen rows of a query, without the -1. False when a slot lies outside the pool.
inline bool chosen_rows(const SparseProblem& p, int64_t query, std::vector<const char*>& rows,
                        std::vector<int64_t>* slots = nullptr) {
    rows.resize(p.chosen);
    if (slots) slots->resize(p.chosen);
    const int64_t* chosen = p.slots + query * p.chosen;
    const char *const pool = p.pool, **to = rows.data();
    const int64_t stride = p.pool_stride, limit = p.rows;
    int64_t least = INT64_MAX, most = INT64_MIN, count = 0;
    for (int64_t i = 0; i < p.chosen; ++i) {
        least = std::min(least, chosen[i]);
        most = std::max(most, chosen[i]);
    }
    if (most >= limit) return false;
    if (least >= 0) {  // the usual case, in vectors
        for (int64_t i = 0; i < p.chosen; ++i) to[i] = pool + chosen[i] * stride;
        if (slots) std::copy_n(chosen, p.chosen, slots->data());
        return true;
    }
    for (int64_t i = 0; i < p.chosen; ++i) {
        if (chosen[i] < 0) continue;
        if (slots) (*slots)[count] = chosen[i];
        to[count++] = pool + chosen[i] * stride;
    }
    rows.resize(count);
    if (slots) slots->resize(count);
    return true;
}

// Fetch what the next query begins with.
inline void fetch_query(const SparseProblem& p, int64_t query) {
    if (query >= p.queries) return;
    const char *q = p.q + query * p.heads * p.units * 4, *slots = (const char*)(p.slots + query * p.chosen);
    for (int64_t at = 0; at < p.heads * p.units * 4; at += 64) __builtin_prefetch(q + at);
    for (int64_t at = 0; at < p.chosen * 8; at += 64) __builtin_prefetch(slots + at);
}

// A left operand `[padded heads][units]`: the heads' rows, then zeros.
inline void copy_heads(const void* from, int64_t heads, int64_t padded_heads, int64_t units, std::vector<uint32_t>& to) {
    to.assign(padded_heads * units, 0);
    std::memcpy(to.data(), from, 4 * heads * units);
}

// V vectors of rows from `key` on become lanes of the panel.
template <int V>
inline void pack_keys(const std::vector<const char*>& rows, int64_t key, int64_t units, uint32_t* panel) {
    const int64_t count = (int64_t)rows.size();
    for (int v = 0; v < V; ++v) {
        const void* lanes[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t s = key + v * LANES + lane;
            lanes[lane] = s < count ? rows[s] : nullptr;
        }
        pack_rows(lanes, units, panel + v * LANES, V * LANES);
    }
}

// out[h][key ..] = left[h] . packed rows, over the first `units` units of each.
template <class T, int V>
inline void multiply_keys(const uint32_t* left, int64_t padded_heads, int64_t units, const uint32_t* panel, float scale,
                          float* out, int64_t width) {
    for_row_tiles(padded_heads, [&](auto rows, int64_t head) {
        constexpr int H = decltype(rows)::value;
        f32v acc[H][V] = {};
        dots<T, H, V>(left + head * units, units, panel, units, acc);
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) store(out + (head + h) * width + v * LANES, acc[h][v] * scale);
        }
    });
}

// The largest logit of a row; NaN if there is one.
inline float largest(const float* logits, int64_t width) {
    f32v most = splat(-std::numeric_limits<float>::infinity());
    for (int64_t s = 0; s < width; s += LANES) {
        const f32v x = load<f32v>(logits + s);
        most = ((x > most) | (x != x)) ? x : most;
    }
    float top = most[0];
    for (int lane = 1; lane < LANES; ++lane) top = (most[lane] > top || most[lane] != most[lane]) ? most[lane] : top;
    return top;
}

// Two neighbouring rows of a product's depth become one row of units; `odd` may be missing.
inline void interleave(const bf16* even, const bf16* odd, int64_t count, int64_t columns, uint32_t* to) {
    int64_t c = 0;
    for (; odd && c + 2 * LANES <= count; c += 2 * LANES) {
        const u16x2v a = load<u16x2v>(even + c), b = load<u16x2v>(odd + c);
        store(to + c, zip_low(a, b));
        store(to + c + LANES, zip_high(a, b));
    }
    for (; c < columns; c += LANES) {
        u32v low{}, high{};
        for (int64_t lane = 0; lane < LANES && c + lane < count; ++lane) {
            low[lane] = even[c + lane].bits;
            if (odd) high[lane] = odd[c + lane].bits;
        }
        store(to + c, low | (high << 16));
    }
}

inline void interleave(const float* row, const float*, int64_t count, int64_t columns, uint32_t* to) {
    std::memcpy(to, row, 4 * count);
    std::fill(to + count, to + columns, 0u);
}

// sums[h][c] = sum over all chosen rows s of weights[h][s] * row[s][c], for c below `values`; columns = values padded.
template <class T>
void sum_rows(const std::vector<const char*>& rows, const T* weights, int64_t width, int64_t padded_heads,
              int64_t values, int64_t columns, uint32_t* panel, float* sums) {
    constexpr int D = DEPTH<T>;
    const int64_t count = (int64_t)rows.size();
    std::fill_n(sums, padded_heads * columns, 0.0f);
    for (int64_t key = 0; key < count; key += CHUNK) {
        const int64_t end = std::min<int64_t>(count, key + CHUNK), units = (end - key + D - 1) / D;
        for (int64_t u = 0; u < units; ++u) {
            const int64_t s = key + u * D;
            const T* odd = s + 1 < end ? (const T*)rows[s + 1] : nullptr;
            interleave((const T*)rows[s], odd, values, columns, panel + u * columns);
        }
        for_row_tiles(padded_heads, [&](auto tile_rows, int64_t head) {
            for_column_tiles(columns, [&](auto tile_vectors, int64_t c) {
                constexpr int H = decltype(tile_rows)::value, V = decltype(tile_vectors)::value;
                f32v acc[H][V];
#pragma GCC unroll 8
                for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) acc[h][v] = load<f32v>(sums + (head + h) * columns + c + v * LANES);
                }
                const uint32_t* left = (const uint32_t*)(weights + head * width + key);
                for (int64_t u = 0; u < units; ++u) {
                    u32v column[V];
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) column[v] = load<u32v>(panel + u * columns + c + v * LANES);
#pragma GCC unroll 8
                    for (int h = 0; h < H; ++h) {
                        const uint32_t weight = left[h * (width / D) + u];
#pragma GCC unroll 8
                        for (int v = 0; v < V; ++v) acc[h][v] = mac<T>(acc[h][v], column[v], weight);
                    }
                }
#pragma GCC unroll 8
                for (int h = 0; h < H; ++h) {
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) store(sums + (head + h) * columns + c + v * LANES, acc[h][v]);
                }
            });
        });
    }
}

// All products of the packed chosen rows with one or two left operands, tile by tile.
template <class T, class Product>
inline void for_key_tiles(const std::vector<const char*>& rows, int64_t width, int64_t units, uint32_t* panel,
                          Product product) {
    for_column_tiles(width, [&](auto vectors, int64_t key) {
        constexpr int V = decltype(vectors)::value;
        pack_keys<V>(rows, key, units, panel);
        product(vectors, key);
    });
}

}  // namespace indexshare
