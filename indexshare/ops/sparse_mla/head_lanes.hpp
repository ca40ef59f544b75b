// Latent attention of one query over rows that lie anywhere: all heads together, nothing but the rows is read.
//
// Heads are lanes. With few heads a vector has room for SPREAD lanes of each: `lane = head * SPREAD + j` first holds
// unit j of SPREAD neighbouring units of a row, and after the sum over j, row j of SPREAD neighbouring rows. So rows
// are never transposed: SPREAD units of a row are broadcast, and meet the same units of every head.
//
// Shape letters as in reference.py: A heads, R row width (in `units` of 32 bits), C value width.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "online_softmax.hpp"

namespace indexshare {

constexpr int ROWS = 8;            // scored at a time: with two accumulators each they hide the products' latency

// The SPREAD units at `from`, as often as they fit.
template <int SPREAD>
inline u32v repeat(const uint32_t* from) {
    if constexpr (SPREAD == 1) {
        return splat(*from);
    } else if constexpr (SPREAD == 2) {
        uint64_t both;
        std::memcpy(&both, from, 8);
        return (u32v)(u64v{} + both);
    } else {
#if defined(__AVX512F__)
        return (u32v)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)from));
#else
        u32v v;
        for (int lane = 0; lane < LANES; ++lane) v[lane] = from[lane % SPREAD];
        return v;
#endif
    }
}

// Attention of A heads over the rows of one query; T is the type of queries and rows.
template <class T, int SPREAD>
class HeadLanes : public OnlineSoftmax<T, SPREAD> {
    using Base = OnlineSoftmax<T, SPREAD>;
    using Base::BLOCK, Base::D, Base::HEADS, Base::PARTS, Base::lanes, Base::groups_, Base::heads_, Base::s_;

   public:
    HeadLanes(int64_t heads, int64_t units, AttentionScratch<T>& scratch) : Base(heads, scratch), units_(units) {}

    // q [heads][units] becomes panels of lanes.
    void pack(const uint32_t* q) {
        uint32_t* to = s_.queries.data();
        for (int64_t group = 0; group < groups_; ++group) {
            for (int64_t step = 0; step < units_ / SPREAD; ++step, to += LANES) {
                for (int64_t h = 0; h < HEADS; ++h) {
                    const int64_t head = group * HEADS + h;
                    if (head < heads_) std::memcpy(to + h * SPREAD, q + head * units_ + step * SPREAD, 4 * SPREAD);
                    else std::memset(to + h * SPREAD, 0, 4 * SPREAD);
                }
            }
        }
    }

    // Attend to `count` more rows; `padded` is the next multiple of ROWS and at most CHUNK_ROWS, `ahead` how many
    // rows follow. sums [heads padded to ROW_GRAIN][values padded to 2 LANES] grow by weight * row.
    void attend(const char* const* rows, int64_t padded, int64_t count, int64_t ahead, float scale, int64_t values,
                float* sums) {
        score(rows, padded, count, ahead, scale);
        if (this->weigh(padded)) this->rescale(values, sums);
        sum(rows, padded, values, sums);
    }

   private:
    const int64_t units_;

    // Logits of a chunk; those of rows from `count` on are minus infinity.
    void score(const char* const* rows, int64_t padded, int64_t count, int64_t ahead, float scale) {
        int64_t group = 0;
        for (; group + 2 <= groups_; group += 2) score_groups<2>(rows, padded, ahead, group, scale);
        for (; group < groups_; ++group) score_groups<1>(rows, padded, ahead, group, scale);
        this->leave_out(padded, count);
    }

    void sum(const char* const* rows, int64_t padded, int64_t values, float* sums) const {
        const int64_t columns = round_up(values, 2 * LANES);
        for_row_tiles(round_up(heads_, ROW_GRAIN), [&](auto tile, int64_t head) {
            constexpr int H = decltype(tile)::value;
            const uint32_t* left = &s_.weights[weight_at(head, padded)];
            int64_t c = 0;
            for (; c + 2 * LANES <= values; c += 2 * LANES) {
                sum_tile<H, false>(rows, padded, left, c, values, sums + head * columns, columns);
            }
            if (c < values) sum_tile<H, true>(rows, padded, left, c, values, sums + head * columns, columns);
        });
    }

