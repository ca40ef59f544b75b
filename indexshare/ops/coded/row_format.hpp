// Rows of a cache as they are stored, and as numbers of the model's type. Rules: reference.py; the layout: layout.py.
//
// A kernel that meets rows in another form than its own decodes a few of them into its scratch memory and goes on there:
// its result is that over decoded rows, bit for bit. A row may begin at any address.
#pragma once

#include <limits>

#include "../vectors.hpp"

namespace indexshare {

// As in `kernel_arguments` of rows.py. PLAIN_ROWS are of the kernel's own type.
enum RowKind : int64_t { PLAIN_ROWS = 0, BF16_ROWS = 1, FP8_ROWS = 2, INT8_ROWS = 3 };

struct RowFormat {
    int64_t kind = PLAIN_ROWS, width = 0, precise = 0;

    static constexpr int64_t GROUP = 128;  // values that share a scale
    bool coded() const { return kind != PLAIN_ROWS; }
    int64_t packed() const { return width - precise; }
    int64_t groups() const { return (packed() + GROUP - 1) / GROUP; }
    int64_t precise_at() const { return packed() + 4 * groups(); }
    int64_t bytes(int64_t plain_element) const { return coded() ? precise_at() + 2 * precise : width * plain_element; }
};

using i8v = int8_t __attribute__((vector_size(LANES)));
using u8v = uint8_t __attribute__((vector_size(LANES)));

// LANES signed bytes as numbers.
inline f32v int8_values(const char* from) { return __builtin_convertvector(__builtin_convertvector(load<i8v>(from), i32v), f32v); }

// Numbers of E4M3 whose byte is the one that ends at bit `8 * BYTE + 7` of each lane. A float32 has the same fraction and a
// wider exponent; numbers without an exponent are evenly spaced below 2^-6, where the second line is the smaller one. (Not by
// float32's own numbers without an exponent: they may be switched off.)
template <int BYTE>
inline f32v fp8_values(u32v bytes) {
    const u32v bits = (u32v)((i32v)(bytes << (24 - 8 * BYTE)) >> 4) & 0x87f00000u;  // sign, fraction and exponent in place
    const f32v normal = (f32v)((bits & 0x7fffffffu) + (120u << 23)), even = normal * 2.0f - 0x1p-6f;
    return (f32v)((u32v)(even < normal ? even : normal) | (bits & 0x80000000u));
}

// LANES of them one after the other.
inline f32v fp8_values(const char* from) { return fp8_values<0>(__builtin_convertvector(load<u8v>(from), u32v)); }

template <int64_t KIND>
inline f32v coded_values(const char* from) {
    if constexpr (KIND == FP8_ROWS) return fp8_values(from);
    else return int8_values(from);
}

// The packed values of a row as T.
template <class T, int64_t KIND>
inline void decode_packed(const RowFormat& f, const char* row, T* to) {
    const int64_t packed = f.packed();
    for (int64_t first = 0, group = 0; first < packed; first += f.GROUP, ++group) {
        float scale;
        std::memcpy(&scale, row + packed + 4 * group, 4);
        const int64_t end = std::min(packed, first + f.GROUP);
        int64_t c = first;
        for (; c + LANES <= end; c += LANES) store_as(to + c, coded_values<KIND>(row + c) * scale);
        if (c < end) {
            char tail[LANES] = {};
            std::memcpy(tail, row + c, end - c);
            store_floats(to + c, coded_values<KIND>(tail) * scale, end - c);
        }
    }
}

// A stored row as `width` numbers of T; the row must be coded.
template <class T>
inline void decode_row(const RowFormat& f, const char* row, T* to) {
    if (f.kind == FP8_ROWS) decode_packed<T, FP8_ROWS>(f, row, to);
    else if (f.kind == INT8_ROWS) decode_packed<T, INT8_ROWS>(f, row, to);
    const char* from = row + f.precise_at();
    to += f.packed();
    for (int64_t c = 0; c < f.precise; c += LANES) {
        store_floats(to + c, load_floats((const bf16*)(from + 2 * c), f.precise - c), f.precise - c);
    }
}

// The scale of a group: infinities and NaN make it NaN.
inline float group_scale(int64_t kind, i32v magnitudes) {
    int32_t most = 0;
    for (int lane = 0; lane < LANES; ++lane) most = std::max(most, magnitudes[lane]);
    if (most >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
    float largest;
    std::memcpy(&largest, &most, 4);
    float scale = largest / (kind == FP8_ROWS ? 448.0f : 127.0f);
    if (kind == FP8_ROWS) {  // the next power of two, unless it is one
        uint32_t bits;
        std::memcpy(&bits, &scale, 4);
        bits = (bits + 0x7fffffu) & 0x7f800000u;
        std::memcpy(&scale, &bits, 4);
    }
    return std::max(scale, 0x1p-126f);
}

// Codes of LANES values that have been divided by their scale, in the low bytes; ties to even.
template <int64_t KIND>
inline u32v codes_of(f32v x) {
    const f32v magic = splat(12582912.0f);  // 1.5 * 2^23: pushes the fraction out, which leaves a whole number in the low bits
    if constexpr (KIND == INT8_ROWS) return (u32v)((i32v)(x + magic) - (i32v)magic) & 0xffu;
    const u32v bits = (u32v)x, magnitude = bits & 0x7fffffffu;
    const u32v normal = ((magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20) - (120u << 3);
    const u32v even = (u32v)((i32v)((f32v)magnitude * 512.0f + magic) - (i32v)magic);
    return ((f32v)magnitude < 0x1p-6f ? even : normal) | ((bits >> 24) & 0x80u);
}

// `packed` values become codes and scales.
template <class T, int64_t KIND>
inline void encode_packed(const RowFormat& f, const T* from, char* row) {
    const int64_t packed = f.packed();
    for (int64_t first = 0, group = 0; first < packed; first += f.GROUP, ++group) {
        const int64_t end = std::min(packed, first + f.GROUP);
        i32v most{};
        for (int64_t c = first; c < end; c += LANES) {
            const i32v magnitude = (i32v)load_floats(from + c, end - c) & 0x7fffffff;
            most = magnitude > most ? magnitude : most;
        }
        const float scale = group_scale(KIND, most);
        std::memcpy(row + packed + 4 * group, &scale, 4);
        for (int64_t c = first; c < end; c += LANES) {
            const u32v codes = scale == scale ? codes_of<KIND>(load_floats(from + c, end - c) / scale) : u32v{};
            const u8v bytes = __builtin_convertvector(codes, u8v);
            std::memcpy(row + c, &bytes, std::min<int64_t>(LANES, end - c));
        }
    }
}

// `width` numbers of T as a stored row; plain rows are copied.
template <class T>
inline void encode_row(const RowFormat& f, const T* from, char* row) {
    if (f.kind == PLAIN_ROWS) std::memcpy(row, from, f.width * sizeof(T));
    if (f.kind == PLAIN_ROWS) return;
    if (f.kind == FP8_ROWS) encode_packed<T, FP8_ROWS>(f, from, row);
    else if (f.kind == INT8_ROWS) encode_packed<T, INT8_ROWS>(f, from, row);
    char* to = row + f.precise_at();
    from += f.packed();
    for (int64_t c = 0; c < f.precise; c += LANES) {
        const u16v bits = __builtin_convertvector(bf16_bits(load_floats(from + c, f.precise - c)), u16v);
        std::memcpy(to + 2 * c, &bits, 2 * std::min<int64_t>(LANES, f.precise - c));
    }
}

// Some rows of a pool as rows of T: where they lie if they are plain, else decoded into memory of a thread.
template <class T>
class RowReader {
   public:
    // For at most `rows` rows at a time.
    void prepare(const RowFormat& format, int64_t rows) {
        format_ = format;
        if (!format.coded()) return;
        stride_ = round_up(format.width, 64 / sizeof(T));
        if ((int64_t)values_.size() < rows * stride_) values_.resize(rows * stride_);
    }

    bool coded() const { return format_.coded(); }
    const RowFormat& format() const { return format_; }

    // The row that is stored at `row`, for as long as no other is asked for at `place`.
    const char* at(const char* row, int64_t place) {
        if (!format_.coded()) return row;
        T* to = &values_[place * stride_];
        decode_row(format_, row, to);
        return (const char*)to;
    }

   private:
    RowFormat format_;
    int64_t stride_ = 0;
    Lines<T> values_;
};

}  // namespace indexshare
