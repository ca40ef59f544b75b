// Softmax over a query's rows, chunk by chunk, for all heads together: logits become weights, sums so far shrink as the
// largest logit rises. What multiplies is elsewhere: head_lanes.hpp, head_tiles.hpp.
//
// Heads are lanes, SPREAD lanes to a head: `lane = head * SPREAD + j` is row j of SPREAD neighbouring rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../coded/row_format.hpp"

namespace indexshare {

constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr int MOST_SPREAD = LANES >= 8 ? LANES / 4 : 1;
constexpr int64_t CHUNK_ROWS = 64; // between them and their values nothing leaves the first-level cache
constexpr int64_t AHEAD = 32;      // rows that are fetched before their turn

// Lanes so far apart change places.
template <int DISTANCE, int... L>
inline f32v swap_lanes(f32v v, std::integer_sequence<int, L...>) {
    const u32v u = (u32v)v;
#if defined(__clang__)
    return (f32v)__builtin_shufflevector(u, u, (L ^ DISTANCE)...);
#else
    return (f32v)__builtin_shuffle(u, u32v{(L ^ DISTANCE)...});
#endif
}

// Memory of one thread.
template <class T>
struct AttentionScratch {
    static constexpr int64_t HEAD_GRAIN = ROW_GRAIN, COLUMN_GRAIN = 2 * LANES;  // of sums
    struct Session {};                                                         // nothing to set up on a thread

    Lines<uint32_t> queries;  // [groups][units / SPREAD][LANES]
    Lines<float> logits;      // [groups][row blocks][LANES] of a chunk
    Lines<uint32_t> weights;  // [groups][row blocks][...] of a chunk: see `weigh`
    Lines<float> tops, masses, factors;  // [groups][LANES]
    std::vector<char> nothing;           // a row of zeros
    RowReader<T> reader;                 // of rows in another form
    const char* decoded[CHUNK_ROWS];

    void reserve(int64_t heads, int64_t units, const RowFormat& format = {}) {
        reader.prepare(format, CHUNK_ROWS);
        const int64_t lanes = round_up(heads, LANES);
        grow(queries, units * lanes);
        for (auto* each : {&tops, &masses, &factors}) grow(*each, MOST_SPREAD * heads + LANES);
        grow(logits, CHUNK_ROWS * lanes);
        grow(weights, CHUNK_ROWS * lanes);
        grow(nothing, 4 * units);
    }

    // A chunk of rows as rows of T, of which those from `count` on are `nothing`; `ahead` rows follow.
    const char* const* read(const char* const* rows, int64_t padded, int64_t count, int64_t ahead) {
        if (!reader.coded()) return rows;
        const int64_t bytes = reader.format().bytes(sizeof(T));
        for (int64_t row = 0; row < padded; ++row) {
            for (int64_t at = 0; at < bytes && row + AHEAD < padded + ahead; at += 64) __builtin_prefetch(rows[row + AHEAD] + at);
            decoded[row] = row < count ? reader.at(rows[row], row) : rows[row];
        }
        return decoded;
    }

   protected:
    template <class V>
    static void grow(V& v, int64_t size) {
        if ((int64_t)v.size() < size) v.resize(size);
    }
};

// The part of the work that no product does: logits of a chunk become weights, and older sums shrink as tops rise.
template <class T, int SPREAD>
class OnlineSoftmax {
   public:
    static constexpr int HEADS = LANES / SPREAD;              // of a group
    static constexpr int D = DEPTH<T>;
    static constexpr int BLOCK = SPREAD > D ? SPREAD : D;     // rows whose weights lie together
    static constexpr int PARTS = BLOCK / D;                   // units of a head's weights in a block
    static constexpr auto lanes = std::make_integer_sequence<int, LANES>();

    OnlineSoftmax(int64_t heads, AttentionScratch<T>& scratch)
        : heads_(heads), groups_((heads + HEADS - 1) / HEADS), s_(scratch) {}

    void start() {
        std::fill_n(s_.tops.begin(), groups_ * LANES, NONE);
        std::fill_n(s_.masses.begin(), groups_ * LANES, 0.0f);
    }

