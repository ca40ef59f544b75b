// Products of a few rows of activations with rows of a weight matrix.
//
// Every product is one sum over the inputs in the same order, whatever rows are computed beside it: results do not
// depend on the batch, on the division of rows among threads, or on the number of threads.
#pragma once

#include "../ops/packed/quantized.hpp"

namespace indexshare {

constexpr int64_t STRETCH = 64;    // most rows of a matrix that one task computes, a multiple of BLOCK_ROWS
constexpr int64_t MAX_ROWS = 32;   // most rows of activations in a step

// Rows of activations, padded with zeros to whole vectors of units, and their quantised form if it is wanted.
template <class T>
class Rows {
   public:
    static constexpr int64_t GRAIN = LANES * DEPTH<T>;

    void resize(int64_t rows, int64_t width, bool quantized) {
        width_ = width;
        stride_ = round_up(width, GRAIN);
        groups_ = (width + GROUP - 1) / GROUP;
        values_.resize(rows * stride_);
        if (!quantized) return;
        units_.resize(rows * groups_ * QUADS * 2);
        sums_.resize(rows * groups_);
        scales_.resize(rows * groups_);
    }

    // Other rows of another width, no more in all than `resize` made room for.
    void reshape(int64_t rows, int64_t width) {
        width_ = width;
        stride_ = round_up(width, GRAIN);
        groups_ = (width + GROUP - 1) / GROUP;
        for (int64_t i = 0; i < rows; ++i) std::fill(row(i) + width_, row(i) + stride_, T{});
    }

    T* row(int64_t i) { return values_.data() + i * stride_; }
    const T* row(int64_t i) const { return values_.data() + i * stride_; }
    int64_t width() const { return width_; }

    QuantizedRow quantized(int64_t i) const {
        return {units_.data() + i * groups_ * QUADS * 2, sums_.data() + i * groups_, scales_.data() + i * groups_};
    }

    // To be called when row i is complete and before it meets quantised weights; does nothing if that is not planned.
    void finish(int64_t i) {
        if (units_.empty()) return;
        for (int64_t g = 0; g < groups_; ++g) {
            const int64_t at = i * groups_ + g;
            quantize_group(row(i) + g * GROUP, width_ - g * GROUP, &units_[at * QUADS * 2], &sums_[at], &scales_[at]);
        }
    }

   private:
    int64_t width_ = 0, stride_ = 0, groups_ = 0;
    std::vector<T> values_;
    std::vector<uint32_t> units_;
    std::vector<int32_t> sums_;
    std::vector<float> scales_;
};

// The first `count` elements as units, the others zero.
template <class T>
inline u32v load_tail(const T* from, int64_t count) {
    u32v v{};
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) v = (u32v)_mm512_maskz_loadu_epi32((__mmask16)((1u << count) - 1), from);
    else v = (u32v)_mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), from);
#else
    std::memcpy(&v, from, count * sizeof(T));
#endif
    return v;
}

// R neighbouring rows of a matrix with N rows of activations; out[n * STRETCH + r].
template <class T, int R, int N>
inline void dot_tile(const T* weights, int64_t inputs, const T* const* x, float* out) {
    constexpr int64_t STEP = LANES * DEPTH<T>;
    f32v acc[R][N] = {};
    int64_t c = 0;
    for (; c + STEP <= inputs; c += STEP) {
        u32v right[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) right[n] = load<u32v>(x[n] + c);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const u32v left = load<u32v>(weights + r * inputs + c);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) acc[r][n] = mac<T>(acc[r][n], left, right[n]);
        }
    }
    if (c < inputs) {
        for (int r = 0; r < R; ++r) {
            const u32v left = load_tail(weights + r * inputs + c, inputs - c);
            for (int n = 0; n < N; ++n) acc[r][n] = mac<T>(acc[r][n], left, load<u32v>(x[n] + c));
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) out[n * STRETCH + r] = fold(acc[r][n]);
    }
}

