// What one decode step works on: activations shared by all threads, scratch memory of one, and how work is divided.
#pragma once

#include <initializer_list>

#include "../ops/experts/choose.hpp"
#include "../ops/indexer/whole_scores.hpp"
#include "../ops/sparse_mla/head_lanes.hpp"
#include "model.hpp"
#include "products.hpp"
#include "team.hpp"

namespace indexshare {

constexpr int64_t PHASES_PER_LAYER = 9;

// Scratch memory of one thread.
template <class T>
struct Scratch {
    alignas(64) float out[MAX_ROWS * STRETCH] = {};
    alignas(64) float other[MAX_ROWS * STRETCH] = {};
    Rows<T> nope, mixed;             // what one head of every row puts into key_up and value_up
    std::vector<float> wide;         // [rows][rank]
    std::vector<const char*> rows;   // of a pool
    RowReader<T> keys;               // of a pool of index keys
    Lines<uint32_t> panel;           // of packed index keys
    AttentionScratch<T> attention;
    int64_t number = 0, phase = 0;   // of the thread, and of the phase that it comes to next
};

// Rows of a sequence's pool one after the other, across its blocks.
class Walk {
   public:
    Walk(const char* pool, int64_t stride, const int64_t* table, int64_t block_size, int64_t position)
        : pool_(pool), stride_(stride), table_(table + position / block_size), size_(block_size),
          at_(position % block_size) {}

    const char* next() {
        if (at_ == size_) {
            at_ = 0;
            ++table_;
        }
        return pool_ + (*table_ * size_ + at_++) * stride_;
    }

   private:
    const char* pool_;
    int64_t stride_;
    const int64_t* table_;
    int64_t size_, at_;
};

// Part of a row's keys in the attention: `part` of `parts`, keys `begin .. end-1` of all or of the chosen ones.
struct Stretch {
    int64_t row, part, begin, end;
};

template <class T>
class Step {
   public:
    explicit Step(const ModelWeights& model) : m(model) {}

    // 0; 1 when memory ran out; 2 when an id is outside the vocabulary; 3 when `fetch` failed.
    int run(const Batch& batch);

    const ModelWeights& model() const { return m; }

   private:
    static constexpr int64_t LEAST_STRETCH = 64, MOST_STRETCHES = 16;
    const ModelWeights m;
    const Batch* b = nullptr;
    int64_t n = 0;  // rows
    RowFormat latent_format, key_format;            // of the caches

    std::vector<float> cosines, sines;              // [n][rope / 2]
    Rows<T> x, normed, query_latent, attended, inner, expert_inner;
    Rows<T> joined;                                 // input of a draft layer
    Rows<T> query_raw, latent_raw, key_raw;         // before their norms
    std::vector<float> head_weights, router_logits; // [n][index heads], [n][experts]

    int64_t padded_heads = 0, padded_index_heads = 0;
    std::vector<uint32_t> queries;                  // [n][padded heads][units of a latent row]
    std::vector<uint32_t> index_queries;            // [n][padded index heads][units of an index key]
    std::vector<uint32_t> whole_queries;            // the same as whole numbers, if the keys are stored so
    std::vector<float> index_weights;               // [n][padded index heads]

    std::vector<int32_t> sparse_rows;               // rows whose context exceeds the limit
    int64_t index_parts = 1;
    std::vector<Candidates> candidates;             // [sparse rows][parts]
    std::atomic<int> parts_left[MAX_ROWS];
    std::vector<int64_t> chosen;                    // [n][topk]: rows of the pools, kept for Shared layers
    std::vector<int64_t> named, fetched;            // [sparse rows][topk]: of a cache with rows in files, before and after
    bool failed = false;                            // they could not be fetched

    std::vector<Stretch> stretches;
    std::vector<int64_t> first_stretch;             // [n + 1]
    std::vector<float> tops, masses, sums;          // [stretches][padded heads]([columns])

    std::vector<int32_t> expert_ids;                // [n][k], ascending
    std::vector<float> expert_weights;
    std::vector<int32_t> used, starts;              // experts that have rows, and where their pairs start
    std::vector<int32_t> pairs, pair_rows;          // row * k + place, and the row, by expert
    std::vector<int64_t> experts_in_use;            // of each layer, see `divide`; `used` is the latest layer's
    RoutingScratch routing_scratch;

