// The attention half of a layer: projections, caches, indexer, latent attention, output.
#pragma once

#include "step.hpp"

namespace indexshare {

template <class T>
void Step<T>::attention(int64_t layer, Scratch<T>& s) {
    const LayerWeights& w = m.layers[layer];
    static const Matrix none{};
    const bool choose = w.full && !b->reuse && !sparse_rows.empty();
    const Matrix* const latent = b->reuse ? &none : &w.latent_down;
    const Matrix* const key = w.full && !b->reuse ? &w.indexer.key : &none;
    const Matrix* const head_matrix = choose ? &w.indexer.head_weights : &none;
    divide_rows(s, {&w.query_down, latent, key, head_matrix}, [&](int which, int64_t first, int64_t count) {
        const Matrix* const matrices[] = {&w.query_down, latent, key, head_matrix};
        multiply(*matrices[which], 0, first, count, normed, nullptr, n, s.out);
        Rows<T>* const raw[] = {&query_raw, &latent_raw, &key_raw};
        for (int64_t i = 0; i < n; ++i) {
            const float* out = s.out + i * STRETCH;
            if (which == 3) {
                for (int64_t r = 0; r < count; ++r) head_weights[i * m.index_heads + first + r] = out[r];
            } else {
                store_row(raw[which]->row(i) + first, out, count, 1.0f);
            }
        }
    }, [&] { write_caches(layer); });
    divide(s, m.heads + (choose ? m.index_heads : 0), [&](int64_t task) {
        if (task < m.heads) query_head(w, task, s);
        else index_head(w, task - m.heads, s);
    }, [&] {
        for (size_t i = 0; choose && i < sparse_rows.size(); ++i) parts_left[i] = (int)index_parts;
    });
    if (choose) {
        divide(s, (int64_t)sparse_rows.size() * index_parts, [&](int64_t task) {
            score_part(layer, task / index_parts, task % index_parts, s);
        }, [&] {
            if (b->fetch) name_chosen(), fetch(layer);
        });
    }
    divide(s, (int64_t)stretches.size(), [&](int64_t task) { attend(layer, stretches[task], task, s); }, [] {});
    divide(s, m.heads, [&](int64_t head) { head_values(w, head, s); }, [&] {
        for (int64_t i = 0; i < n; ++i) attended.finish(i);
    });
    divide_rows(s, {&w.output}, [&](int, int64_t first, int64_t count) {
        multiply(w.output, 0, first, count, attended, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) add_to(x.row(i) + first, s.out + i * STRETCH, count);
    }, [&] {
        for (int64_t i = 0; i < n; ++i) {
            rms_norm(x.row(i), (const T*)w.post_norm, m.hidden, m.norm_eps, normed.row(i));
            normed.finish(i);
        }
        inner.reshape(n, w.dense.gate.rows);
    });
}

// Norms and rotations of what the first products gave; this step's rows of the caches, unless it reuses earlier ones.
template <class T>
void Step<T>::write_caches(int64_t layer) {
    const LayerWeights& w = m.layers[layer];
    const int64_t pairs = m.rope / 2;
    for (int64_t i = 0; i < n; ++i) {
        const float *cosine = &cosines[i * pairs], *sine = &sines[i * pairs];
        rms_norm(query_raw.row(i), (const T*)w.query_norm, m.query_rank, m.latent_eps, query_latent.row(i));
        query_latent.finish(i);
        if (b->reuse) continue;
        T* const latent = latent_raw.row(i);
        rms_norm(latent, (const T*)w.latent_norm, m.rank, m.latent_eps, latent);
        rotate(latent + m.rank, cosine, sine, pairs, true);
        const int64_t place = b->latent_slots ? b->latent_slots[layer][i] : b->slots[i];
        encode_row(latent_format, latent, b->latents[layer] + place * b->latent_strides[layer]);
        if (!w.full) continue;
        T* const key = key_raw.row(i);
        const T *weight = (const T*)w.indexer.norm_weight, *bias = (const T*)w.indexer.norm_bias;
        layer_norm(key, weight, bias, m.index_width, m.key_eps, key);
        rotate(key, cosine, sine, pairs, m.interleave);
        encode_row(key_format, key, b->index_keys[layer] + b->slots[i] * key_format.bytes(sizeof(T)));
    }
    if (b->fetch && b->fetch_each && !w.full && !sparse_rows.empty()) fetch(layer);
}

// What the rows have chosen, side by side.
template <class T>
void Step<T>::name_chosen() {
    for (size_t i = 0; i < sparse_rows.size(); ++i) {
        std::copy_n(chosen.begin() + sparse_rows[i] * m.topk, m.topk, named.begin() + i * m.topk);
    }
}

// Brings it into memory; `chosen` are places there then.
template <class T>
void Step<T>::fetch(int64_t layer) {
    const int64_t count = (int64_t)sparse_rows.size() * m.topk;
    std::copy_n(named.begin(), count, fetched.begin());
    if (b->fetch(layer, fetched.data(), count)) {
        failed = true;  // the step ends with an error; until then it must not read outside of the pool
        std::fill_n(fetched.begin(), count, 0);
    }
    for (size_t i = 0; i < sparse_rows.size(); ++i) {
        std::copy_n(fetched.begin() + i * m.topk, m.topk, chosen.begin() + sparse_rows[i] * m.topk);
    }
}

// One head's queries: products, rotation, and the key's up-projection moved into them.
template <class T>
void Step<T>::query_head(const LayerWeights& w, int64_t head, Scratch<T>& s) {
    const int64_t units = latent_width() / DEPTH<T>, pairs = m.rope / 2;
    auto query = [&](int64_t i) { return (T*)&queries[(i * padded_heads + head) * units]; };
    for (int64_t first = 0; first < w.query_up.rows; first += STRETCH) {
        const int64_t count = std::min(STRETCH, w.query_up.rows - first);
        multiply(w.query_up, head, first, count, query_latent, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) {
            for (int64_t r = 0; r < count; ++r) {
                const int64_t at = first + r;
                T& to = at < m.nope ? s.nope.row(i)[at] : query(i)[m.rank + at - m.nope];
                to = narrow<T>(s.out[i * STRETCH + r]);
            }
        }
    }
    for (int64_t i = 0; i < n; ++i) rotate(query(i) + m.rank, &cosines[i * pairs], &sines[i * pairs], pairs, true);
    if (w.key_up.kind == PLAIN) {
        const T* rows[MAX_ROWS];
        for (int64_t i = 0; i < n; ++i) rows[i] = s.nope.row(i);
        multiply_left((const T*)(w.key_up.values + head * w.key_up.stride), m.nope, m.rank, rows, n, s.wide.data());
        for (int64_t i = 0; i < n; ++i) store_row(query(i), &s.wide[i * m.rank], m.rank, 1.0f);
        return;
    }
    for (int64_t i = 0; i < n; ++i) s.nope.finish(i);
    for (int64_t first = 0; first < m.rank; first += STRETCH) {
        const int64_t count = std::min(STRETCH, m.rank - first);
        multiply(w.key_up, head, first, count, s.nope, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) store_row(query(i) + first, s.out + i * STRETCH, count, 1.0f);
    }
}

// One index head's queries of the rows that choose; head 0 also brings the head weights into place.
template <class T>
void Step<T>::index_head(const LayerWeights& w, int64_t head, Scratch<T>& s) {
    const int64_t units = m.index_width / DEPTH<T>, pairs = m.rope / 2, count = (int64_t)sparse_rows.size();
    auto query = [&](int64_t i) { return (T*)&index_queries[(i * padded_index_heads + head) * units]; };
    for (int64_t first = 0; first < m.index_width; first += STRETCH) {
        const int64_t width = std::min(STRETCH, m.index_width - first);
        multiply(w.indexer.query, head, first, width, query_latent, sparse_rows.data(), count, s.out);
        for (int64_t i = 0; i < count; ++i) {
            store_row(query(sparse_rows[i]) + first, s.out + i * STRETCH, width, 1.0f);
        }
    }
    for (const int64_t i : sparse_rows) {
        const int64_t at = i * padded_index_heads + head;
        rotate(query(i), &cosines[i * pairs], &sines[i * pairs], pairs, m.interleave);
        index_weights[at] = head_weights[i * m.index_heads + head] * (float)m.index_scale;
        if (!whole_keys()) continue;
        uint32_t* const whole = &whole_queries[at * WholeKeys::units(m.index_width)];
        index_weights[at] *= WholeKeys::take(query(i), m.index_width, whole);
    }
}

// Scores of one row and the next keys of a walk, of which the first `visible` count.
template <class T>
void Step<T>::score_block(Walk& walk, int64_t row, int64_t visible, Scratch<T>& s, f32v (&score)[TILE_VECTORS]) {
    const bool whole = whole_keys(), scaled = ScaledKeys<T>::takes(key_format);
    const int64_t units = whole ? WholeKeys::units(m.index_width) : m.index_width / DEPTH<T>, at = row * padded_index_heads;
    f32v scales[TILE_VECTORS];
    for (int v = 0; v < TILE_VECTORS; ++v) {
        const void* rows[LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const char* const key = v * LANES + lane < visible ? walk.next() : nullptr;
            rows[lane] = key && !whole && !scaled ? s.keys.at(key, lane) : key;
        }
        if (whole) WholeKeys::pack(rows, m.index_width, v, s.panel.data(), scales[v]);
        else if (scaled) ScaledKeys<T>::pack(rows, m.index_width, v, s.panel.data(), scales[v]);
        else pack_rows(rows, units, s.panel.data() + v * LANES, KEYS);
    }
    const float* weights = &index_weights[at];
    if (whole) WholeKeys::score(m.index_heads, units, &whole_queries[at * units], weights, s.panel.data(), scales, score);
    else score_keys<T>(m.index_heads, units, &index_queries[at * units], weights, s.panel.data(), score);
    for (int v = 0; scaled && v < TILE_VECTORS; ++v) score[v] *= scales[v];
}

// The best keys of one row in one part of its past; whoever does a row's last part puts the parts together.
template <class T>
void Step<T>::score_part(int64_t layer, int64_t index, int64_t part, Scratch<T>& s) {
    const int64_t row = sparse_rows[index], keys = b->positions[row] + 1;
    const int64_t span = round_up((keys + index_parts - 1) / index_parts, KEYS);
    const int64_t begin = part * span, end = std::min(keys, begin + span);
    Candidates& found = candidates[index * index_parts + part];
    found.reset(m.topk);
    if (begin < end) {
        Walk walk(b->index_keys[layer], key_format.bytes(sizeof(T)), b->tables[row], b->block_size, begin);
        for (int64_t key = begin; key < end; key += KEYS) {
            const int64_t visible = std::min<int64_t>(KEYS, end - key);
            f32v score[TILE_VECTORS];
            score_block(walk, row, visible, s, score);
            found.make_room();
            for (int v = 0; v < TILE_VECTORS && v * LANES < visible; ++v) {
                const int valid = (int)std::min<int64_t>(LANES, visible - v * LANES);
                found.add(sortable(score[v]), (int32_t)(key + v * LANES), valid);
            }
        }
        found.cut();
    }
    if (parts_left[index].fetch_sub(1, std::memory_order_acq_rel) == 1) merge(index);
}

template <class T>
void Step<T>::merge(int64_t index) {
    const int64_t row = sparse_rows[index], size = b->block_size;
    Candidates& best = candidates[index * index_parts];
    for (int64_t part = 1; part < index_parts; ++part) candidates[index * index_parts + part].append_to(best);
    best.cut();
    const int64_t* table = b->tables[row];
    for (int64_t i = 0, block = 0; i < best.count(); ++i) {  // positions ascend
        while (best.position(i) >= (block + 1) * size) ++block;
        chosen[row * m.topk + i] = table[block] * size + best.position(i) - block * size;
    }
}

// All heads of one row over one stretch of its keys: weights relative to the stretch's own maximum, and their sums.
template <class T>
void Step<T>::attend(int64_t layer, const Stretch& part, int64_t at, Scratch<T>& s) {
    const int64_t units = latent_width() / DEPTH<T>, count = part.end - part.begin;
    const int64_t bytes = latent_format.bytes(sizeof(T)), stride = b->latent_strides[layer];
    s.rows.resize(count);
    if (is_sparse(part.row)) {
        const int64_t* slots = &chosen[part.row * m.topk + part.begin];
        for (int64_t i = 0; i < count; ++i) {
            s.rows[i] = b->latents[layer] + slots[i] * stride;
            for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(s.rows[i] + at);
        }
    } else {
        const int64_t* const table = b->latent_tables ? b->latent_tables[layer][part.row] : b->tables[part.row];
        Walk walk(b->latents[layer], stride, table, b->latent_tables ? 1 : b->block_size, part.begin);
        for (int64_t i = 0; i < count; ++i) s.rows[i] = walk.next();
    }
    attend_rows<T>(s.rows, &queries[part.row * padded_heads * units], m.heads, units, m.rank, (float)m.attention_scale,
                   s.attention, &tops[at * padded_heads], &masses[at * padded_heads],
                   &sums[at * padded_heads * columns()]);
}

// The stretches of one row and head put together: mixed[rank].
template <class T>
void Step<T>::combine(int64_t row, int64_t head, float* mixed) {
    const int64_t first = first_stretch[row], last = first_stretch[row + 1];
    float top = NONE;
    for (int64_t at = first; at < last; ++at) {
        const float x = tops[at * padded_heads + head];
        top = (x > top || x != x) ? x : top;
    }
    float mass = 0;
    std::fill_n(mixed, m.rank, 0.0f);
    for (int64_t at = first; at < last; ++at) {
        const float factor = exp_negative(splat(tops[at * padded_heads + head] - top))[0];
        mass += masses[at * padded_heads + head] * factor;
        const float* part = &sums[(at * padded_heads + head) * columns()];
        for (int64_t c = 0; c < m.rank; ++c) mixed[c] += part[c] * factor;
    }
    const float share = 1.0f / mass;
    for (int64_t c = 0; c < m.rank; ++c) mixed[c] *= share;
}

// One head's attended latents of every row, and its values.
template <class T>
void Step<T>::head_values(const LayerWeights& w, int64_t head, Scratch<T>& s) {
    for (int64_t i = 0; i < n; ++i) {
        combine(i, head, s.wide.data());
        store_row(s.mixed.row(i), s.wide.data(), m.rank, 1.0f);
        s.mixed.finish(i);
    }
    for (int64_t first = 0; first < m.value; first += STRETCH) {
        const int64_t count = std::min(STRETCH, m.value - first);
        multiply(w.value_up, head, first, count, s.mixed, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) {
            store_row(attended.row(i) + head * m.value + first, s.out + i * STRETCH, count, 1.0f);
        }
    }
}

}  // namespace indexshare
