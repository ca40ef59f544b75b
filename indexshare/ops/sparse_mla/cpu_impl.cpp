// Latent attention over chosen rows, query by query. Contract: ops/sparse_mla/reference.py.

#include <atomic>
#include <new>

#include "cpu_tiles.hpp"
#include "head_tiles.hpp"

namespace indexshare {
namespace {

// Which attend_rows works: in tiles where there are any (head_tiles.hpp), else with heads as lanes (head_lanes.hpp).
template <class T>
using ScratchOf = std::conditional_t<USE_TILES<T>, TileScratch, AttentionScratch<T>>;

// Scratch memory of one thread.
template <class T>
struct Workspace {
    using Scratch = ScratchOf<T>;
    std::vector<const char*> rows;
    Scratch attention;
    Lines<float> sums;
    std::vector<float> tops, masses;

    static int64_t columns(const SparseProblem& p) { return round_up(p.values, Scratch::COLUMN_GRAIN); }

    void prepare(const SparseProblem& p) {
        attention.reserve(p.heads, p.units, p.format);
        rows.reserve(round_up(p.chosen, ROWS));
        sums.resize(round_up(p.heads, Scratch::HEAD_GRAIN) * columns(p));
        tops.resize(p.heads);
        masses.resize(p.heads);
    }
};

// One query. Returns false when a slot lies outside the pool.
template <class T>
bool attend(const SparseProblem& p, int64_t query, T* out, float* lse, Workspace<T>& w) {
    if (!chosen_rows(p, query, w.rows)) return false;
    fetch_query(p, query + 1);
    out += query * p.heads * p.values;
    lse = lse ? lse + query * p.heads : nullptr;
    if (w.rows.empty()) {
        std::memset((void*)out, 0, p.heads * p.values * sizeof(T));
        if (lse) std::fill_n(lse, p.heads, NONE);
        return true;
    }
    const uint32_t* q = (const uint32_t*)p.q + query * p.heads * p.units;
    attend_rows(w.rows, q, p.heads, p.units, p.values, p.scale, w.attention, w.tops.data(), w.masses.data(),
                w.sums.data());
    for (int64_t head = 0; head < p.heads; ++head) {
        const float* sums = &w.sums[head * w.columns(p)];
        store_row(out + head * p.values, sums, p.values, 1.0f / w.masses[head]);
        if (lse) lse[head] = w.tops[head] + std::log(w.masses[head]);
    }
    return true;
}

template <class T>
int attend_all(const SparseProblem& p, T* out, float* lse, int threads) {
    std::atomic<int> failed{0};
#pragma omp parallel num_threads(threads)
    {
        const typename Workspace<T>::Scratch::Session session;
        (void)session;
        Workspace<T> own;
#pragma omp for schedule(dynamic, 4)
        for (int64_t query = 0; query < p.queries; ++query) {
            if (failed.load(std::memory_order_relaxed)) continue;
            try {
                own.prepare(p);
                if (!attend<T>(p, query, out, lse, own)) failed = 2;
            } catch (const std::bad_alloc&) {
                failed = 1;
            }
        }
    }
    return failed;
}

}  // namespace
}  // namespace indexshare

// q [queries, heads, width], pool [rows, width] of a kind and with so many precise values (row_format.hpp), `pool_stride`
// bytes between rows, slots [queries, chosen] with -1 for none, out [queries, heads, values], lse [queries, heads] or null.
// Returns 0; 1 when memory ran out; 2 when a slot lies outside the pool.
extern "C" int indexshare_sparse_mla(int is_bf16, const void* q, const void* pool, int64_t pool_stride,
                                     int64_t kind, int64_t precise, const int64_t* slots, int64_t queries,
                                     int64_t heads, int64_t width, int64_t values, int64_t chosen, int64_t rows,
                                     float scale, void* out, float* lse, int threads) {
    using namespace indexshare;
    const SparseProblem p{(const char*)q, (const char*)pool, pool_stride, slots, queries, heads,
                          round_up(heads, ROW_GRAIN), is_bf16 ? width / 2 : width, width, values, chosen, rows, scale,
                          {kind, width, precise}};
    return is_bf16 ? attend_all<bf16>(p, (bf16*)out, lse, threads) : attend_all<float>(p, (float*)out, lse, threads);
}
