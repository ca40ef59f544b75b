// What the prefill and the decode step's indexer share: scores of packed keys, and the best candidates of a query.
//
// A query keeps the keys that beat its threshold. When its buffer is full, the buffer is cut to the `topk` best and
// the threshold rises to the worst of them. Keys come in order of position, so a key that only equals the threshold
// has lost to an earlier one, and the survivors are in order of position without sorting.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../simd.hpp"

namespace indexshare {

constexpr int KEYS = TILE_VECTORS * LANES;  // packed and scored at a time
constexpr int32_t NOTHING = INT32_MIN;      // below every score

// Integers in the order of the scores. -0 counts as 0, NaN as larger than everything, as in torch.
inline i32v sortable(f32v score) {
    const i32v bits = (i32v)(score + 0.0f);
    const i32v ordered = bits ^ ((bits >> 31) & 0x7fffffff);
    return (score != score) ? splat(INT32_MAX) : ordered;
}

// Best candidates of one query so far, in order of position.
class Candidates {
   public:
    void reset(int64_t topk) {
        topk_ = topk;
        capacity_ = round_up(2 * topk + KEYS, LANES);
        scores_.resize(capacity_ + LANES);  // whole vectors are stored at the end
        positions_.resize(capacity_ + LANES);
        count_ = 0;
        threshold_ = NOTHING;
    }

    // Add the lanes of `score` above the threshold; the first `valid` lanes are keys.
    inline void add(i32v score, int32_t first, int valid) {
#if defined(__AVX512F__)
        __mmask16 chosen = _mm512_cmpgt_epi32_mask((__m512i)score, _mm512_set1_epi32(threshold_));
        if (valid < LANES) chosen &= (__mmask16)((1u << valid) - 1);
        // No branch on "none": it could not be predicted, and a wrong guess costs more than two stores.
        append(score, splat(first) + iota(), chosen);
#else
        const i32v above = score > splat(threshold_);
        if (!sum(above)) return;
        for (int lane = 0; lane < valid; ++lane) {
            if (!above[lane]) continue;
            scores_[count_] = score[lane];
            positions_[count_++] = first + lane;
        }
#endif
    }

    void make_room() {
        if (count_ + KEYS > capacity_) cut();
    }

    // Keep the topk best, equal scores by lower position.
    void cut() {
        if (count_ <= topk_) return;
        int64_t above;
        const int32_t worst = kth_largest(above);
        keep(worst, topk_ - above);
        threshold_ = worst;
    }

    void append_to(Candidates& other) const {
        for (int64_t i = 0; i < count_; ++i) {
            if (scores_[i] <= other.threshold_) continue;
            if (other.count_ == other.capacity_) other.cut();
            other.scores_[other.count_] = scores_[i];
            other.positions_[other.count_++] = positions_[i];
        }
    }

    int64_t count() const { return count_; }
    int64_t position(int64_t i) const { return positions_[i]; }

    void write(int64_t* out) {
        cut();
        for (int64_t i = 0; i < topk_; ++i) out[i] = i < count_ ? positions_[i] : -1;
    }

   private:
    int64_t topk_ = 0, capacity_ = 0, count_ = 0;
    int32_t threshold_ = NOTHING;
    Lines<int32_t> scores_, positions_, rest_;

    static int64_t count_above(const int32_t* scores, int64_t count, int32_t bound) {
        i32v above{};
        for (int64_t i = 0; i < count; i += LANES) above += load<i32v>(scores + i) > splat(bound);
        return -(int64_t)sum(above);
    }

    // The topk-th largest score, and how many are larger: bisection on the value, whose undecided rest shrinks.
    int32_t kth_largest(int64_t& above) {
        rest_.resize(capacity_ + LANES);
        i32v least = splat(INT32_MAX), most = splat(NOTHING);
        std::fill_n(&scores_[count_], round_up(count_, LANES) - count_, NOTHING);
        for (int64_t i = 0; i < count_; i += LANES) {
            const i32v scores = load<i32v>(&scores_[i]);
            most = scores > most ? scores : most;
            least = (scores < least) & (scores > splat(NOTHING)) ? scores : least;
            store(&rest_[i], scores);
        }
        int64_t low = INT32_MAX, high = NOTHING;  // count(>= low) >= topk > count(>= high) = above
        for (int lane = 0; lane < LANES; ++lane) {
            low = std::min<int64_t>(low, least[lane]);
            high = std::max<int64_t>(high, most[lane]);
        }
        above = 0;
        int64_t undecided = count_;  // scores in low .. high-1
        for (++high; high - low > 1;) {
            const int64_t middle = low + (high - low) / 2;
            const int64_t upper = count_above(rest_.data(), undecided, (int32_t)(middle - 1));
            if (above + upper >= topk_) {
                low = middle;
                undecided = narrow(undecided, (int32_t)(middle - 1), true);
            } else {
                high = middle;
                above += upper;
                undecided = narrow(undecided, (int32_t)(middle - 1), false);
            }
        }
        return (int32_t)low;
    }

#if defined(__AVX512F__)
    // Compressed in registers: compressing into memory is slow on some processors.
    inline void append(i32v score, i32v position, __mmask16 chosen) { append_at(count_, score, position, chosen); }

