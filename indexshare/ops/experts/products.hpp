// Products of many rows with the matrices of experts: tokens are read where they lie, activations never leave the cache.
//
// A task packs some rows of a matrix as lanes (`panel`) and lets every row of its expert meet them, so that weights are
// read once. Contract: reference.py. Shape letters: H hidden width, I inner width, k experts of a token.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "../panels.hpp"
#include "../vectors.hpp"

namespace indexshare {

struct ExpertProblem {
    const char *x, *gate_up, *down;
    int64_t x_stride;                  // bytes
    int64_t tokens, hidden, inner, experts, pairs;
    const int64_t *stops, *tokens_at;  // of each expert's stretch of places; token at each place
    const float* weights;              // at each place
};

// inner[place] = silu(gate x) * (up x), columns `first` and the next 2 * LANES.
template <class T>
void inner_columns(const ExpertProblem& p, int64_t expert, int64_t first, Lines<uint32_t>& panel, T* inner) {
    const int64_t start = expert ? p.stops[expert - 1] : 0, stop = p.stops[expert], units = p.hidden / DEPTH<T>;
    if (start == stop) return;
    panel.resize(units * WIDE * LANES);
    const char* matrix = p.gate_up + expert * 2 * p.inner * p.hidden * sizeof(T);
    for (int v = 0; v < 2; ++v) {
        const int64_t from = first + v * LANES;
        pack_vector<T>(matrix, from, p.inner - from, p.hidden, panel.data(), v);
        pack_vector<T>(matrix, p.inner + from, p.inner - from, p.hidden, panel.data(), 2 + v);
    }
    for_products<T>(start, stop, units, panel.data(), [&](int64_t place) { return p.x + p.tokens_at[place] * p.x_stride; },
                    [&](int64_t place, const f32v(&products)[WIDE]) {
        for (int v = 0; v < 2 && first + v * LANES < p.inner; ++v) {
            const int64_t from = first + v * LANES;
            const f32v value = gated<T>(rounded<T>(products[v]), rounded<T>(products[2 + v]));
            store_floats(inner + place * p.inner + from, value, p.inner - from);
        }
    });
}

// out[token] = sum over its experts, in order, of weight * down inner, columns `first` and the next WIDE * LANES.
template <class T>
void out_columns(const ExpertProblem& p, int64_t first, const T* inner, Lines<uint32_t>& panel,
                 Lines<float>& sums, T* out) {
    constexpr int64_t COLUMNS = WIDE * LANES;
    const int64_t units = p.inner / DEPTH<T>;
    panel.resize(units * COLUMNS);
    sums.assign(p.tokens * COLUMNS, 0.0f);
    for (int64_t expert = 0; expert < p.experts; ++expert) {
        const int64_t start = expert ? p.stops[expert - 1] : 0, stop = p.stops[expert];
        if (start == stop) continue;
        const char* matrix = p.down + expert * p.hidden * p.inner * sizeof(T);
        for (int v = 0; v < WIDE; ++v) {
            pack_vector<T>(matrix, first + v * LANES, p.hidden - first - v * LANES, p.inner, panel.data(), v);
        }
        for_products<T>(start, stop, units, panel.data(), [&](int64_t place) { return (const char*)(inner + place * p.inner); },
                        [&](int64_t place, const f32v(&products)[WIDE]) {
            float* sum = &sums[p.tokens_at[place] * COLUMNS];
            for (int v = 0; v < WIDE; ++v) {
                store(sum + v * LANES, load<f32v>(sum + v * LANES) + rounded<T>(products[v]) * p.weights[place]);
            }
        });
    }
    for (int64_t token = 0; token < p.tokens; ++token) {
        for (int64_t c = first; c < std::min(p.hidden, first + COLUMNS); c += LANES) {
            store_floats(out + token * p.hidden + c, load<f32v>(&sums[token * COLUMNS + c - first]), p.hidden - c);
        }
    }
}

// inner: scratch [pairs][I]. Returns 0, or 1 when memory ran out.
template <class T>
int all_experts(const ExpertProblem& p, T* inner, T* out, int threads) {
    constexpr int64_t INNER = 2 * LANES, OUTER = WIDE * LANES;
    const int64_t inner_tasks = (p.inner + INNER - 1) / INNER, out_tasks = (p.hidden + OUTER - 1) / OUTER;
    std::atomic<int> failed{0};
#pragma omp parallel num_threads(threads)
    {
        Lines<uint32_t> panel;
        Lines<float> sums;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < p.experts * inner_tasks; ++task) {
            try {
                inner_columns<T>(p, task / inner_tasks, task % inner_tasks * INNER, panel, inner);
            } catch (const std::bad_alloc&) {
                failed = 1;
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < out_tasks; ++task) {
            try {
                out_columns<T>(p, task * OUTER, inner, panel, sums, out);
            } catch (const std::bad_alloc&) {
                failed = 1;
            }
        }
    }
    return failed;
}

}  // namespace indexshare
