// Latent attention of one query in matrix tiles (../tiles.hpp), bfloat16 only: the same steps as in head_lanes.hpp.
//
// The chosen rows of a chunk are copied together: the left side of their logits, with the heads as columns. The weights
// turned around, heads by rows, are the left side of the sums, with pairs of rows zipped together as the right side.
#pragma once

#include "../tiles.hpp"
#include "head_lanes.hpp"

namespace indexshare {

struct TileScratch;

}  // namespace indexshare

#if defined(INDEXSHARE_TILES)

namespace indexshare {

// Memory of one thread.
struct TileScratch : AttentionScratch<bf16> {
    static constexpr int64_t HEAD_GRAIN = tiles::SIDE, COLUMN_GRAIN = 2 * tiles::SIDE;  // of sums
    using Session = tiles::Session;

    Lines<uint32_t> chunk;  // [CHUNK_ROWS][units up to SIDE]
    Lines<uint32_t> panel;  // [groups of heads][units up to SIDE][SIDE]: the queries
    Lines<uint32_t> turned; // [heads up to SIDE][CHUNK_ROWS / 2]: the weights
    Lines<uint32_t> zipped; // [CHUNK_ROWS / 2][COLUMN_GRAIN]: some columns of the rows

    void reserve(int64_t heads, int64_t units, const RowFormat& format = {}) {
        const int64_t width = round_up(units, tiles::SIDE), padded_heads = round_up(heads, tiles::SIDE);
        AttentionScratch<bf16>::reserve(heads, units, format);
        grow(chunk, CHUNK_ROWS * width);
        grow(panel, padded_heads * width);
        grow(turned, padded_heads * CHUNK_ROWS / 2);
        grow(zipped, CHUNK_ROWS / 2 * COLUMN_GRAIN);
    }
};

class HeadTiles : public OnlineSoftmax<bf16, 1> {
   public:
    static constexpr int64_t SIDE = tiles::SIDE, PAIRS = CHUNK_ROWS / 2, GRAIN = 2 * SIDE;  // of a chunk's rows
    static_assert(HEADS == SIDE, "a group of heads is a vector and a tile wide");
    static_assert(CHUNK_ROWS % GRAIN == 0, "a chunk is whole tiles, as rows and as pairs of rows");

    HeadTiles(int64_t heads, int64_t units, TileScratch& scratch)
        : OnlineSoftmax(heads, scratch), units_(units), width_(round_up(units, SIDE)), t_(scratch) {}

    // q [heads][units] becomes the right side of the logits.
    void pack(const uint32_t* q) {
        std::fill_n(t_.panel.begin(), groups_ * width_ * SIDE, 0u);
        for (int64_t group = 0; group < groups_; ++group) {
            const void* rows[LANES];
            for (int64_t h = 0; h < SIDE; ++h) {
                const int64_t head = group * SIDE + h;
                rows[h] = head < heads_ ? q + head * units_ : nullptr;
            }
            pack_rows(rows, units_, &t_.panel[group * width_ * SIDE], SIDE);
        }
    }

    // Attend to `count` more rows, at most CHUNK_ROWS; `ahead` rows follow. sums [heads up to SIDE][values up to GRAIN].
    void attend(const char* const* rows, int64_t count, int64_t ahead, float scale, int64_t values, float* sums) {
        const int64_t padded = round_up(count, GRAIN);
        copy(rows, count, padded, ahead);
        score(padded, scale);
        leave_out(padded, count);
        if (weigh(padded)) rescale(values, sums);
        turn(padded / 2);
        sum(padded / 2, values, sums);
    }

   private:
    const int64_t units_, width_;
    TileScratch& t_;

    void copy(const char* const* rows, int64_t count, int64_t padded, int64_t ahead) {
        const RowFormat& format = t_.reader.format();
        const int64_t bytes = format.coded() ? format.bytes(2) : 4 * units_;
        uint32_t* to = t_.chunk.data();
        for (int64_t row = 0; row < count; ++row, to += width_) {
            if (row + AHEAD < count + ahead) {
                for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows[row + AHEAD] + at);
            }
            if (format.coded()) decode_row(format, rows[row], (bf16*)to);
            else std::memcpy(to, rows[row], bytes);
            std::fill(to + units_, to + width_, 0u);
        }
        std::fill_n(to, (padded - count) * width_, 0u);
    }