    // The largest logit of each head, and the sum of e^(logit - top).
    void finish(float* tops, float* masses) const {
        for (int64_t head = 0; head < heads_; ++head) {
            const int64_t lane = head / HEADS * LANES + head % HEADS * SPREAD;
            tops[head] = s_.tops[lane];
            masses[head] = 0;
            for (int j = 0; j < SPREAD; ++j) masses[head] += s_.masses[lane + j];
        }
    }

   protected:
    static constexpr int STEP = D > SPREAD ? D : 1;  // vectors of logits that make a vector of weights
    const int64_t heads_, groups_;
    AttentionScratch<T>& s_;

    // The logits of rows from `count` on, which are none, become minus infinity.
    void leave_out(int64_t padded, int64_t count) {
        for (int64_t group = 0; group < groups_; ++group) {
            float* logits = &s_.logits[group * padded * HEADS];
            for (int64_t row = count; row < padded; ++row) {
                float* block = logits + row / SPREAD * LANES + row % SPREAD;
                for (int h = 0; h < HEADS; ++h) block[h * SPREAD] = NONE;
            }
        }
    }

    // Weights e^(logit - top) of a chunk, where `top` is the largest logit so far. They lie BLOCK rows together, head by
    // head: [row blocks][HEADS][PARTS] units. True if some top has risen: `factors` says what that makes of older sums.
    bool weigh(int64_t padded) {
        const int64_t vectors = padded / SPREAD;
        bool risen = false;
        for (int64_t group = 0; group < groups_; ++group) {
            const float* logits = &s_.logits[group * padded * HEADS];
            uint32_t* weights = &s_.weights[group * padded * HEADS / D];
            const f32v before = load<f32v>(&s_.tops[group * LANES]);
            f32v best[2] = {before, before};  // two, for a comparison takes its time
            for (int64_t i = 0; i < vectors; i += 2) {
                for (int j = 0; j < 2; ++j) best[j] = larger(best[j], load<f32v>(logits + (i + j) * LANES));
            }
            const f32v top = over_spread(larger(best[0], best[1]));
            // Minus infinity has no weight, even if there is nothing larger.
            const f32v base = top == NONE ? f32v{} : top;
            f32v mass{};
            for (int64_t i = 0; i < vectors; i += STEP) {
                f32v w[STEP];
                for (int64_t j = 0; j < STEP; ++j) {
                    w[j] = exp_negative<T>(load<f32v>(logits + (i + j) * LANES) - base);
                    mass += w[j];
                }
                if constexpr (D == 1) store(weights + i * LANES, w[0]);
                else if constexpr (SPREAD == 1) store(weights + i / 2 * LANES, bf16_bits(w[0]) | (bf16_bits(w[1]) << 16));
                else store_as((bf16*)(weights + i * LANES / 2), w[0]);
            }
            const f32v factor = exp_negative(before - base);
            store(&s_.masses[group * LANES], load<f32v>(&s_.masses[group * LANES]) * factor + mass);
            store(&s_.factors[group * LANES], factor);
            store(&s_.tops[group * LANES], top);
            risen |= sum_lanes(factor != 1.0f) != 0;
        }
        return risen;
    }

    void rescale(int64_t values, float* sums) const {
        const int64_t columns = round_up(values, 2 * LANES);
        for (int64_t head = 0; head < heads_; ++head) {
            const float factor = s_.factors[head / HEADS * LANES + head % HEADS * SPREAD];
            for (int64_t c = head * columns; c < (head + 1) * columns; c += LANES) store(sums + c, load<f32v>(sums + c) * factor);
        }
    }

    // Of the two, but never NaN if it can be avoided: NaN shows in the mass.
    static f32v larger(f32v a, f32v b) {
#if defined(__AVX512F__)
        return (f32v)_mm512_max_ps((__m512)b, (__m512)a);
#else
        return (b > a) ? b : a;
#endif
    }
    static int32_t sum_lanes(i32v v) { return indexshare::sum(v); }

    // The largest of every head's SPREAD lanes, in all of them.
    static f32v over_spread(f32v v) {
        if constexpr (SPREAD >= 2) v = larger(v, swap_lanes<1>(v, lanes));
        if constexpr (SPREAD >= 4) v = larger(v, swap_lanes<2>(v, lanes));
        return v;
    }
};

}  // namespace indexshare
