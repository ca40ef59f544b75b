// Vectors of 32-bit lanes, written once for every processor in the compiler's own vector extension.
//
// A "unit" is 32 bits of a row: one float, or two neighbouring bfloat16. Rows of both types are packed, transposed
// and broadcast as units; only `mac` knows what is inside. So every kernel is one template over float and bf16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <new>
#include <utility>
#include <vector>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace indexshare {

#if defined(__AVX512F__) || defined(INDEXSHARE_EMULATE_TILES)  // tiles meet vectors of sixteen lanes, real or not
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Accumulators of a register tile: rows (heads) times vectors. Together they leave room for the operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif

using f32v = float __attribute__((vector_size(4 * LANES)));
using i32v = int32_t __attribute__((vector_size(4 * LANES)));
using u32v = uint32_t __attribute__((vector_size(4 * LANES)));
using u64v = uint64_t __attribute__((vector_size(4 * LANES)));
using u16v = uint16_t __attribute__((vector_size(2 * LANES)));
using u16x2v = uint16_t __attribute__((vector_size(4 * LANES)));

struct bf16 {
    uint16_t bits;
};

template <class V>
inline V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
inline void store(void* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

inline f32v splat(float x) { return f32v{} + x; }
inline i32v splat(int32_t x) { return i32v{} + x; }
inline u32v splat(uint32_t x) { return u32v{} + x; }

inline i32v iota() {
    i32v v;
    for (int lane = 0; lane < LANES; ++lane) v[lane] = lane;
    return v;
}

// acc + a * b, unit by unit.
template <class T>
inline f32v mac(f32v acc, u32v a, u32v b);

template <>
inline f32v mac<float>(f32v acc, u32v a, u32v b) {
    return acc + (f32v)a * (f32v)b;
}

template <>
inline f32v mac<bf16>(f32v acc, u32v a, u32v b) {
#if defined(__AVX512BF16__)
    return (f32v)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc += (f32v)(a << 16) * (f32v)(b << 16);
    return acc + (f32v)(a & 0xffff0000u) * (f32v)(b & 0xffff0000u);
#endif
}

// acc + a * b, where b is one unit that every lane meets.
template <class T>
inline f32v mac(f32v acc, u32v a, uint32_t b) {
    return mac<T>(acc, a, splat(b));
}

// Elements in a unit.
template <class T>
constexpr int DEPTH = 4 / sizeof(T);

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

// Round to nearest, ties to even; NaN stays NaN.
inline u32v bf16_bits(f32v x) {
    u32v bits = (u32v)x;
    u32v rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (x != x) ? splat((uint32_t)0x7fc0u) : rounded;
}

inline void store_as(float* to, f32v x) { store(to, x); }
inline void store_as(bf16* to, f32v x) {
#if defined(__AVX512BF16__)
    store(to, _mm512_cvtneps_pbh((__m512)x));
#else
    store(to, __builtin_convertvector(bf16_bits(x), u16v));
#endif
}

// Store `count` floats as T.
template <class T>
inline void store_row(T* to, const float* from, int64_t count, float factor) {
    int64_t c = 0;
    for (; c + LANES <= count; c += LANES) store_as(to + c, load<f32v>(from + c) * factor);
    if (c < count) {
        T tail[LANES];
        store_as(tail, load<f32v>(from + c) * factor);
        std::copy_n(tail, count - c, to + c);
    }
}

// acc[r][v] += sum over u of panel[u][v] * rows[r][u]; panel `[units][V * LANES]`.
template <class T, int R, int V>
inline void dots(const uint32_t* const (&rows)[R], const uint32_t* panel, int64_t units, f32v (&acc)[R][V]) {
    for (int64_t u = 0; u < units; ++u) {
        u32v column[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) column[v] = load<u32v>(panel + (u * V + v) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const uint32_t unit = rows[r][u];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) acc[r][v] = mac<T>(acc[r][v], column[v], unit);
        }
    }
}

// The same for rows that lie `stride` units apart.
template <class T, int R, int V>
inline void dots(const uint32_t* rows, int64_t stride, const uint32_t* panel, int64_t units, f32v (&acc)[R][V]) {
    const uint32_t* each[R];
    for (int r = 0; r < R; ++r) each[r] = rows + r * stride;
    dots<T>(each, panel, units, acc);
}

#if defined(__clang__)
template <int S, int... L>
inline u32v exchange_low(u32v a, u32v b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, ((L & S) ? LANES + L - S : L)...);
}
template <int S, int... L>
inline u32v exchange_high(u32v a, u32v b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, ((L & S) ? LANES + L : L + S)...);
}
template <int First, int... L>
inline u16x2v zip(u16x2v a, u16x2v b, std::integer_sequence<int, L...>) {
    return __builtin_shufflevector(a, b, (First + L / 2 + (L % 2) * 2 * LANES)...);
}
#else
template <int S, int... L>
inline u32v exchange_low(u32v a, u32v b, std::integer_sequence<int, L...>) {
    return __builtin_shuffle(a, b, u32v{((L & S) ? LANES + L - S : L)...});
}
template <int S, int... L>
inline u32v exchange_high(u32v a, u32v b, std::integer_sequence<int, L...>) {
    return __builtin_shuffle(a, b, u32v{((L & S) ? LANES + L : L + S)...});
}
template <int First, int... L>
inline u16x2v zip(u16x2v a, u16x2v b, std::integer_sequence<int, L...>) {
    return __builtin_shuffle(a, b, u16x2v{(First + L / 2 + (L % 2) * 2 * LANES)...});
}
#endif

