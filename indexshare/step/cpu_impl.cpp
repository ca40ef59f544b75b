// One decode step of the whole trunk, by all threads together: a few new tokens, each of its own sequence or neighbours.
//
// A layer is a sequence of phases, each divided into tasks; whoever finishes a phase's last task does the little that
// must happen once (norms, rotations, routing). Activations are rounded to the model's type where the torch path rounds them.
// Contract: step/decoder.py.

#include <algorithm>
#include <mutex>
#include <new>

#include "attention.hpp"
#include "feed_forward.hpp"

namespace indexshare {

// Angles are products of float32 numbers, as in `ops.rope_tables`.
template <class T>
void Step<T>::prepare_positions() {
    const int64_t pairs = m.rope / 2;
    cosines.resize(n * pairs);
    sines.resize(n * pairs);
    sparse_rows.clear();
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < pairs; ++j) {
            const float angle = (float)(b->positions[i] + b->ahead) * m.frequencies[j];
            cosines[i * pairs + j] = std::cos(angle) * (float)m.rope_scale;
            sines[i * pairs + j] = std::sin(angle) * (float)m.rope_scale;
        }
        if (is_sparse(i)) sparse_rows.push_back((int32_t)i);
    }
}

// The division of keys into stretches depends on the row alone, so that its result does not depend on the batch.
template <class T>
void Step<T>::prepare_attention() {
    padded_heads = round_up(m.heads, ROW_GRAIN);
    padded_index_heads = round_up(m.index_heads, ROW_GRAIN);
    queries.resize(n * padded_heads * (latent_width() / DEPTH<T>));
    index_queries.resize(n * padded_index_heads * (m.index_width / DEPTH<T>));
    if (whole_keys()) whole_queries.resize(n * padded_index_heads * WholeKeys::units(m.index_width));
    index_weights.resize(n * padded_index_heads);
    for (int64_t i = 0; b->reuse && i < n; ++i) {
        std::copy_n(chosen.begin() + b->reuse[i] * m.topk, m.topk, chosen.begin() + i * m.topk);
    }
    chosen.resize(n * m.topk);
    if (b->fetch) named.resize(n * m.topk), fetched.resize(n * m.topk);
    failed = false;
    stretches.clear();
    first_stretch.assign(1, 0);
    int64_t most_keys = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t visible = b->positions[i] + 1, keys = is_sparse(i) ? std::min(m.topk, visible) : visible;
        const int64_t length = std::max(LEAST_STRETCH, round_up((keys + MOST_STRETCHES - 1) / MOST_STRETCHES, 64));
        for (int64_t begin = 0, part = 0; begin < keys; begin += length, ++part) {
            stretches.push_back({i, part, begin, std::min(keys, begin + length)});
        }
        first_stretch.push_back((int64_t)stretches.size());
        most_keys = std::max(most_keys, visible);
    }
    const int64_t count = (int64_t)stretches.size(), choosing = std::max<int64_t>(1, (int64_t)sparse_rows.size());
    tops.resize(count * padded_heads);
    masses.resize(count * padded_heads);
    sums.resize(count * padded_heads * columns());
    // Division of the keys among threads changes nothing in the choice, which is exact. Every part finds `topk` keys of
    // its own first, so there are no more of them than needed.
    const int64_t wanted = choosing == 1 ? b->threads : (2 * b->threads + choosing - 1) / choosing;
    index_parts = std::max<int64_t>(1, std::min(wanted, most_keys / 1024));
    if (sparse_rows.empty()) return;
    if ((int64_t)candidates.size() < choosing * index_parts) candidates.resize(choosing * index_parts);
    for (Candidates& each : candidates) each.reset(m.topk);
}

template <class T>
void Step<T>::prepare_feed_forward() {
    const int64_t k = m.experts_per_token;
    int64_t width = 0, expert_width = 0;
    for (int64_t layer = 0; layer < m.num_layers; ++layer) {
        width = std::max(width, m.layers[layer].dense.gate.rows);
        expert_width = std::max(expert_width, m.layers[layer].experts.gate.rows);
    }
    inner.resize(n, width, m.quantized);
    expert_inner.resize(n * k, expert_width, m.quantized);
    router_logits.resize(n * m.experts);
    expert_ids.resize(n * k);
    expert_weights.resize(n * k);
    pairs.resize(n * k);
    pair_rows.resize(n * k);
    used.reserve(m.experts);
    experts_in_use.resize(m.num_layers);
    starts.reserve(m.experts + 1);
    routing_scratch.prepare({m.experts, m.experts_per_token, m.groups, m.chosen_groups, m.normalise, 1.0f});
}

