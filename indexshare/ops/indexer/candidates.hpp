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
        if (!chosen) return;
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
        for (int64_t i = count_; i < round_up(count_, LANES); ++i) scores_[i] = NOTHING;
        const int32_t worst = kth_largest();
        int64_t equal = topk_ - count_above(worst), kept = 0;
        for (int64_t i = 0; i < count_; ++i) {
            const int32_t score = scores_[i];
            const bool keep = score > worst || (score == worst && equal-- > 0);
            scores_[kept] = score;
            positions_[kept] = positions_[i];
            kept += keep;
        }
        count_ = kept;
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
    std::vector<int32_t> scores_, positions_;

#if defined(__AVX512F__)
    inline void append(i32v score, i32v position, __mmask16 chosen) {
        // Compressed in a register: compressing into memory is slow on some processors.
        _mm512_storeu_si512(&scores_[count_], _mm512_maskz_compress_epi32(chosen, (__m512i)score));
        _mm512_storeu_si512(&positions_[count_], _mm512_maskz_compress_epi32(chosen, (__m512i)position));
        count_ += __builtin_popcount(chosen);
    }
#endif

    int64_t count_above(int32_t bound) const {
        i32v above{};
        for (int64_t i = 0; i < count_; i += LANES) above += load<i32v>(&scores_[i]) > splat(bound);
        return -(int64_t)sum(above);
    }

    // By bisection on the value: a few dozen passes over a buffer that lies in the first-level cache.
    int32_t kth_largest() const {
        i32v least = splat(INT32_MAX), most = splat(NOTHING);
        for (int64_t i = 0; i < count_; i += LANES) {
            const i32v scores = load<i32v>(&scores_[i]);
            most = scores > most ? scores : most;
            least = (scores < least) & (scores > splat(NOTHING)) ? scores : least;
        }
        int64_t low = INT32_MAX, high = NOTHING;  // count(>= low) >= topk > count(>= high)
        for (int lane = 0; lane < LANES; ++lane) {
            low = std::min<int64_t>(low, least[lane]);
            high = std::max<int64_t>(high, most[lane]);
        }
        for (++high; high - low > 1;) {
            const int64_t middle = low + (high - low) / 2;
            (count_above((int32_t)(middle - 1)) >= topk_ ? low : high) = middle;
        }
        return (int32_t)low;
    }
};

// Scores of one query against KEYS packed keys: sum over heads of weight * max(q . key, 0).
template <class T>
inline void score_keys(int64_t padded_heads, int64_t units, const uint32_t* q, const float* weights,
                       const uint32_t* panel, f32v (&score)[TILE_VECTORS]) {
    for (int v = 0; v < TILE_VECTORS; ++v) score[v] = f32v{};
    for_row_tiles(padded_heads, [&](auto rows, int64_t head) {
        constexpr int R = decltype(rows)::value;
        f32v acc[R][TILE_VECTORS] = {};
        dots<T, R, TILE_VECTORS>(q + head * units, units, panel, units, acc);
#pragma GCC unroll 8
        for (int h = 0; h < R; ++h) {
#pragma GCC unroll 8
            for (int v = 0; v < TILE_VECTORS; ++v) {
                // `dot < 0` and not `dot > 0`, so that NaN is not taken for zero.
                const f32v dot = acc[h][v];
                score[v] += ((dot < 0.0f) ? f32v{} : dot) * weights[head + h];
            }
        }
    });
}

}  // namespace indexshare
