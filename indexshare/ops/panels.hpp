// Many rows times some rows of a matrix: these are packed as lanes (a panel), and every row meets all of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.hpp"

namespace indexshare {

// Accumulators of a tile, as many as in simd.hpp: fewer rows and more vectors.
constexpr int WIDE = 4, ROWS_OF_WIDE = TILE_ROWS * TILE_VECTORS / WIDE;

// Rows of a matrix [..][width] become the lanes of vector `v` of a panel; rows from `count` on are zeros.
template <class T>
inline void pack_vector(const char* matrix, int64_t first, int64_t count, int64_t width, uint32_t* panel, int v) {
    const void* lanes[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) {
        lanes[lane] = lane < count ? matrix + (first + lane) * width * sizeof(T) : nullptr;
    }
    pack_rows(lanes, width / DEPTH<T>, panel + v * LANES, WIDE * LANES);
}

// Calls use(place, products) for every place of a stretch; row(place) says where its row lies.
template <class T, class Row, class Use>
inline void for_products(int64_t start, int64_t stop, int64_t units, const uint32_t* panel, Row row, Use use) {
    for (int64_t place = start; place < stop; place += ROWS_OF_WIDE) {
        const uint32_t* rows[ROWS_OF_WIDE];
        for (int r = 0; r < ROWS_OF_WIDE; ++r) rows[r] = (const uint32_t*)row(std::min(place + r, stop - 1));
        f32v acc[ROWS_OF_WIDE][WIDE] = {};
        dots<T>(rows, panel, units, acc);
        for (int r = 0; r < ROWS_OF_WIDE && place + r < stop; ++r) use(place + r, acc[r]);
    }
}

}  // namespace indexshare