    // Where a head's first weights of a chunk lie.
    static int64_t weight_at(int64_t head, int64_t padded) {
        return head / HEADS * (padded * HEADS / D) + head % HEADS * PARTS;
    }

    // a's lanes where `lane & DISTANCE` is 0 and b's where it is not, each added to its neighbour at that distance.
    template <int DISTANCE>
    static f32v fold_together(f32v a, f32v b) {
        return (f32v)exchange_low<DISTANCE>((u32v)a, (u32v)b, lanes) +
               (f32v)exchange_high<DISTANCE>((u32v)a, (u32v)b, lanes);
    }

    template <int V>
    void score_groups(const char* const* rows, int64_t padded, int64_t ahead, int64_t group, float scale) {
        constexpr int CHAINS = 2 / V;
        const int64_t steps = units_ / SPREAD;
        const uint32_t* q = &s_.queries[group * steps * LANES];
        float* logits = &s_.logits[group * padded * HEADS];
        for (int64_t key = 0; key < padded; key += ROWS) {
            const uint32_t* row[ROWS];
            for (int r = 0; r < ROWS; ++r) row[r] = (const uint32_t*)rows[key + r];
            for (int64_t next = key + AHEAD; group == 0 && next < std::min(key + AHEAD + ROWS, padded + ahead); ++next) {
                for (int64_t at = 0; at < 4 * units_; at += 64) __builtin_prefetch(rows[next] + at);
            }
            f32v acc[ROWS][2] = {};
            int64_t step = 0;
            for (; step + CHAINS <= steps; step += CHAINS) {
                u32v left[2];
                for (int i = 0; i < 2; ++i) {
                    left[i] = load<u32v>(q + (V == 2 ? i * steps * LANES + step * LANES : (step + i) * LANES));
                }
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
                    for (int i = 0; i < 2; ++i) {
                        const u32v right = repeat<SPREAD>(row[r] + (step + (V == 2 ? 0 : i)) * SPREAD);
                        acc[r][i] = mac<T>(acc[r][i], left[i], right);
                    }
                }
            }
            if (step < steps) {
                const u32v left = load<u32v>(q + step * LANES);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) acc[r][0] = mac<T>(acc[r][0], left, repeat<SPREAD>(row[r] + step * SPREAD));
            }
            if constexpr (V == 2) {
                for (int i = 0; i < 2; ++i) {
                    f32v one[ROWS];
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r) one[r] = acc[r][i];
                    store_block(one, scale, logits + (i * padded + key) * HEADS);
                }
            } else {
                f32v one[ROWS];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) one[r] = acc[r][0] + acc[r][1];
                store_block(one, scale, logits + key * HEADS);
            }
        }
    }

    static void store_block(const f32v (&a)[ROWS], float scale, float* logits) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r += SPREAD) {
            f32v sums = a[r];
            if constexpr (SPREAD == 2) sums = fold_together<1>(a[r], a[r + 1]);
            if constexpr (SPREAD == 4) {
                sums = fold_together<2>(fold_together<1>(a[r], a[r + 1]), fold_together<1>(a[r + 2], a[r + 3]));
            }
            store(logits + r * HEADS, sums * scale);
        }
    }

    // Two vectors of units: columns c .. c + 2 LANES - 1 of D neighbouring rows.
    template <bool TAIL>
    static void columns_of(const char* const* rows, int64_t c, int64_t values, u32v (&column)[2]) {
        const int64_t bytes = TAIL ? (values - c) * (int64_t)sizeof(T) : 0;
        alignas(64) char even[2 * LANES * sizeof(T)], odd[2 * LANES * sizeof(T)];
        const char *a = rows[0] + c * sizeof(T), *b = D == 2 ? rows[1] + c * sizeof(T) : nullptr;
        if constexpr (TAIL) {
            std::memset(even, 0, sizeof even);
            std::memcpy(even, a, bytes);
            a = even;
            if constexpr (D == 2) {
                std::memset(odd, 0, sizeof odd);
                std::memcpy(odd, b, bytes);
                b = odd;
            }
        }
        if constexpr (D == 2) {
            const u16x2v x = load<u16x2v>(a), y = load<u16x2v>(b);
            column[0] = zip_low(x, y);
            column[1] = zip_high(x, y);
        } else {
            column[0] = load<u32v>(a);
            column[1] = load<u32v>(a + 4 * LANES);
        }
    }

    template <int H, bool TAIL>
    static void sum_tile(const char* const* rows, int64_t padded, const uint32_t* left, int64_t c, int64_t values,
                         float* sums, int64_t columns) {
        const uint32_t* const group[] = {left, left + weight_at(HEADS, padded)};  // a tile may reach into the next one
        f32v acc[H][2];
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h) {
            for (int v = 0; v < 2; ++v) acc[h][v] = load<f32v>(sums + h * columns + c + v * LANES);
        }
        for (int64_t block = 0; block < padded / BLOCK; ++block) {
            const int64_t at = block * HEADS * PARTS;
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; ++part) {
                u32v column[2];
                columns_of<TAIL>(rows + block * BLOCK + part * D, c, values, column);
#pragma GCC unroll 8
                for (int h = 0; h < H; ++h) {
                    const u32v weight = splat(group[h / HEADS][at + h % HEADS * PARTS + part]);
                    acc[h][0] = mac<T>(acc[h][0], column[0], weight);
                    acc[h][1] = mac<T>(acc[h][1], column[1], weight);
                }
            }
        }
