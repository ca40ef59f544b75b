// Matrix tiles of Intel AMX: eight registers of 16 rows x 64 bytes, and a product of two of them in bfloat16.
//
// `dot<C, A, B>`: C [16][16] float += A [16][16 units] x B [16 units][16], a unit being two neighbouring bfloat16 of the
// product's depth: a row of A holds 32 numbers, a row of B the same two of 16 columns. That is how pack_rows lays keys.
//
// Compiled for AMX these are instructions. With INDEXSHARE_EMULATE_TILES they are plain C++ with the same results on any
// machine, which stops the program where the processor would. Without either there are none: see USE_TILES.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "simd.hpp"

#if defined(INDEXSHARE_EMULATE_TILES) || (defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512F__))
#define INDEXSHARE_TILES 1
#endif

namespace indexshare {

// Whether kernels for T work with tiles in this build.
#if defined(INDEXSHARE_TILES)
template <class T>
constexpr bool USE_TILES = std::is_same_v<T, bf16>;
#else
template <class T>
constexpr bool USE_TILES = false;
#endif

}  // namespace indexshare

#if defined(INDEXSHARE_TILES)

namespace indexshare::tiles {

constexpr int SIDE = 16;  // rows of a tile, and 32-bit columns

// What the processor reads to shape its tiles.
struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};
static_assert(sizeof(Shapes) == 64, "the processor reads 64 bytes");

}  // namespace indexshare::tiles

#if defined(INDEXSHARE_EMULATE_TILES)
#include "tiles_emulated.hpp"
#else
namespace indexshare::tiles {

// Not the compiler's intrinsics: GCC's do not say that a load reads memory, and stores may be moved behind it.
inline void configure(const Shapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release() { asm volatile("tilerelease"); }

template <int N>
inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(N));
}

// Rows are `stride` bytes apart.
template <int N>
inline void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(N) : "memory");
}

template <int N>
inline void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(N) : "memory");
}

template <int C, int A, int B>
inline void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

}  // namespace indexshare::tiles
#endif

namespace indexshare::tiles {

// While it lives, the thread that made it has eight whole tiles. Nothing else on that thread may use tiles meanwhile.
class Session {
   public:
    Session() {
        Shapes shapes;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.row_bytes[tile] = 4 * SIDE;
            shapes.rows[tile] = SIDE;
        }
        configure(shapes);
    }
    ~Session() { release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
};

// A matrix of 32-bit units; `row` and `next` are the distances between neighbouring rows, and between neighbouring
// columns of tiles.
template <class V>
struct Matrix {
    V* at;
    int64_t row, next = SIDE;
};

template <class F, int... I>
inline void each(F f, std::integer_sequence<int, I...>) {
    (f(std::integral_constant<int, I>()), ...);
}

// Calls `f` with the constants 0 .. COUNT - 1.
template <int COUNT, class F>
inline void each(F f) {
    each(f, std::make_integer_sequence<int, COUNT>());
}

// c = a x b, or c += a x b: R x G tiles of c, `depth` tiles deep. All of c stays in tiles meanwhile.
template <int R, int G, bool ADD>
inline void multiply(Matrix<const uint32_t> a, Matrix<const uint32_t> b, int64_t depth, Matrix<float> c) {
    constexpr int LEFT = R * G, RIGHT = 8 - G, LEFTS = RIGHT - LEFT;  // c: 0 .. LEFT - 1, a: .. RIGHT - 1, b: .. 7
    static_assert(LEFTS >= 1, "eight tiles must hold c, a column of b and part of a row of a");
    each<R * G>([&](auto tile) {
        constexpr int N = decltype(tile)::value;
        if constexpr (ADD) load<N>(c.at + N / G * SIDE * c.row + N % G * c.next, 4 * c.row);
        else zero<N>();
    });
    for (int64_t step = 0; step < depth; ++step) {
        each<G>([&](auto column) {
            constexpr int J = decltype(column)::value;
            load<RIGHT + J>(b.at + step * SIDE * b.row + J * b.next, 4 * b.row);
        });
        each<R>([&](auto row) {
            constexpr int I = decltype(row)::value;
            load<LEFT + I % LEFTS>(a.at + I * SIDE * a.row + step * SIDE, 4 * a.row);
            each<G>([&](auto column) {
                constexpr int J = decltype(column)::value;
                dot<I * G + J, LEFT + I % LEFTS, RIGHT + J>();
            });
        });
    }
    each<R * G>([&](auto tile) {
        constexpr int N = decltype(tile)::value;
        store<N>(c.at + N / G * SIDE * c.row + N % G * c.next, 4 * c.row);
    });
}

}  // namespace indexshare::tiles

#endif