    inline void append_at(int64_t& at, i32v score, i32v position, __mmask16 chosen) {
        _mm512_storeu_si512(&scores_[at], _mm512_maskz_compress_epi32(chosen, (__m512i)score));
        _mm512_storeu_si512(&positions_[at], _mm512_maskz_compress_epi32(chosen, (__m512i)position));
        at += __builtin_popcount(chosen);
    }

    // What is left of the undecided scores when only those above the bound, or only the others, remain.
    int64_t narrow(int64_t count, int32_t bound, bool upper) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i += LANES) {
            const __m512i scores = _mm512_loadu_si512(&rest_[i]);
            __mmask16 chosen = _mm512_cmpgt_epi32_mask(scores, _mm512_set1_epi32(bound));
            if (!upper) chosen = (__mmask16)(~chosen & _mm512_cmpgt_epi32_mask(scores, _mm512_set1_epi32(NOTHING)));
            _mm512_storeu_si512(&rest_[kept], _mm512_maskz_compress_epi32(chosen, scores));
            kept += __builtin_popcount(chosen);
        }
        _mm512_storeu_si512(&rest_[kept], _mm512_set1_epi32(NOTHING));
        return kept;
    }

    // Keep what is above `worst`, and of what equals it the first `equal`.
    void keep(int32_t worst, int64_t equal) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count_; i += LANES) {
            const i32v score = load<i32v>(&scores_[i]), position = load<i32v>(&positions_[i]);
            __mmask16 chosen = _mm512_cmpgt_epi32_mask((__m512i)score, _mm512_set1_epi32(worst));
            __mmask16 same = _mm512_cmpeq_epi32_mask((__m512i)score, _mm512_set1_epi32(worst));
            for (; same && equal > 0; same &= (__mmask16)(same - 1), --equal) chosen |= (__mmask16)(same & -same);
            append_at(kept, score, position, chosen);
        }
        count_ = kept;
    }
#else
    int64_t narrow(int64_t count, int32_t bound, bool upper) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t score = rest_[i];
            rest_[kept] = score;
            kept += (score > bound) == upper;
        }
        std::fill_n(&rest_[kept], LANES, NOTHING);
        return kept;
    }

    void keep(int32_t worst, int64_t equal) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count_; ++i) {
            const int32_t score = scores_[i];
            const bool chosen = score > worst || (score == worst && equal-- > 0);
            scores_[kept] = score;
            positions_[kept] = positions_[i];
            kept += chosen;
        }
        count_ = kept;
    }
#endif
};

// max(x, 0), but NaN stays NaN.
inline f32v positive(f32v x) {
#if defined(__AVX512F__)
    return (f32v)_mm512_max_ps(_mm512_setzero_ps(), (__m512)x);
#else
    return (x < 0.0f) ? f32v{} : x;
#endif
}

// Scores of one query against KEYS packed keys: sum over heads of weight * max(q . key, 0).
template <class T>
inline void score_keys(int64_t heads, int64_t units, const uint32_t* q, const float* weights,
                       const uint32_t* panel, f32v (&score)[TILE_VECTORS]) {
    for (int v = 0; v < TILE_VECTORS; ++v) score[v] = f32v{};
    for_row_tiles(round_up(heads, ROW_GRAIN), [&](auto rows, int64_t head) {
        constexpr int R = decltype(rows)::value;
        f32v acc[R][TILE_VECTORS] = {};
        dots<T, R, TILE_VECTORS>(q + head * units, units, panel, units, acc);
#pragma GCC unroll 8
        for (int h = 0; h < R; ++h) {
            if (head + h >= heads) break;  // zeros that fill a tile times an infinite key are NaN
#pragma GCC unroll 8
            for (int v = 0; v < TILE_VECTORS; ++v) {
                score[v] += positive(acc[h][v]) * weights[head + h];
            }
        }
    });
}

}  // namespace indexshare
