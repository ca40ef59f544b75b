// Tiles in plain C++, after the description of LDTILECFG, TILELOADD, TILESTORED and TDPBF16PS in Intel's manual.
// What the processor refuses ends the program. Included by tiles.hpp.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace indexshare::tiles::emulated {

struct EmulatedTiles {
    bool configured = false;
    Shapes shapes;
    uint32_t units[8][SIDE][SIDE];
};

inline EmulatedTiles& registers() {
    static thread_local EmulatedTiles tiles;
    return tiles;
}

inline void require(bool fine, const char* what) {
    if (fine) return;
    std::fprintf(stderr, "tiles: %s\n", what);
    std::abort();
}

inline void configure(const Shapes& shapes) {
    EmulatedTiles& t = registers();
    require(!t.configured, "configured twice without a release");  // no fault, but never meant here
    require(shapes.palette == 1 && shapes.start_row == 0, "palette 1 from row 0 expected");
    for (uint8_t byte : shapes.reserved) require(byte == 0, "a reserved byte is not zero");
    for (int n = 0; n < 16; ++n) {
        const int rows = shapes.rows[n], bytes = shapes.row_bytes[n];
        require(n < 8 || (rows == 0 && bytes == 0), "there are eight tiles");
        require(rows <= SIDE && bytes <= 4 * SIDE, "a tile has at most 16 rows of 64 bytes");
        require((rows == 0) == (bytes == 0), "rows without columns, or columns without rows");
    }
    t.shapes = shapes;
    t.configured = true;
    std::memset(t.units, 0, sizeof t.units);
}

inline void release() {
    registers() = EmulatedTiles();
}

inline EmulatedTiles& usable(int n) {
    EmulatedTiles& t = registers();
    require(n >= 0 && n < 8, "there are eight tiles");
    require(t.configured, "used before they were configured");
    require(t.shapes.rows[n] > 0, "used without a shape");
    require(t.shapes.row_bytes[n] % 4 == 0, "columns are no whole units");
    return t;
}

inline void zero(int n) {
    EmulatedTiles& t = usable(n);
    std::memset(t.units[n], 0, sizeof t.units[n]);
}

inline void load(int n, const void* from, int64_t stride) {
    EmulatedTiles& t = usable(n);
    std::memset(t.units[n], 0, sizeof t.units[n]);
    for (int r = 0; r < t.shapes.rows[n]; ++r) {
        std::memcpy(t.units[n][r], (const char*)from + r * stride, t.shapes.row_bytes[n]);
    }
}

inline void store(int n, void* to, int64_t stride) {
    const EmulatedTiles& t = usable(n);
    for (int r = 0; r < t.shapes.rows[n]; ++r) {
        std::memcpy((char*)to + r * stride, t.units[n][r], t.shapes.row_bytes[n]);
    }
}

// Numbers too small for a full mantissa count as zero, before an operation and after it.
inline uint32_t flush(uint32_t bits) { return (bits & 0x7f800000u) ? bits : bits & 0x80000000u; }

inline float as_number(uint32_t bits) {
    float x;
    bits = flush(bits);
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float flushed(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return as_number(bits);
}

// Even and odd numbers are summed apart, each product fused with its addition, then both and the old value added.
inline void dot(int c, int a, int b) {
    require(c != a && a != b && b != c, "three different tiles expected");
    EmulatedTiles& t = usable(c);
    usable(a), usable(b);
    const int rows = t.shapes.rows[c], columns = t.shapes.row_bytes[c] / 4, depth = t.shapes.rows[b];
    require(t.shapes.rows[a] == rows, "rows of the product and of its left side differ");
    require(t.shapes.row_bytes[b] / 4 == columns, "columns of the product and of its right side differ");
    require(t.shapes.row_bytes[a] / 4 == depth, "depths differ");
    for (int m = 0; m < rows; ++m) {
        float even[SIDE] = {}, odd[SIDE] = {};
        for (int k = 0; k < depth; ++k) {
            const uint32_t left = t.units[a][m][k];
            for (int n = 0; n < columns; ++n) {
                const uint32_t right = t.units[b][k][n];
                even[n] = flushed(std::fma(as_number(left << 16), as_number(right << 16), even[n]));
                odd[n] = flushed(std::fma(as_number(left & 0xffff0000u), as_number(right & 0xffff0000u), odd[n]));
            }
        }
        for (int n = 0; n < columns; ++n) {
            const float sum = flushed(as_number(t.units[c][m][n]) + flushed(even[n] + odd[n]));
            std::memcpy(&t.units[c][m][n], &sum, 4);
        }
    }
}

}  // namespace indexshare::tiles::emulated

namespace indexshare::tiles {

using emulated::configure;
using emulated::release;

template <int N>
inline void zero() {
    emulated::zero(N);
}

template <int N>
inline void load(const void* from, int64_t stride) {
    emulated::load(N, from, stride);
}

template <int N>
inline void store(void* to, int64_t stride) {
    emulated::store(N, to, stride);
}

template <int C, int A, int B>
inline void dot() {
    emulated::dot(C, A, B);
}

}  // namespace indexshare::tiles