// Room for everything, so that nothing is allocated in the parallel region.
template <class T>
void Step<T>::prepare_scratch() {
    int64_t longest = 1;
    for (const Stretch& each : stretches) longest = std::max(longest, each.end - each.begin);
    const size_t panel = (size_t)(std::max(m.index_width / DEPTH<T>, WholeKeys::units(m.index_width)) * KEYS);
    for (int64_t thread = 0; thread < b->threads; ++thread) {
        if ((int64_t)scratch.size() == thread) scratch.emplace_back(new Scratch<T>());
        Scratch<T>& s = *scratch[thread];
        s.nope.resize(n, m.nope, m.quantized);
        s.mixed.resize(n, m.rank, m.quantized);
        s.wide.resize(n * m.rank + LANES);  // whole vectors are read at the end
        s.rows.reserve(round_up(longest, ROWS));
        s.panel.resize(std::max(s.panel.size(), panel));
        s.attention.reserve(m.heads, latent_width() / DEPTH<T>, latent_format);
        s.keys.prepare(key_format, LANES);
        s.number = thread;
        s.phase = 0;
    }
}

template <class T>
void Step<T>::prepare() {
    prepare_positions();
    prepare_attention();
    prepare_feed_forward();
    prepare_scratch();
    x.resize(n, m.hidden, false);
    normed.resize(n, m.hidden, m.quantized);
    query_latent.resize(n, m.query_rank, m.quantized);
    attended.resize(n, m.heads * m.value, m.quantized);
    query_raw.resize(n, m.query_rank, false);
    latent_raw.resize(n, latent_width(), false);
    key_raw.resize(n, m.index_width, false);
    head_weights.resize(n * m.index_heads);
    const int64_t count = m.num_layers * PHASES_PER_LAYER + 2;
    if (!phases) phases.reset(new Phase[count]);
    for (int64_t i = 0; i < count; ++i) {
        phases[i].next = phases[i].done = 0;
        phases[i].complete = false;
    }
    for (int64_t i = 0; i < n; ++i) std::copy_n((const T*)m.embedding + b->ids[i] * m.hidden, m.hidden, x.row(i));
    if (b->states) join();
    else norm_for(0);
}

// The two halves of a draft layer's input, side by side.
template <class T>
void Step<T>::join() {
    joined.resize(n, 2 * m.hidden, m.quantized);
    for (int64_t i = 0; i < n; ++i) {
        const T* state = (const T*)b->states + i * m.hidden;
        rms_norm(x.row(i), (const T*)m.embedding_norm, m.hidden, m.norm_eps, joined.row(i));
        rms_norm(state, (const T*)m.state_norm, m.hidden, m.norm_eps, joined.row(i) + m.hidden);
        joined.finish(i);
    }
}

template <class T>
void Step<T>::mix(Scratch<T>& s) {
    if (!b->states) return;
    divide_rows(s, {&m.mix}, [&](int, int64_t first, int64_t count) {
        multiply(m.mix, 0, first, count, joined, nullptr, n, s.out);
        for (int64_t i = 0; i < n; ++i) store_row(x.row(i) + first, s.out + i * STRETCH, count, 1.0f);
    }, [&] { norm_for(0); });
}

template <class T>
void Step<T>::logits(Scratch<T>& s) {
    if (b->num_wanted == 0) return;
    divide_rows(s, {&m.head}, [&](int, int64_t first, int64_t count) {
        int32_t which[MAX_ROWS];
        std::copy_n(b->wanted, b->num_wanted, which);
        multiply(m.head, 0, first, count, normed, which, b->num_wanted, s.out);
        for (int64_t i = 0; i < b->num_wanted; ++i) {
            for (int64_t c = 0; c < count; c += LANES) {
                float* to = b->logits + i * m.vocabulary + first + c;
                store_floats(to, rounded<T>(load<f32v>(s.out + i * STRETCH + c)), count - c);
            }
        }
    }, [] {});
}

