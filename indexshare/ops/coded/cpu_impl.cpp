// Many rows in a form of few bits. Contract: reference.py.

#include "row_format.hpp"

namespace indexshare {
namespace {

template <class T>
void encode_all(const RowFormat& format, const char* rows, int64_t stride, int64_t count, char* out, int threads) {
    const int64_t bytes = format.bytes(sizeof(T));
#pragma omp parallel for num_threads(threads) if (count > 64)
    for (int64_t row = 0; row < count; ++row) encode_row(format, (const T*)(rows + row * stride), out + row * bytes);
}

}  // namespace
}  // namespace indexshare

// rows [count][width] with `stride` bytes between them; out [count] rows of a kind and with so many precise values.
extern "C" void indexshare_encode_rows(int is_bf16, const void* rows, int64_t stride, int64_t kind, int64_t precise,
                                       int64_t count, int64_t width, void* out, int threads) {
    using namespace indexshare;
    const RowFormat format{kind, width, precise};
    if (is_bf16) encode_all<bf16>(format, (const char*)rows, stride, count, (char*)out, threads);
    else encode_all<float>(format, (const char*)rows, stride, count, (char*)out, threads);
}
