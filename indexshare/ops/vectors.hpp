// Short rows of either type as vectors of floats: loads and stores with tails, sums, norms, rotations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "simd.hpp"

namespace indexshare {

// LANES values, or the first `count` and zeros.
inline f32v load_floats(const float* from, int64_t count = LANES) {
    if (count >= LANES) return load<f32v>(from);
    f32v v{};
    std::memcpy(&v, from, count * sizeof(float));
    return v;
}

inline f32v load_floats(const bf16* from, int64_t count = LANES) {
    u16v bits{};
    if (count >= LANES) bits = load<u16v>(from);
    else std::memcpy(&bits, from, count * sizeof(bf16));
    return (f32v)(__builtin_convertvector(bits, u32v) << 16);
}

// LANES values, or the first `count` of them.
template <class T>
inline void store_floats(T* to, f32v x, int64_t count = LANES) {
    if (count >= LANES) return store_as(to, x);
    T row[LANES];
    store_as(row, x);
    std::copy_n(row, count, to);
}

// What is left of x when it has been stored as T.
template <class T>
inline f32v rounded(f32v x) {
    if constexpr (sizeof(T) == 4) return x;
    else return (f32v)(bf16_bits(x) << 16);
}

// The same for one number.
template <class T>
inline T narrow(float x) {
    T row[LANES];
    store_as(row, splat(x));
    return row[0];
}
template <>
inline float narrow<float>(float x) {
    return x;
}

// x in the first `count` lanes, zero in the others.
inline f32v first_lanes(f32v x, int64_t count) {
    return count >= LANES ? x : iota() < splat((int32_t)count) ? x : f32v{};
}

template <int S, int... L>
inline f32v rotate_lanes(f32v v, std::integer_sequence<int, L...>) {
#if defined(__clang__)
    return __builtin_shufflevector(v, v, ((L + S) % LANES)...);
#else
    return __builtin_shuffle(v, i32v{((L + S) % LANES)...});
#endif
}

// Sum of the lanes, always in the same order: halves, quarters, ...
inline float fold(f32v v) {
    constexpr auto lanes = std::make_integer_sequence<int, LANES>();
#if defined(__AVX512F__)
    v += rotate_lanes<8>(v, lanes);
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
    v += rotate_lanes<4>(v, lanes);
#endif
    v += rotate_lanes<2>(v, lanes);
    v += rotate_lanes<1>(v, lanes);
    return v[0];
}

// 1 / (1 + e^-x).
inline f32v sigmoid(f32v x) {
    const f32v small = exp_negative(x < 0.0f ? x : -x);  // never overflows
    return (x < 0.0f ? small : splat(1.0f)) / (1.0f + small);
}

// weight * x / sqrt(mean(x^2) + eps), rounded before the weight and after it, as `ops.rms_norm` does.
template <class T>
inline void rms_norm(const T* x, const T* weight, int64_t width, double eps, T* out) {
    f32v squares{};
    for (int64_t c = 0; c < width; c += LANES) {
        const f32v part = load_floats(x + c, width - c);
        squares += part * part;
    }
    const float factor = 1.0f / std::sqrt(fold(squares) / (float)width + (float)eps);
    for (int64_t c = 0; c < width; c += LANES) {
        const f32v normed = rounded<T>(load_floats(x + c, width - c) * factor);
        store_floats(out + c, normed * load_floats(weight + c, width - c), width - c);
    }
}

// weight * (x - mean) / sqrt(variance + eps) + bias, rounded once.
template <class T>
inline void layer_norm(const T* x, const T* weight, const T* bias, int64_t width, double eps, T* out) {
    f32v total{}, squares{};
    for (int64_t c = 0; c < width; c += LANES) total += load_floats(x + c, width - c);
    const float mean = fold(total) / (float)width;
    for (int64_t c = 0; c < width; c += LANES) {
        const f32v part = first_lanes(load_floats(x + c, width - c) - mean, width - c);
        squares += part * part;
    }
    const float factor = 1.0f / std::sqrt(fold(squares) / (float)width + (float)eps);
    for (int64_t c = 0; c < width; c += LANES) {
        const f32v normed = (load_floats(x + c, width - c) - mean) * factor;
        const f32v y = normed * load_floats(weight + c, width - c) + load_floats(bias + c, width - c);
        store_floats(out + c, y, width - c);
    }
}

// LANES neighbouring pairs of bfloat16, turned by their angles.
inline u32v rotated_pairs(u32v pairs, f32v cosine, f32v sine) {
    const f32v a = (f32v)(pairs << 16), b = (f32v)(pairs & 0xffff0000u);
    return bf16_bits(a * cosine - b * sine) | (bf16_bits(b * cosine + a * sine) << 16);
}

// Turns the pairs of a row in place by the angles of its position; computed in float, rounded once.
template <class T>
inline void rotate(T* x, const float* cosines, const float* sines, int64_t pairs, bool interleave) {
    const int64_t step = interleave ? 2 : 1, other = interleave ? 1 : pairs;
    int64_t i = 0;
    if constexpr (sizeof(T) == 2) {
        for (; interleave && i + LANES <= pairs; i += LANES) {
            store(x + 2 * i, rotated_pairs(load<u32v>(x + 2 * i), load<f32v>(cosines + i), load<f32v>(sines + i)));
        }
    }
    for (; !interleave && i + LANES <= pairs; i += LANES) {
        const f32v a = load_floats(x + i), b = load_floats(x + pairs + i);
        const f32v cosine = load<f32v>(cosines + i), sine = load<f32v>(sines + i);
        store_as(x + i, a * cosine - b * sine);
        store_as(x + pairs + i, b * cosine + a * sine);
    }
    for (; i < pairs; ++i) {
        T &first = x[i * step], &second = x[i * step + other];
        const float a = to_float(first), b = to_float(second);
        first = narrow<T>(a * cosines[i] - b * sines[i]);
        second = narrow<T>(b * cosines[i] + a * sines[i]);
    }
}

// silu(gate) * up, rounded after silu and after the product.
template <class T>
inline f32v gated(f32v gate, f32v up) {
    return rounded<T>(gate * sigmoid(gate)) * up;
}

}  // namespace indexshare