    // Logits of a chunk, [groups][padded][SIDE].
    void score(int64_t padded, float scale) {
        const int64_t depth = width_ / SIDE;
        int64_t group = 0;
        for (; group + 2 <= groups_; group += 2) {
            for (int64_t row = 0; row < padded; row += 2 * SIDE) score_tiles<2, 2>(row, group, depth, padded);
        }
        for (int64_t row = 0; group < groups_; row += 4 * SIDE) {
            if (row + 4 * SIDE <= padded) score_tiles<4, 1>(row, group, depth, padded);
            else if (row < padded) score_tiles<2, 1>(row, group, depth, padded);
            else break;
        }
        float* logits = s_.logits.data();
        for (int64_t at = 0; at < groups_ * padded * SIDE; at += LANES) store(logits + at, load<f32v>(logits + at) * scale);
    }

    template <int R, int G>
    void score_tiles(int64_t row, int64_t group, int64_t depth, int64_t padded) {
        tiles::multiply<R, G, false>({&t_.chunk[row * width_], width_},
                                     {&t_.panel[group * width_ * SIDE], SIDE, width_ * SIDE}, depth,
                                     {&s_.logits[(group * padded + row) * SIDE], SIDE, padded * SIDE});
    }

    // Weights [groups][pairs][SIDE heads] become [heads][PAIRS].
    void turn(int64_t pairs) {
        for (int64_t group = 0; group < groups_; ++group) {
            for (int64_t first = 0; first < pairs; first += SIDE) {
                u32v square[LANES];
                for (int i = 0; i < LANES; ++i) square[i] = load<u32v>(&s_.weights[(group * pairs + first + i) * SIDE]);
                transpose(square);
                for (int i = 0; i < LANES; ++i) store(&t_.turned[(group * SIDE + i) * PAIRS + first], square[i]);
            }
        }
    }

    void sum(int64_t pairs, int64_t values, float* sums) {
        const int64_t columns = round_up(values, GRAIN), depth = pairs / SIDE;
        for (int64_t c = 0; c < values; c += GRAIN) {
            for (int64_t pair = 0; pair < pairs; ++pair) {
                const uint32_t* even = &t_.chunk[2 * pair * width_ + c / 2];
                const u16x2v a = load<u16x2v>(even), b = load<u16x2v>(even + width_);
                store(&t_.zipped[pair * GRAIN], zip_low(a, b));
                store(&t_.zipped[pair * GRAIN + SIDE], zip_high(a, b));
            }
            const tiles::Matrix<const uint32_t> right{t_.zipped.data(), GRAIN};
            int64_t group = 0;
            for (; group + 2 <= groups_; group += 2) {
                tiles::multiply<2, 2, true>({&t_.turned[group * SIDE * PAIRS], PAIRS}, right, depth,
                                            {sums + group * SIDE * columns + c, columns});
            }
            if (group < groups_) {
                tiles::multiply<1, 2, true>({&t_.turned[group * SIDE * PAIRS], PAIRS}, right, depth,
                                            {sums + group * SIDE * columns + c, columns});
            }
        }
    }
};

// As in head_lanes.hpp, with sums [heads up to HEAD_GRAIN][values up to COLUMN_GRAIN]; on a thread with a tiles::Session.
inline void attend_rows(std::vector<const char*>& rows, const uint32_t* q, int64_t heads, int64_t units, int64_t values,
                        float scale, TileScratch& scratch, float* tops, float* masses, float* sums) {
    const int64_t count = (int64_t)rows.size();
    std::fill_n(sums, round_up(heads, TileScratch::HEAD_GRAIN) * round_up(values, TileScratch::COLUMN_GRAIN), 0.0f);
    HeadTiles attention(heads, units, scratch);
    attention.pack(q);
    attention.start();
    for (int64_t first = 0; first < count; first += CHUNK_ROWS) {
        const int64_t chunk = std::min(CHUNK_ROWS, count - first);
        attention.attend(&rows[first], chunk, count - first - chunk, scale, values, sums);
    }
    attention.finish(tops, masses);
}

}  // namespace indexshare

#endif