template <class T>
int Step<T>::run(const Batch& batch) {
    b = &batch;
    n = batch.rows;
    latent_format = {batch.latent_kind, latent_width(), batch.latent_precise};
    key_format = {batch.key_kind, m.index_width, batch.key_precise};
    if (n == 0) return 0;  // a phase without tasks would never end
    for (int64_t i = 0; i < n; ++i) {
        if (batch.ids[i] < 0 || batch.ids[i] >= m.vocabulary) return 2;
    }
    prepare();
    team = &Team::of_process();
    team->run(batch.threads, phases, [this](int64_t number) {
        Scratch<T>& s = *scratch[number];
        mix(s);
        for (int64_t layer = 0; layer < m.num_layers; ++layer) {
            attention(layer, s);
            feed_forward(layer, s);
        }
        logits(s);
    });
    return failed ? 3 : 0;
}

namespace {

struct Decoder {
    std::mutex lock;  // buffers are shared by all steps of one decoder
    std::unique_ptr<Step<float>> wide;
    std::unique_ptr<Step<bf16>> narrow;
};

}  // namespace
}  // namespace indexshare

// Keeps `model->layers` and everything they point to; they must outlive the decoder. Null when memory ran out.
extern "C" void* indexshare_decode_new(int is_bf16, const indexshare::ModelWeights* model) {
    using namespace indexshare;
    try {
        auto decoder = std::make_unique<Decoder>();
        if (is_bf16) decoder->narrow = std::make_unique<Step<bf16>>(*model);
        else decoder->wide = std::make_unique<Step<float>>(*model);
        return decoder.release();
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

extern "C" void indexshare_decode_free(void* decoder) { delete (indexshare::Decoder*)decoder; }

extern "C" int64_t indexshare_decode_max_rows() { return indexshare::MAX_ROWS; }

// Returns 0; 1 when memory ran out; 2 when an id is outside the vocabulary; 3 when the batch's `fetch` failed.
extern "C" int indexshare_decode_step(void* decoder, const indexshare::Batch* batch) {
    using namespace indexshare;
    Decoder& d = *(Decoder*)decoder;
    const std::lock_guard<std::mutex> held(d.lock);
    try {
        return d.narrow ? d.narrow->run(*batch) : d.wide->run(*batch);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

namespace indexshare {
namespace {

// The first of the largest values.
int64_t most_likely(const float* logits, int64_t count) { return std::max_element(logits, logits + count) - logits; }

template <class T>
int draft_round(Step<T>& step, const Batch& first, Batch later, int64_t steps, int64_t* drafts) {
    const int64_t n = later.rows, vocabulary = step.model().vocabulary, width = step.model().hidden * sizeof(T);
    std::vector<int64_t> same(n);
    for (int64_t i = 0; i < n; ++i) same[i] = i;
    if (const int failed = step.run(first)) return failed;
    for (int64_t i = 0; i < n; ++i) {
        std::copy_n(first.hidden + first.wanted[i] * width, width, later.hidden + i * width);
        drafts[i] = most_likely(first.logits + i * vocabulary, vocabulary);
    }
    later.states = later.hidden;  // read before they are written
    for (later.ahead = 1; later.ahead < steps; ++later.ahead) {
        later.ids = drafts;
        later.reuse = later.ahead == 1 ? first.wanted : same.data();
        if (const int failed = step.run(later)) return failed;
        drafts += n;
        for (int64_t i = 0; i < n; ++i) drafts[i] = most_likely(later.logits + i * vocabulary, vocabulary);
    }
    return 0;
}

}  // namespace
}  // namespace indexshare

// Step 1 of a draft layer with its anchors in `wanted`, then later steps of the anchors alone, each behind the most
// likely token of the step before: drafts [steps][later->rows]. `later` has room for their hidden states and logits.
extern "C" int indexshare_draft_round(void* decoder, const indexshare::Batch* first, const indexshare::Batch* later,
                                      int64_t steps, int64_t* drafts) {
    using namespace indexshare;
    Decoder& d = *(Decoder*)decoder;
    const std::lock_guard<std::mutex> held(d.lock);
    try {
        return d.narrow ? draft_round(*d.narrow, *first, *later, steps, drafts)
                        : draft_round(*d.wide, *first, *later, steps, drafts);
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
