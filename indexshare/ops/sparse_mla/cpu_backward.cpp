// Gradient of sparse latent attention, one query at a time, from the same packed rows as the forward pass.
//
// With p = softmax(l), l = scale q.k, o = p.v and v the leading part of k, and g the gradient of o:
//   dp = g.v,   ds = scale p (dp - g.o),   dq = ds.k,   dk = ds^T q,   dk[:C] += p^T g.
// Contract: the gradient of ops/sparse_mla/reference.py. The queries are divided into a fixed number of parts with a
// pool gradient each, added in order: the result does not depend on the number of threads.

#include <atomic>
#include <new>

#include "cpu_tiles.hpp"

namespace indexshare {
namespace {

template <class T>
struct Workspace {
    std::vector<const char*> rows;
    std::vector<int64_t> slots;
    std::vector<uint32_t> queries, grads, panel, heads;
    std::vector<float> logits, inner, sums;
    std::vector<T> d_logits;      // [padded heads][width]
    std::vector<T> by_row;        // [width][2 * padded heads]: ds of all heads, then p
};

template <class T>
struct Gradients {
    const T* grad;   // [queries, heads, values]
    const T* out;    // [queries, heads, values]
    T* d_q;          // [queries, heads, row width]
};

// p and ds of all heads, in the two orders in which products want them.
template <class T>
void softmax_backward(const SparseProblem& p, const T* grad, const T* out, int64_t width, Workspace<T>& w) {
    const int64_t count = (int64_t)w.rows.size(), depth = 2 * p.padded_heads;
    w.d_logits.assign(p.padded_heads * width, T{});
    w.by_row.assign(width * depth, T{});
    for (int64_t head = 0; head < p.heads; ++head) {
        float *logits = &w.logits[head * width], *inner = &w.inner[head * width];
        std::fill(logits + count, logits + width, -std::numeric_limits<float>::infinity());
        float along = 0;
        for (int64_t c = 0; c < p.values; ++c) {
            along += to_float(grad[head * p.values + c]) * to_float(out[head * p.values + c]);
        }
        const float top = largest(logits, width);
        f32v parts{};
        for (int64_t s = 0; s < width; s += LANES) {
            const f32v weight = exp_negative(load<f32v>(logits + s) - top);
            parts += weight;
            store(logits + s, weight);
        }
        const float factor = 1.0f / sum(parts);
        for (int64_t s = 0; s < width; s += LANES) {
            const f32v weight = load<f32v>(logits + s) * factor;
            const f32v d_logit = weight * (load<f32v>(inner + s) - along) * p.scale;
            T narrow[LANES], d_narrow[LANES];
            store_as(narrow, weight);
            store_as(d_narrow, d_logit);
            std::copy_n(d_narrow, LANES, &w.d_logits[head * width + s]);
            for (int lane = 0; lane < LANES; ++lane) {
                T* row = &w.by_row[(s + lane) * depth];
                row[head] = d_narrow[lane];
                row[p.padded_heads + head] = narrow[lane];
            }
        }
    }
}

// The right operand of dk: neighbouring heads of q, then of g, as rows of units.
template <class T>
void pack_heads(const SparseProblem& p, const T* q, const T* grad, int64_t columns, Workspace<T>& w) {
    constexpr int D = DEPTH<T>;
    const int64_t units = p.padded_heads / D;
    w.heads.assign(2 * units * columns, 0);
    for (int64_t u = 0; u * D < p.heads; ++u) {
        const bool pair = u * D + 1 < p.heads;
        const T *q_row = q + u * D * p.row_width, *g_row = grad + u * D * p.values;
        interleave(q_row, pair ? q_row + p.row_width : nullptr, p.row_width, columns, &w.heads[u * columns]);
        interleave(g_row, pair ? g_row + p.values : nullptr, p.values, columns, &w.heads[(units + u) * columns]);
    }
}

// Add dk of all chosen rows to the pool's gradient.
template <class T>
void add_row_gradients(const SparseProblem& p, int64_t columns, Workspace<T>& w, float* d_pool) {
    const int64_t units = 2 * p.padded_heads / DEPTH<T>, count = (int64_t)w.rows.size();
    for_row_tiles(round_up(count, ROW_GRAIN), [&](auto tile_rows, int64_t s) {
        for_column_tiles(columns, [&](auto tile_vectors, int64_t c) {
            constexpr int N = decltype(tile_rows)::value, V = decltype(tile_vectors)::value;
            f32v acc[N][V] = {};
            const uint32_t* left = (const uint32_t*)&w.by_row[s * 2 * p.padded_heads];
            for (int64_t u = 0; u < units; ++u) {
                u32v column[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) column[v] = load<u32v>(&w.heads[u * columns + c + v * LANES]);
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    const uint32_t unit = left[n * units + u];
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) acc[n][v] = mac<T>(acc[n][v], column[v], unit);
                }
            }
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                if (s + n >= count) break;
                float* row = d_pool + w.slots[s + n] * p.row_width;
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) {
                    const int64_t first = c + v * LANES;
                    if (first + LANES <= p.row_width) {
                        store(row + first, load<f32v>(row + first) + acc[n][v]);
                    } else {
                        for (int64_t lane = 0; first + lane < p.row_width; ++lane) row[first + lane] += acc[n][v][lane];
                    }
                }
            }
        });
    });
}