template <class T, int R>
inline void dot_rows(const T* weights, int64_t inputs, const T* const* x, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) dot_tile<T, R, 4>(weights, inputs, x + i, out + i * STRETCH);
    switch (n - i) {
        case 3: return dot_tile<T, R, 3>(weights, inputs, x + i, out + i * STRETCH);
        case 2: return dot_tile<T, R, 2>(weights, inputs, x + i, out + i * STRETCH);
        case 1: return dot_tile<T, R, 1>(weights, inputs, x + i, out + i * STRETCH);
    }
}

// out[i * STRETCH + r] = (row first + r of matrix `member`) . (row which[i] of x) + bias, for `count` rows at most
// STRETCH and `n` rows of x; `first` is a multiple of BLOCK_ROWS. Whole vectors of `out` are written.
template <class T>
void multiply(const Matrix& m, int64_t member, int64_t first, int64_t count, const Rows<T>& x, const int32_t* which,
              int64_t n, float* out) {
    if (m.kind != PLAIN) {
        QuantizedRow rows[MAX_ROWS];
        for (int64_t i = 0; i < n; ++i) rows[i] = x.quantized(which ? which[i] : i);
        if (m.kind == INT8) quantized_products<INT8>(m, member, first, count, rows, n, out, STRETCH);
        else quantized_products<INT4>(m, member, first, count, rows, n, out, STRETCH);
    } else {
        const T* rows[MAX_ROWS];
        for (int64_t i = 0; i < n; ++i) rows[i] = x.row(which ? which[i] : i);
        const T* weights = (const T*)(m.values + member * m.stride) + first * m.inputs;
        int64_t r = 0;
        // One row of activations leaves registers for more rows of weights, which hide the latency of additions.
        for (; n == 1 && r + 8 <= count; r += 8) dot_tile<T, 8, 1>(weights + r * m.inputs, m.inputs, rows, out + r);
        for (; r + 4 <= count; r += 4) dot_rows<T, 4>(weights + r * m.inputs, m.inputs, rows, n, out + r);
        for (; r < count; ++r) dot_rows<T, 1>(weights + r * m.inputs, m.inputs, rows, n, out + r);
    }
    if (!m.bias) return;
    const T* bias = (const T*)m.bias + first;
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t r = 0; r < count; ++r) out[i * STRETCH + r] += to_float(bias[r]);
    }
}

// to = to + out, both rounded to T, as a residual connection does.
template <class T>
inline void add_to(T* to, const float* out, int64_t count) {
    for (int64_t c = 0; c < count; c += LANES) {
        store_floats(to + c, load_floats(to + c, count - c) + rounded<T>(load<f32v>(out + c)), count - c);
    }
}

// V vectors of columns of N rows: sums over e of x[n][e] * weights[e].
template <class T, int N, int V>
inline void left_tile(const T* weights, int64_t inputs, int64_t width, int64_t c, const T* const* x, float* out) {
    f32v acc[N][V] = {};
    for (int64_t e = 0; e < inputs; ++e) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const int64_t at = c + v * LANES;
            const f32v row = load_floats(weights + e * width + at, V == 1 ? width - at : LANES);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) acc[n][v] += row * to_float(x[n][e]);
        }
    }
    for (int n = 0; n < N; ++n) {
        for (int v = 0; v < V; ++v) {
            const int64_t at = c + v * LANES;
            store_floats(out + n * width + at, acc[n][v], V == 1 ? width - at : LANES);
        }
    }
}

// out[i * width + c] = sum over e of x[i][e] * weights[e][c]: a matrix used from the left, as in absorbed queries.
template <class T>
void multiply_left(const T* weights, int64_t inputs, int64_t width, const T* const* x, int64_t n, float* out) {
    int64_t c = 0;
    auto columns = [&](auto vectors) {
        constexpr int V = decltype(vectors)::value;
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) left_tile<T, 4, V>(weights, inputs, width, c, x + i, out + i * width);
        for (; i < n; ++i) left_tile<T, 1, V>(weights, inputs, width, c, x + i, out + i * width);
    };
    for (; c + 4 * LANES <= width; c += 4 * LANES) columns(std::integral_constant<int, 4>());
    for (; c < width; c += LANES) columns(std::integral_constant<int, 1>());
}

}  // namespace indexshare
