// Scores of a task's queries against a block of keys: the way of the prefill's indexer through vectors.
//
// A scorer takes up to QUERIES queries, then meets blocks of keys, and after each says what every query thinks of them.
// tile_scores.hpp has another one.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../coded/row_format.hpp"
#include "candidates.hpp"
#include "whole_scores.hpp"

namespace indexshare {

constexpr int QUERIES = 16;  // of one task: they share the packed keys

// Rows from `key` on become lanes, one vector at a time; those from `end` on count as zeros. panel [units][width].
template <class T>
inline void pack_key_vector(RowReader<T>& reader, const char* keys, int64_t key_stride, int64_t key, int64_t end,
                            int64_t units, uint32_t* panel, int64_t width) {
    const void* rows[LANES];
    for (int lane = 0; lane < LANES; ++lane) {
        rows[lane] = key + lane < end ? reader.at(keys + (key + lane) * key_stride, lane) : nullptr;
    }
    pack_rows(rows, units, panel, width);
}

template <class T>
class LaneScores {
   public:
    static constexpr int VECTORS = TILE_VECTORS, BLOCK = KEYS;  // of keys
    struct Session {};                                          // nothing to set up on a thread

    // q [count][heads][units], weights [count][heads], and the form of the keys to be met.
    void take(const uint32_t* q, const float* weights, int64_t count, int64_t heads, int64_t units,
              const RowFormat& format) {
        scaled_ = ScaledKeys<T>::takes(format);
        if (!scaled_) reader_.prepare(format, LANES);
        width_ = format.width;
        heads_ = heads;
        padded_heads_ = round_up(heads, ROW_GRAIN);
        units_ = units;
        queries_.assign(count * padded_heads_ * units, 0);
        weights_.assign(count * padded_heads_, 0.0f);
        for (int64_t i = 0; i < count; ++i) {
            std::memcpy(&queries_[i * padded_heads_ * units], q + i * heads * units, 4 * heads * units);
            std::memcpy(&weights_[i * padded_heads_], weights + i * heads, 4 * heads);
        }
        panel_.resize(units * BLOCK);
    }

    void meet(const char* keys, int64_t key_stride, int64_t key, int64_t end) {
        for (int v = 0; v < VECTORS; ++v) {
            if (!scaled_) {
                pack_key_vector(reader_, keys, key_stride, key + v * LANES, end, units_, panel_.data() + v * LANES, BLOCK);
                continue;
            }
            const void* rows[LANES];
            key_rows(keys, key_stride, key + v * LANES, end, rows);
            ScaledKeys<T>::pack(rows, width_, v, panel_.data(), scales_[v]);
        }
    }

    void scores_of(int64_t query, f32v (&score)[VECTORS]) const {
        const int64_t row = query * padded_heads_;
        score_keys<T>(heads_, units_, &queries_[row * units_], &weights_[row], panel_.data(), score);
        for (int v = 0; scaled_ && v < VECTORS; ++v) score[v] *= scales_[v];
    }

   private:
    int64_t heads_ = 0, padded_heads_ = 0, units_ = 0, width_ = 0;
    bool scaled_ = false;  // keys are packed without their scales
    f32v scales_[VECTORS];
    RowReader<T> reader_;
    Lines<uint32_t> panel_, queries_;
    Lines<float> weights_;
};

}  // namespace indexshare
