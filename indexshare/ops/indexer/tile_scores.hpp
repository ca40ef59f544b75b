// Scores of a task's queries against a block of keys in matrix tiles (../tiles.hpp), bfloat16 only.
//
// The index heads of all queries lie below each other as rows, without gaps; the packed keys are columns. Products of
// 32 rows with 32 keys are stored, and every row adds its weight times what is positive to the scores of its query.
#pragma once

#include "../tiles.hpp"
#include "scores.hpp"

namespace indexshare {

class TileScores;

}  // namespace indexshare

#if defined(INDEXSHARE_TILES)

namespace indexshare {

class TileScores {
   public:
    static constexpr int VECTORS = 2, BLOCK = 2 * tiles::SIDE;
    using Session = tiles::Session;
    static_assert(LANES == tiles::SIDE && BLOCK <= KEYS, "a tile is a vector wide; Candidates makes room for KEYS");

    // As in LaneScores. What pads rows to whole tiles, and a row's and the keys' depth, is zero on both sides.
    void take(const uint32_t* q, const float* weights, int64_t count, int64_t heads, int64_t units,
              const RowFormat& format) {
        reader_.prepare(format, LANES);
        heads_ = heads;
        rows_ = count * heads;
        units_ = units;
        depth_ = (units + tiles::SIDE - 1) / tiles::SIDE;
        const int64_t width = depth_ * tiles::SIDE;
        queries_.assign(round_up(rows_, tiles::SIDE) * width, 0);
        for (int64_t row = 0; row < rows_; ++row) std::memcpy(&queries_[row * width], q + row * units, 4 * units);
        weights_.assign(weights, weights + rows_);
        panel_.assign(width * BLOCK, 0);
        products_.resize(BLOCK * BLOCK);
        scores_.resize(count * BLOCK);
    }

    void meet(const char* keys, int64_t key_stride, int64_t key, int64_t end) {
        for (int v = 0; v < VECTORS; ++v) {
            pack_key_vector(reader_, keys, key_stride, key + v * LANES, end, units_, panel_.data() + v * LANES, BLOCK);
        }
        std::fill(scores_.begin(), scores_.end(), 0.0f);
        for (int64_t first = 0; first < rows_; first += BLOCK) {
            const int64_t width = depth_ * tiles::SIDE;
            const tiles::Matrix<const uint32_t> left{&queries_[first * width], width}, right{panel_.data(), BLOCK};
            const tiles::Matrix<float> products{products_.data(), BLOCK};
            if (first + tiles::SIDE < rows_) tiles::multiply<2, 2, false>(left, right, depth_, products);
            else tiles::multiply<1, 2, false>(left, right, depth_, products);
            add_rows(first, std::min<int64_t>(first + BLOCK, rows_));
        }
    }

    void scores_of(int64_t query, f32v (&score)[VECTORS]) const {
        for (int v = 0; v < VECTORS; ++v) score[v] = load<f32v>(&scores_[query * BLOCK + v * LANES]);
    }

   private:
    int64_t heads_ = 0, rows_ = 0, units_ = 0, depth_ = 0;
    RowReader<bf16> reader_;
    Lines<uint32_t> queries_, panel_;           // [rows][depth * SIDE], [depth * SIDE][BLOCK]
    Lines<float> weights_, products_, scores_;  // [rows], [BLOCK][BLOCK], [queries][BLOCK]

    // In the order of heads, wherever a block of rows begins: the same bits in any batch.
    void add_rows(int64_t first, int64_t end) {
        for (int64_t row = first; row < end;) {
            float* of_query = &scores_[row / heads_ * BLOCK];
            f32v score[VECTORS] = {load<f32v>(of_query), load<f32v>(of_query + LANES)};
            for (const int64_t last = std::min(end, (row / heads_ + 1) * heads_); row < last; ++row) {
                const float* product = &products_[(row - first) * BLOCK];
                for (int v = 0; v < VECTORS; ++v) {
                    score[v] += positive(load<f32v>(product + v * LANES)) * weights_[row];
                }
            }
            for (int v = 0; v < VECTORS; ++v) store(of_query + v * LANES, score[v]);
        }
    }
};

}  // namespace indexshare

#endif