// Units whose low half comes from a and whose high half from b: of the first LANES columns, and of the next.
inline u32v zip_low(u16x2v a, u16x2v b) { return (u32v)zip<0>(a, b, std::make_integer_sequence<int, 2 * LANES>()); }
inline u32v zip_high(u16x2v a, u16x2v b) { return (u32v)zip<LANES>(a, b, std::make_integer_sequence<int, 2 * LANES>()); }

// One round of the square transposition: off-diagonal blocks of S x S change places.
template <int S>
inline void exchange(u32v (&square)[LANES]) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) {
        if (i & S) continue;
        const u32v a = square[i], b = square[i + S];
        square[i] = exchange_low<S>(a, b, lanes);
        square[i + S] = exchange_high<S>(a, b, lanes);
    }
}

inline void transpose(u32v (&square)[LANES]) {
    exchange<1>(square);
    exchange<2>(square);
    if constexpr (LANES >= 8) exchange<4>(square);
    if constexpr (LANES >= 16) exchange<8>(square);
}

// Calls `tile(R, first)` for stretches of R rows, a compile-time constant, that cover `rows`, a multiple of ROW_GRAIN.
constexpr int ROW_GRAIN = 4;

template <class Tile>
inline void for_row_tiles(int64_t rows, Tile tile) {
    int64_t first = 0;
    for (; first + TILE_ROWS <= rows; first += TILE_ROWS) tile(std::integral_constant<int, TILE_ROWS>(), first);
    for (; first < rows; first += ROW_GRAIN) tile(std::integral_constant<int, ROW_GRAIN>(), first);
}

// Calls `tile(V, first)` for stretches of V vectors, a compile-time constant, that cover `columns`, a multiple of LANES.
template <class Tile>
inline void for_column_tiles(int64_t columns, Tile tile) {
    int64_t first = 0;
    for (; first + TILE_VECTORS * LANES <= columns; first += TILE_VECTORS * LANES) {
        tile(std::integral_constant<int, TILE_VECTORS>(), first);
    }
    for (; first < columns; first += LANES) tile(std::integral_constant<int, 1>(), first);
}

// Rows become lanes: panel[u * width + lane] = unit u of rows[lane]. A null row counts as zeros.
inline void pack_rows(const void* const (&rows)[LANES], int64_t units, uint32_t* panel, int64_t width) {
    u32v square[LANES];
    int64_t u = 0;
    for (; u + LANES <= units; u += LANES) {
        for (int i = 0; i < LANES; ++i) {
            square[i] = rows[i] ? load<u32v>((const uint32_t*)rows[i] + u) : u32v{};
        }
        transpose(square);
        for (int i = 0; i < LANES; ++i) store(panel + (u + i) * width, square[i]);
    }
    for (; u < units; ++u) {
        for (int i = 0; i < LANES; ++i) {
            uint32_t unit = 0;
            if (rows[i]) std::memcpy(&unit, (const uint32_t*)rows[i] + u, 4);
            panel[u * width + i] = unit;
        }
    }
}

// e^r for |r| <= ln 2 / 2: relative error below 2e-7, or below 3e-6 where bfloat16 takes the result.
template <class T = float>
inline f32v exp_fraction(f32v r) {
    f32v p = splat(1.0f / 120);
    if constexpr (sizeof(T) == 4) p += r * (1.0f / 720);
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    return p * r + 1.0f;
}

// e^x for x <= 0; zero for minus infinity, NaN stays NaN. T is the type that takes the result.
template <class T = float>
inline f32v exp_negative(f32v x) {
#if defined(__AVX512F__)
    const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-200.0f), (__m512)x);  // of NaN and a number: the second
    const __m512 n = _mm512_roundscale_ps((__m512)((f32v)clamped * 1.44269504f), _MM_FROUND_TO_NEAREST_INT);
    f32v r = (f32v)clamped - (f32v)n * 0.693145752f;
    r = r - (f32v)n * 1.42860677e-6f;
    return (f32v)_mm512_scalef_ps((__m512)exp_fraction<T>(r), n);
#else
    const f32v low = splat(-87.0f);
    const i32v gone = x < low;
    const f32v clamped = gone ? low : x;
    // x = n ln 2 + r: 1.5 * 2^23 pushes the fraction out, which leaves n in the low bits.
    const f32v magic = splat(12582912.0f);
    const f32v shifted = clamped * 1.44269504f + magic;
    const f32v n = shifted - magic;
    f32v r = clamped - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    const i32v exponent = ((i32v)shifted - (i32v)magic) << 23;
    const f32v result = (f32v)((i32v)exp_fraction<T>(r) + exponent);
    return gone ? f32v{} : (x != x) ? x : result;
#endif
}

inline float sum(f32v v) {
    float total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += v[lane];
    return total;
}

inline int32_t sum(i32v v) {
    int32_t total = 0;
    for (int lane = 0; lane < LANES; ++lane) total += v[lane];
    return total;
}

// Memory in whole lines of the cache: a vector or a row of a tile never lies across two.
template <class V>
struct LineAllocator {
    using value_type = V;
    static constexpr std::align_val_t LINE{64};

    LineAllocator() = default;
    template <class W>
    LineAllocator(const LineAllocator<W>&) {}
    V* allocate(size_t count) { return (V*)::operator new(count * sizeof(V), LINE); }
    void deallocate(V* memory, size_t) { ::operator delete(memory, LINE); }
    template <class W>
    bool operator==(const LineAllocator<W>&) const { return true; }
    template <class W>
    bool operator!=(const LineAllocator<W>&) const { return false; }
};

template <class V>
using Lines = std::vector<V, LineAllocator<V>>;

inline int64_t round_up(int64_t n, int64_t grain) { return (n + grain - 1) / grain * grain; }

}  // namespace indexshare