template <class T>
bool backward(const SparseProblem& p, int64_t query, const Gradients<T>& g, float* d_pool, Workspace<T>& w) {
    if (!chosen_rows(p, query, w.rows, &w.slots)) return false;
    T* d_q = g.d_q + query * p.heads * p.row_width;
    if (w.rows.empty()) {
        std::memset((void*)d_q, 0, p.heads * p.row_width * sizeof(T));
        return true;
    }
    const T *q = (const T*)p.q + query * p.heads * p.row_width, *grad = g.grad + query * p.heads * p.values;
    const int64_t width = round_up((int64_t)w.rows.size(), 2 * LANES), columns = round_up(p.row_width, LANES);
    const int64_t value_units = p.values / DEPTH<T>;
    copy_heads(q, p.heads, p.padded_heads, p.units, w.queries);
    copy_heads(grad, p.heads, p.padded_heads, value_units, w.grads);
    w.panel.resize(std::max<int64_t>(p.units * TILE_VECTORS * LANES, CHUNK / DEPTH<T> * columns));
    w.logits.resize(p.padded_heads * width);
    w.inner.resize(p.padded_heads * width);
    w.sums.resize(p.padded_heads * columns);
    for_key_tiles<T>(w.rows, width, p.units, w.panel.data(), [&](auto vectors, int64_t key) {
        constexpr int V = decltype(vectors)::value;
        multiply_keys<T, V>(w.queries.data(), p.padded_heads, p.units, w.panel.data(), p.scale, &w.logits[key], width);
        multiply_keys<T, V>(w.grads.data(), p.padded_heads, value_units, w.panel.data(), 1.0f, &w.inner[key], width);
    });
    softmax_backward<T>(p, grad, g.out + query * p.heads * p.values, width, w);
    sum_rows<T>(w.rows, w.d_logits.data(), width, p.padded_heads, p.row_width, columns, w.panel.data(), w.sums.data());
    for (int64_t head = 0; head < p.heads; ++head) {
        store_row(d_q + head * p.row_width, &w.sums[head * columns], p.row_width, 1.0f);
    }
    pack_heads<T>(p, q, grad, columns, w);
    add_row_gradients<T>(p, columns, w, d_pool);
    return true;
}

template <class T>
int backward_all(const SparseProblem& p, const Gradients<T>& g, float* d_pool, int64_t parts, int threads) {
    std::atomic<int> failed{0};
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t part = 0; part < parts; ++part) {
        try {
            Workspace<T> own;
            float* own_pool = d_pool + part * p.rows * p.row_width;
            for (int64_t query = part * p.queries / parts; query < (part + 1) * p.queries / parts; ++query) {
                if (!backward<T>(p, query, g, own_pool, own)) failed = 2;
            }
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    }
    return failed;
}

}  // namespace
}  // namespace indexshare

// Arguments as in `indexshare_sparse_mla`; grad and out [queries, heads, values], d_q [queries, heads, width], d_pool
// float [parts, rows, width], zeros: the sum over parts is the pool's gradient. Returns as there.
extern "C" int indexshare_sparse_mla_backward(int is_bf16, const void* q, const void* pool, int64_t pool_stride,
                                              const int64_t* slots, int64_t queries, int64_t heads, int64_t width,
                                              int64_t values, int64_t chosen, int64_t rows, float scale,
                                              const void* grad, const void* out, void* d_q, float* d_pool,
                                              int64_t parts, int threads) {
    using namespace indexshare;
    const SparseProblem p{(const char*)q, (const char*)pool, pool_stride, slots, queries, heads,
                          round_up(heads, ROW_GRAIN), is_bf16 ? width / 2 : width, width, values, chosen, rows, scale};
    if (is_bf16) {
        return backward_all<bf16>(p, {(const bf16*)grad, (const bf16*)out, (bf16*)d_q}, d_pool, parts, threads);
    }
    return backward_all<float>(p, {(const float*)grad, (const float*)out, (float*)d_q}, d_pool, parts, threads);
}
