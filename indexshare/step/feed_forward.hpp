// The other half of a layer: dense SwiGLU, or router, experts as grouped products, and shared experts.
#pragma once

#include "step.hpp"

namespace indexshare {

template <class T>
void Step<T>::feed_forward(int64_t layer, Scratch<T>& s) {
    const LayerWeights& w = m.layers[layer];
    static const Matrix none{};
    divide_rows(s, {&w.dense.gate, w.sparse ? &w.router : &none}, [&](int which, int64_t first, int64_t count) {
        if (which == 0) return gated(w.dense, 0, first, count, normed, nullptr, n, inner, nullptr, s);
        multiply(w.router, 0, first, count, normed, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) std::copy_n(s.out + i * STRETCH, count, &router_logits[i * m.experts + first]);
    }, [&] {
        for (int64_t i = 0; w.dense.gate.rows && i < n; ++i) inner.finish(i);
        if (w.sparse) route(layer);
    });
    if (w.sparse) {
        const int64_t parts = tasks(w.experts.gate.rows), step = stretch(w.experts.gate.rows);
        divide(s, experts_in_use[layer] * parts, [&](int64_t task) {
            const int64_t group = task / parts, first = task % parts * step;
            const int32_t *begin = &pair_rows[starts[group]], *places = &pairs[starts[group]];
            gated(w.experts, used[group], first, std::min(step, w.experts.gate.rows - first), normed, begin,
                  starts[group + 1] - starts[group], expert_inner, places, s);
        }, [&] {
            for (int64_t i = 0; i < n * m.experts_per_token; ++i) expert_inner.finish(i);
        });
    }
    const Matrix& output = w.sparse ? w.experts.down : w.dense.down;
    divide_rows(s, {&output}, [&](int, int64_t first, int64_t count) { down(w, first, count, s); },
                [&] { norm_for(layer + 1); });
}

// silu(gate) * up for some rows of both matrices: row which[i] of `from` gives row places[i] of `to`.
template <class T>
void Step<T>::gated(const FeedForward& f, int64_t member, int64_t first, int64_t count, const Rows<T>& from,
                    const int32_t* which, int64_t rows, Rows<T>& to, const int32_t* places, Scratch<T>& s) {
    multiply(f.gate, member, first, count, from, which, rows, s.out);
    multiply(f.up, member, first, count, from, which, rows, s.other);
    for (int64_t i = 0; i < rows; ++i) {
        T* out = to.row(places ? places[i] : i) + first;
        for (int64_t c = 0; c < count; c += LANES) {
            const f32v gate = rounded<T>(load<f32v>(s.out + i * STRETCH + c));
            const f32v up = rounded<T>(load<f32v>(s.other + i * STRETCH + c));
            store_floats(out + c, indexshare::gated<T>(gate, up), count - c);
        }
    }
}

template <class T>
void Step<T>::route(int64_t layer) {
    const LayerWeights& w = m.layers[layer];
    const Routing routing{m.experts, m.experts_per_token, m.groups, m.chosen_groups, m.normalise, (float)m.routed_scale};
    for (int64_t i = 0; i < n; ++i) {
        float* scores = &router_logits[i * m.experts];
        for (int64_t e = 0; e < m.experts; e += LANES) {
            store_floats(scores + e, sigmoid(load_floats(scores + e, m.experts - e)), m.experts - e);
        }
        float* weights = &expert_weights[i * m.experts_per_token];
        indexshare::choose_experts(routing, scores, w.router_bias, routing_scratch, &expert_ids[i * m.experts_per_token], weights);
        for (int64_t place = 0; place < m.experts_per_token; ++place) weights[place] = to_float(narrow<T>(weights[place]));
    }
    group_by_expert();
    experts_in_use[layer] = (int64_t)used.size();
}

// Rows of one expert side by side, so that its weights are read once.
template <class T>
void Step<T>::group_by_expert() {
    const int64_t k = m.experts_per_token;
    used.clear();
    starts.clear();
    int32_t at = 0;
    for (int64_t e = 0; e < m.experts; ++e) {
        const int32_t before = at;
        for (int64_t pair = 0; pair < n * k; ++pair) {
            if (expert_ids[pair] != e) continue;
            pairs[at] = (int32_t)pair;
            pair_rows[at++] = (int32_t)(pair / k);
        }
        if (at == before) continue;
        used.push_back((int32_t)e);
        starts.push_back(before);
    }
    starts.push_back(at);
}

// Output rows first .. first+count-1 of the second products, the experts' sum, the shared experts and the residual.
template <class T>
void Step<T>::down(const LayerWeights& w, int64_t first, int64_t count, Scratch<T>& s) {
    if (!w.sparse) {
        multiply(w.dense.down, 0, first, count, inner, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) add_to(x.row(i) + first, s.out + i * STRETCH, count);
        return;
    }
    std::fill_n(s.other, n * STRETCH, 0.0f);
    for (size_t group = 0; group < used.size(); ++group) {  // ids ascend: every row's sum has the same order
        const int32_t *places = &pairs[starts[group]], rows = starts[group + 1] - starts[group];
        multiply(w.experts.down, used[group], first, count, expert_inner, places, rows, s.out);
        for (int64_t i = 0; i < rows; ++i) {
            float* sum = s.other + places[i] / m.experts_per_token * STRETCH;
            for (int64_t c = 0; c < count; c += LANES) {
                const f32v part = rounded<T>(load<f32v>(s.out + i * STRETCH + c));
                store(sum + c, load<f32v>(sum + c) + part * expert_weights[places[i]]);
            }
        }
    }
    if (w.dense.gate.rows) multiply(w.dense.down, 0, first, count, inner, nullptr, n, s.out);
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t c = 0; w.dense.gate.rows && c < count; c += LANES) {
            float* sum = s.other + i * STRETCH + c;
            store(sum, rounded<T>(load<f32v>(sum)) + rounded<T>(load<f32v>(s.out + i * STRETCH + c)));
        }
        add_to(x.row(i) + first, s.other + i * STRETCH, count);
    }
}

// What comes after the last layer's or this layer's residual: the next layer's input norm, or the final norm.
template <class T>
void Step<T>::norm_for(int64_t layer) {
    const bool last = layer == m.num_layers;
    const T* weight = (const T*)(last ? m.final_norm : m.layers[layer].input_norm);
    for (int64_t i = 0; i < n; ++i) {
        rms_norm(x.row(i), weight, m.hidden, m.norm_eps, normed.row(i));
        normed.finish(i);
        if (last) std::copy_n(normed.row(i), m.hidden, (T*)b->hidden + i * m.hidden);
    }
}

}  // namespace indexshare
