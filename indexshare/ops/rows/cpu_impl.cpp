// Norms, rotations, activations and small products of many rows at once, one pass over memory. Contract:
// ops/rows/reference.py.
//
// Rows are `stride` elements apart, their elements lie side by side; `to` may be `from`.

#include <atomic>
#include <new>

#include "../panels.hpp"
#include "../vectors.hpp"

namespace indexshare {
namespace {

// Fewer rows than this are not worth waking a thread for.
constexpr int64_t ROWS_PER_THREAD = 64;

inline int worth(int64_t rows, int threads) {
    return (int)std::max<int64_t>(1, std::min<int64_t>(threads, rows / ROWS_PER_THREAD));
}

template <class T>
void norms(const T* from, int64_t from_stride, const T* weight, int64_t rows, int64_t width, double eps, T* to,
           int64_t to_stride, int threads) {
#pragma omp parallel for num_threads(worth(rows, threads))
    for (int64_t i = 0; i < rows; ++i) rms_norm(from + i * from_stride, weight, width, eps, to + i * to_stride);
}

// `heads` stretches of each row, `*_head` elements apart, are turned by the row's angles.
template <class T>
void rotations(const T* from, int64_t from_row, int64_t from_head, const float* cosines, const float* sines,
               int64_t rows, int64_t heads, int64_t pairs, bool interleave, T* to, int64_t to_row, int64_t to_head,
               int threads) {
#pragma omp parallel for num_threads(worth(rows, threads))
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t head = 0; head < heads; ++head) {
            const T* source = from + i * from_row + head * from_head;
            T* target = to + i * to_row + head * to_head;
            if (target != source) std::copy_n(source, 2 * pairs, target);
            rotate(target, cosines + i * pairs, sines + i * pairs, pairs, interleave);
        }
    }
}

template <class T>
void activations(const T* gate, int64_t gate_stride, const T* up, int64_t up_stride, int64_t rows, int64_t width, T* to,
                 int threads) {
#pragma omp parallel for num_threads(worth(rows, threads))
    for (int64_t i = 0; i < rows; ++i) {
        const T *a = gate + i * gate_stride, *b = up + i * up_stride;
        T* out = to + i * width;
        for (int64_t c = 0; c < width; c += LANES) {
            store_floats(out + c, gated<T>(load_floats(a + c, width - c), load_floats(b + c, width - c)), width - c);
        }
    }
}

// to[row][column] = x[row] . weight[column], never rounded to T. Returns 0, or 1 when memory ran out.
template <class T>
int wide_products(const char* x, int64_t stride, const T* weight, int64_t rows, int64_t width, int64_t columns, float* to,
                  int threads) {
    constexpr int64_t COLUMNS = WIDE * LANES, ROWS = 512;  // a task's: packing is then a small part of it
    const int team = worth(rows, threads);
    const int64_t units = width / DEPTH<T>, grain = std::clamp<int64_t>((rows + team - 1) / team, 1, ROWS);
    std::atomic<int> failed{0};
#pragma omp parallel for num_threads(team) schedule(dynamic, 1)
    for (int64_t first = 0; first < rows; first += grain) {
        try {
            Lines<uint32_t> panel(units * COLUMNS);
            for (int64_t column = 0; column < columns; column += COLUMNS) {
                for (int v = 0; v < WIDE; ++v) {
                    const int64_t from = column + v * LANES;
                    pack_vector<T>((const char*)weight, from, columns - from, width, panel.data(), v);
                }
                for_products<T>(first, std::min(rows, first + grain), units, panel.data(),
                                [&](int64_t row) { return x + row * stride; },
                                [&](int64_t row, const f32v(&products)[WIDE]) {
                    for (int v = 0; v < WIDE && column + v * LANES < columns; ++v) {
                        const int64_t from = column + v * LANES;
                        store_floats(to + row * columns + from, products[v], columns - from);
                    }
                });
            }
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
    }
    return failed;
}

}  // namespace
}  // namespace indexshare

// x [rows, width] with `x_stride` bytes between rows, weight [columns, width], out float [rows, columns]. Returns 0, or 1
// when memory ran out.
extern "C" int indexshare_wide_linear(int is_bf16, const void* x, int64_t x_stride, const void* weight, int64_t rows,
                                      int64_t width, int64_t columns, float* out, int threads) {
    using namespace indexshare;
    if (is_bf16) return wide_products((const char*)x, x_stride, (const bf16*)weight, rows, width, columns, out, threads);
    return wide_products((const char*)x, x_stride, (const float*)weight, rows, width, columns, out, threads);
}

// Strides in elements. x and out [rows, width], weight [width].
extern "C" void indexshare_rms_norm(int is_bf16, const void* x, int64_t x_stride, const void* weight, int64_t rows,
                                    int64_t width, double eps, void* out, int64_t out_stride, int threads) {
    using namespace indexshare;
    if (is_bf16) {
        norms((const bf16*)x, x_stride, (const bf16*)weight, rows, width, eps, (bf16*)out, out_stride, threads);
    } else {
        norms((const float*)x, x_stride, (const float*)weight, rows, width, eps, (float*)out, out_stride, threads);
    }
}

// x and out [rows, heads, 2 * pairs], cosines and sines [rows, pairs].
extern "C" void indexshare_rotate(int is_bf16, const void* x, int64_t x_row, int64_t x_head, const float* cosines,
                                  const float* sines, int64_t rows, int64_t heads, int64_t pairs, int interleave,
                                  void* out, int64_t out_row, int64_t out_head, int threads) {
    using namespace indexshare;
    if (is_bf16) {
        rotations((const bf16*)x, x_row, x_head, cosines, sines, rows, heads, pairs, interleave, (bf16*)out, out_row,
                  out_head, threads);
    } else {
        rotations((const float*)x, x_row, x_head, cosines, sines, rows, heads, pairs, interleave, (float*)out, out_row,
                  out_head, threads);
    }
}

// gate, up and out [rows, width], the last one without gaps.
extern "C" void indexshare_swiglu(int is_bf16, const void* gate, int64_t gate_stride, const void* up, int64_t up_stride,
                                  int64_t rows, int64_t width, void* out, int threads) {
    using namespace indexshare;
    if (is_bf16) {
        activations((const bf16*)gate, gate_stride, (const bf16*)up, up_stride, rows, width, (bf16*)out, threads);
    } else {
        activations((const float*)gate, gate_stride, (const float*)up, up_stride, rows, width, (float*)out, threads);
    }
}
