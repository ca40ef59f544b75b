// Lightning indexer and exact top-k in one pass: scores live in registers, candidates in a small buffer per query.
//
// A query keeps the keys that beat its threshold. When its buffer is full, the buffer is cut to the `topk` best and
// the threshold rises to the worst of them. Keys come in order of position, so a key that only equals the threshold
// has lost to an earlier one, and the survivors are in order of position without sorting.
// Contract: ops/indexer/reference.py.

#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "../simd.hpp"

namespace indexshare {
namespace {

constexpr int QUERIES = 16;                    // of one task: they share the packed keys
constexpr int KEYS = TILE_VECTORS * LANES;     // packed at a time
constexpr int32_t NOTHING = INT32_MIN;         // below every score

struct Problem {
    const char* q;
    const float* weights;
    const char* keys;
    int64_t key_stride;  // bytes
    const int64_t* positions;
    int64_t queries, heads, units, topk;
    int64_t padded_heads;
};

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

// Scratch memory of one thread.
struct Workspace {
    std::vector<uint32_t> panel, queries;
    std::vector<float> weights;
    Candidates candidates[QUERIES];
};

// Queries of a task side by side with zero heads up to a whole tile.
template <class T>
void copy_queries(const Problem& p, int64_t first, int64_t count, Workspace& w) {
    w.queries.assign(count * p.padded_heads * p.units, 0);
    w.weights.assign(count * p.padded_heads, 0.0f);
    for (int64_t i = 0; i < count; ++i) {
        const int64_t row = p.heads * p.units;
        std::memcpy(&w.queries[i * p.padded_heads * p.units], (const uint32_t*)p.q + (first + i) * row, 4 * row);
        std::memcpy(&w.weights[i * p.padded_heads], p.weights + (first + i) * p.heads, 4 * p.heads);
    }
}

// Scores of one query against the packed keys.
template <class T>
inline void score_keys(const Problem& p, const uint32_t* q, const float* weights, const uint32_t* panel,
                       f32v (&score)[TILE_VECTORS]) {
    for (int v = 0; v < TILE_VECTORS; ++v) score[v] = f32v{};
    for_row_tiles(p.padded_heads, [&](auto rows, int64_t head) {
        constexpr int R = decltype(rows)::value;
        f32v acc[R][TILE_VECTORS] = {};
        dots<T, R, TILE_VECTORS>(q + head * p.units, p.units, panel, p.units, acc);
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

// Candidates of queries `first .. first+count-1` among keys `begin .. end-1`; `begin` is a multiple of KEYS.
template <class T>
void scan(const Problem& p, int64_t first, int64_t count, int64_t begin, int64_t end, Workspace& w) {
    copy_queries<T>(p, first, count, w);
    w.panel.resize(p.units * KEYS);
    int64_t last = 0;
    for (int64_t i = 0; i < count; ++i) {
        w.candidates[i].reset(p.topk);
        last = std::max(last, p.positions[first + i]);
    }
    end = std::min(end, last + 1);
    for (int64_t key = begin; key < end; key += KEYS) {
        for (int v = 0; v < TILE_VECTORS; ++v) {
            const void* rows[LANES];
            for (int lane = 0; lane < LANES; ++lane) {
                const int64_t s = key + v * LANES + lane;
                rows[lane] = s < end ? p.keys + s * p.key_stride : nullptr;
            }
            pack_rows(rows, p.units, w.panel.data() + v * LANES, KEYS);
        }
        for (int64_t i = 0; i < count; ++i) {
            const int64_t visible = std::min(end, p.positions[first + i] + 1) - key;
            if (visible <= 0) continue;
            f32v score[TILE_VECTORS];
            const int64_t row = i * p.padded_heads;
            score_keys<T>(p, &w.queries[row * p.units], &w.weights[row], w.panel.data(), score);
            w.candidates[i].make_room();
            for (int v = 0; v < TILE_VECTORS; ++v) {
                const int64_t valid = visible - v * LANES;
                if (valid > 0) w.candidates[i].add(sortable(score[v]), (int32_t)(key + v * LANES), (int)std::min<int64_t>(valid, LANES));
            }
        }
    }
}

template <class T>
int select(const Problem& p, int64_t keys, int64_t* out, int threads) {
    const int64_t blocks = (p.queries + QUERIES - 1) / QUERIES;
    // Few queries (decoding): the keys are divided among the threads instead, and the parts' candidates merged.
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads / std::max<int64_t>(blocks, 1), keys / (8 * KEYS)));
    const int64_t span = round_up((keys + parts - 1) / parts, KEYS);
    std::atomic<int> failed{0};
    std::vector<Workspace> work(parts > 1 ? blocks * parts : 0);
#pragma omp parallel num_threads(threads)
    {
        try {
            Workspace own;
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < blocks * parts; ++task) {
                if (failed.load(std::memory_order_relaxed)) continue;
                try {
                    const int64_t first = task / parts * QUERIES, part = task % parts;
                    const int64_t count = std::min<int64_t>(QUERIES, p.queries - first);
                    Workspace& w = parts > 1 ? work[task] : own;
                    scan<T>(p, first, count, part * span, std::min(keys, (part + 1) * span), w);
                    for (int64_t i = 0; i < count; ++i) {
                        if (parts == 1) w.candidates[i].write(out + (first + i) * p.topk);
                        else w.candidates[i].cut();
                    }
                } catch (const std::bad_alloc&) {
                    failed = 1;
                }
            }
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    }
    if (failed) return 1;
    for (int64_t block = 0; parts > 1 && block < blocks; ++block) {
        const int64_t first = block * QUERIES, count = std::min<int64_t>(QUERIES, p.queries - first);
        for (int64_t i = 0; i < count; ++i) {
            Candidates& best = work[block * parts].candidates[i];
            for (int64_t part = 1; part < parts; ++part) work[block * parts + part].candidates[i].append_to(best);
            best.write(out + (first + i) * p.topk);
        }
    }
    return 0;
}

}  // namespace
}  // namespace indexshare

// q [queries, heads, width], weights [queries, heads], keys [keys, width] with `key_stride` bytes between rows,
// positions [queries] below `keys`, out [queries, topk]. Returns 0, or 1 when memory ran out.
extern "C" int indexshare_select_topk(int is_bf16, const void* q, const float* weights, const void* keys,
                                      int64_t key_stride, const int64_t* positions, int64_t queries, int64_t heads,
                                      int64_t width, int64_t num_keys, int64_t topk, int64_t* out, int threads) {
    using namespace indexshare;
    const int64_t units = is_bf16 ? width / 2 : width;
    const Problem p{(const char*)q, weights, (const char*)keys, key_stride, positions, queries,
                    heads, units, topk, round_up(heads, ROW_GRAIN)};
    try {
        return is_bf16 ? select<bf16>(p, num_keys, out, threads) : select<float>(p, num_keys, out, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