#pragma GCC unroll 8
        for (int h = 0; h < H; ++h) {
            for (int v = 0; v < 2; ++v) store(sums + h * columns + c + v * LANES, acc[h][v]);
        }
    }
};

// Attention of `heads` heads, q [heads][units], over `rows`, to which rows of zeros are added for whole blocks. They are in
// the form that the scratch was reserved for.
//
// tops and masses [heads]: largest logit, and the sum of e^(logit - top). sums [heads up to ROW_GRAIN][values up to
// 2 LANES]: the rows' first `values` values, summed with those weights. The scratch must have been reserved.
template <class T>
void attend_rows(std::vector<const char*>& rows, const uint32_t* q, int64_t heads, int64_t units, int64_t values,
                 float scale, AttentionScratch<T>& scratch, float* tops, float* masses, float* sums) {
    const int64_t count = (int64_t)rows.size(), padded = round_up(count, ROWS);
    rows.resize(padded, scratch.nothing.data());
    std::fill_n(sums, round_up(heads, ROW_GRAIN) * round_up(values, 2 * LANES), 0.0f);
    auto attend = [&](auto spread) {
        HeadLanes<T, decltype(spread)::value> attention(heads, units, scratch);
        attention.pack(q);
        attention.start();
        for (int64_t first = 0; first < count; first += CHUNK_ROWS) {
            const int64_t chunk = std::min(CHUNK_ROWS, padded - first), real = std::min(chunk, count - first);
            const int64_t ahead = padded - first - chunk;
            const char* const* read = scratch.read(&rows[first], chunk, real, ahead);
            attention.attend(read, chunk, real, scratch.reader.coded() ? 0 : ahead, scale, values, sums);
        }
        attention.finish(tops, masses);
    };
    // Two vectors of heads share a broadcast, for broadcasts are the bottleneck.
    if (heads <= 2 * LANES / MOST_SPREAD && units % MOST_SPREAD == 0) attend(std::integral_constant<int, MOST_SPREAD>());
    else if (MOST_SPREAD > 2 && heads <= LANES && units % 2 == 0) attend(std::integral_constant<int, (MOST_SPREAD + 1) / 2>());
    else attend(std::integral_constant<int, 1>());
    rows.resize(count);
}

}  // namespace indexshare
