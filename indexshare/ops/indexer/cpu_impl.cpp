// Lightning indexer and exact top-k in one pass: scores live in registers, candidates in a small buffer per query.
//
// Contract: ops/indexer/reference.py.

#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "scores.hpp"
#include "tile_scores.hpp"
#include "whole_scores.hpp"

namespace indexshare {
namespace {

// How keys are scored: in tiles where there are any.
template <class T>
using ScoresOf = std::conditional_t<USE_TILES<T>, TileScores, LaneScores<T>>;

struct Problem {
    const char* q;
    const float* weights;
    const char* keys;
    int64_t key_stride;  // bytes
    const int64_t* positions;
    int64_t queries, heads, units, topk;
    RowFormat format;  // of the keys
};

// Scratch memory of one thread.
template <class Scores>
struct Workspace {
    Scores scores;
    Candidates candidates[QUERIES];
};

// Candidates of queries `first .. first+count-1` among keys `begin .. end-1`.
template <class Scores>
void scan(const Problem& p, int64_t first, int64_t count, int64_t begin, int64_t end, Workspace<Scores>& w) {
    const int64_t row = first * p.heads;
    w.scores.take((const uint32_t*)p.q + row * p.units, p.weights + row, count, p.heads, p.units, p.format);
    int64_t last = 0;
    for (int64_t i = 0; i < count; ++i) {
        w.candidates[i].reset(p.topk);
        last = std::max(last, p.positions[first + i]);
    }
    end = std::min(end, last + 1);
    for (int64_t key = begin; key < end; key += Scores::BLOCK) {
        w.scores.meet(p.keys, p.key_stride, key, end);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t visible = std::min(end, p.positions[first + i] + 1) - key;
            if (visible <= 0) continue;
            f32v score[Scores::VECTORS];
            w.scores.scores_of(i, score);
            w.candidates[i].make_room();
            for (int v = 0; v < Scores::VECTORS; ++v) {
                const int64_t valid = visible - v * LANES;
                if (valid > 0) w.candidates[i].add(sortable(score[v]), (int32_t)(key + v * LANES), (int)std::min<int64_t>(valid, LANES));
            }
        }
    }
}

template <class Scorer>
int select_with(const Problem& p, int64_t keys, int64_t* out, int threads) {
    const int64_t blocks = (p.queries + QUERIES - 1) / QUERIES;
    // Few queries (decoding): the keys are divided among the threads instead, and the parts' candidates merged.
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads / std::max<int64_t>(blocks, 1), keys / (8 * KEYS)));
    const int64_t span = round_up((keys + parts - 1) / parts, KEYS);
    std::atomic<int> failed{0};
    std::vector<Workspace<Scorer>> work(parts > 1 ? blocks * parts : 0);
#pragma omp parallel num_threads(threads)
    {
        try {
            const typename Scorer::Session session;
            (void)session;
            Workspace<Scorer> own;
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < blocks * parts; ++task) {
                if (failed.load(std::memory_order_relaxed)) continue;
                try {
                    const int64_t first = task / parts * QUERIES, part = task % parts;
                    const int64_t count = std::min<int64_t>(QUERIES, p.queries - first);
                    Workspace<Scorer>& w = parts > 1 ? work[task] : own;
                    scan(p, first, count, part * span, std::min(keys, (part + 1) * span), w);
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

template <class T>
int select(const Problem& p, int64_t keys, int64_t* out, int threads) {
    if (!USE_TILES<T> && WholeKeys::takes(p.format)) return select_with<WholeScores<T>>(p, keys, out, threads);
    return select_with<ScoresOf<T>>(p, keys, out, threads);
}

}  // namespace
}  // namespace indexshare

// q [queries, heads, width], weights [queries, heads], keys [keys, width] of a kind and with so many precise values
// (row_format.hpp), `key_stride` bytes between rows, positions [queries] below `keys`, out [queries, topk]. Returns 0, or 1
// when memory ran out.
extern "C" int indexshare_select_topk(int is_bf16, const void* q, const float* weights, const void* keys,
                                      int64_t key_stride, int64_t kind, int64_t precise, const int64_t* positions,
                                      int64_t queries, int64_t heads, int64_t width, int64_t num_keys, int64_t topk,
                                      int64_t* out, int threads) {
    using namespace indexshare;
    const int64_t units = is_bf16 ? width / 2 : width;
    const Problem p{(const char*)q, weights, (const char*)keys, key_stride, positions, queries,
                    heads, units, topk, {kind, width, precise}};
    try {
        return is_bf16 ? select<bf16>(p, num_keys, out, threads) : select<float>(p, num_keys, out, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
