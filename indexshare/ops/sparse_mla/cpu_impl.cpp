// Latent attention over chosen rows: one query at a time, all heads together, nothing but the chosen rows is read.
//
// First pass: the chosen rows, packed as lanes, meet the queries; the logits of all heads stay in the second-level
// cache. Softmax. Second pass: the rows' leading part, as values, is summed with the weights.
// Contract: ops/sparse_mla/reference.py.

#include <atomic>
#include <new>

#include "cpu_tiles.hpp"

namespace indexshare {
namespace {

// Scratch memory of one thread.
template <class T>
struct Workspace {
    std::vector<const char*> rows;
    std::vector<uint32_t> queries, panel;
    std::vector<float> logits, sums, factors;
    std::vector<T> weights;
};

// One query. Returns false when a slot lies outside the pool.
template <class T>
bool attend(const SparseProblem& p, int64_t query, T* out, float* lse, Workspace<T>& w) {
    if (!chosen_rows(p, query, w.rows)) return false;
    const int64_t count = (int64_t)w.rows.size();
    out += query * p.heads * p.values;
    lse = lse ? lse + query * p.heads : nullptr;
    if (count == 0) {
        std::memset((void*)out, 0, p.heads * p.values * sizeof(T));
        if (lse) std::fill_n(lse, p.heads, NONE);
        return true;
    }
    const int64_t width = round_up(count, 2 * LANES), columns = round_up(p.values, LANES);
    copy_heads((const uint32_t*)p.q + query * p.heads * p.units, p.heads, p.padded_heads, p.units, w.queries);
    w.panel.resize(std::max<int64_t>(p.units * TILE_VECTORS * LANES, CHUNK / DEPTH<T> * columns));
    w.logits.resize(p.padded_heads * width);
    w.weights.resize(p.padded_heads * width);
    std::fill(w.weights.begin() + p.heads * width, w.weights.end(), T{});
    w.sums.resize(p.padded_heads * columns);
    w.factors.resize(p.heads);
    for_key_tiles<T>(w.rows, width, p.units, w.panel.data(), [&](auto vectors, int64_t key) {
        multiply_keys<T, decltype(vectors)::value>(w.queries.data(), p.padded_heads, p.units, w.panel.data(), p.scale,
                                                   &w.logits[key], width);
    });
    for (int64_t head = 0; head < p.heads; ++head) {
        float top;
        const float mass = softmax_row(&w.logits[head * width], count, width, &w.weights[head * width], &top);
        w.factors[head] = 1.0f / mass;
        if (lse) lse[head] = top + std::log(mass);
    }
    sum_rows<T>(w.rows, w.weights.data(), width, p.padded_heads, p.values, columns, w.panel.data(), w.sums.data());
    for (int64_t head = 0; head < p.heads; ++head) {
        store_row(out + head * p.values, &w.sums[head * columns], p.values, w.factors[head]);
    }
    return true;
}

template <class T>
int attend_all(const SparseProblem& p, T* out, float* lse, int threads) {
    std::atomic<int> failed{0};
#pragma omp parallel num_threads(threads)
    {
        Workspace<T> own;
#pragma omp for schedule(dynamic, 4)
        for (int64_t query = 0; query < p.queries; ++query) {
            if (failed.load(std::memory_order_relaxed)) continue;
            try {
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

// q [queries, heads, width], pool [rows, width] with `pool_stride` bytes between rows, slots [queries, chosen] with
// -1 for none, out [queries, heads, values], lse [queries, heads] or null. Returns 0; 1 when memory ran out; 2 when a
// slot lies outside the pool.
extern "C" int indexshare_sparse_mla(int is_bf16, const void* q, const void* pool, int64_t pool_stride,
                                     const int64_t* slots, int64_t queries, int64_t heads, int64_t width,
                                     int64_t values, int64_t chosen, int64_t rows, float scale, void* out, float* lse,
                                     int threads) {
    using namespace indexshare;
    const SparseProblem p{(const char*)q, (const char*)pool, pool_stride, slots, queries, heads,
                          round_up(heads, ROW_GRAIN), is_bf16 ? width / 2 : width, width, values, chosen, rows, scale};
    return is_bf16 ? attend_all<bf16>(p, (bf16*)out, lse, threads) : attend_all<float>(p, (float*)out, lse, threads);
}