    std::shared_ptr<Phase[]> phases;
    std::vector<std::unique_ptr<Scratch<T>>> scratch;
    Team* team = nullptr;

    int64_t columns() const { return round_up(m.rank, 2 * LANES); }
    int64_t latent_width() const { return m.rank + m.rope; }
    bool whole_keys() const { return WholeKeys::takes(key_format); }
    bool is_sparse(int64_t row) const { return b->positions[row] + 1 > b->limit; }

    void prepare();
    void prepare_positions();
    void prepare_attention();
    void prepare_feed_forward();
    void prepare_scratch();
    void join();
    void mix(Scratch<T>& s);
    void logits(Scratch<T>& s);

    void attention(int64_t layer, Scratch<T>& s);
    void write_caches(int64_t layer);
    void query_head(const LayerWeights& w, int64_t head, Scratch<T>& s);
    void absorb(const LayerWeights& w, int64_t head, Scratch<T>& s);
    void index_head(const LayerWeights& w, int64_t head, Scratch<T>& s);
    void score_part(int64_t layer, int64_t index, int64_t part, Scratch<T>& s);
    void score_block(Walk& walk, int64_t row, int64_t visible, Scratch<T>& s, f32v (&score)[TILE_VECTORS]);
    void merge(int64_t index);
    void name_chosen();
    void fetch(int64_t layer);
    void attend(int64_t layer, const Stretch& part, int64_t at, Scratch<T>& s);
    void head_values(const LayerWeights& w, int64_t head, Scratch<T>& s);
    void combine(int64_t row, int64_t head, float* mixed);

    void feed_forward(int64_t layer, Scratch<T>& s);
    void gated(const FeedForward& f, int64_t member, int64_t first, int64_t count, const Rows<T>& from,
               const int32_t* which, int64_t rows, Rows<T>& to, const int32_t* places, Scratch<T>& s);
    void route(int64_t layer);
    void group_by_expert();
    void down(const LayerWeights& w, int64_t first, int64_t count, Scratch<T>& s);
    void norm_for(int64_t layer);

    // Rows of a matrix per task: enough tasks for all threads, none smaller than a block.
    int64_t stretch(int64_t rows) const {
        return std::min(STRETCH, round_up(rows / (4 * std::max<int64_t>(1, b->threads)) + 1, BLOCK_ROWS));
    }
    int64_t tasks(int64_t rows) const { return (rows + stretch(rows) - 1) / stretch(rows); }

    // Calls `work` for tasks 0 .. count-1 (some), shared with the other threads, and `after` once when all are done; returns
    // when that is done too. It waits for tasks and not, as a barrier does, for threads: one that the system has put
    // aside between two tasks holds up nobody. That thread comes late, perhaps layers behind: `count`, which it reads
    // then, must not change until the step ends. `work` and `after` may use anything, for a phase waits for its tasks.
    template <class Work, class After>
    void divide(Scratch<T>& s, int64_t count, Work work, After after) {
        Phase& phase = phases[s.phase++];
        for (int64_t task; (task = phase.next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            work(task);
            if (phase.done.fetch_add(1, std::memory_order_acq_rel) + 1 < count) continue;
            after();
            phase.complete.store(true, std::memory_order_release);
        }
        team->await(phase, s.number);
    }

    // The same over stretches of the rows of several matrices: work(which matrix, first row, count).
    template <class Work, class After>
    void divide_rows(Scratch<T>& s, std::initializer_list<const Matrix*> matrices, Work work, After after) {
        int64_t count = 0;
        for (const Matrix* matrix : matrices) count += tasks(matrix->rows);
        divide(s, count, [&](int64_t task) {
            int which = 0;
            for (const Matrix* matrix : matrices) {
                if (task < tasks(matrix->rows)) {
                    const int64_t first = task * stretch(matrix->rows);
                    return work(which, first, std::min(stretch(matrix->rows), matrix->rows - first));
                }
                task -= tasks(matrix->rows);
                ++which;
            }
        }, after);
    }
};

}  // namespace indexshare
