// Packed weights as plain values. Contract: `unpack` in packing.py.

#include "../layout.hpp"
#include "quantized.hpp"

// `members` matrices of a stack as plain values, out [members][rows][inputs] of float or bfloat16.
extern "C" void indexshare_dequantize(int is_bf16, const indexshare::Matrix* matrix, int64_t members, void* out,
                                      int threads) {
    using namespace indexshare;
    const Matrix& m = *matrix;
    const int64_t blocks = (m.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
#pragma omp parallel for num_threads(threads)
    for (int64_t task = 0; task < members * blocks; ++task) {
        const int64_t member = task / blocks, block = task % blocks;
        const int64_t at = (member * m.rows + block * BLOCK_ROWS) * m.inputs;
        if (is_bf16) dequantize_block(m, member, block, (bf16*)out + at);
        else dequantize_block(m, member, block, (float*)out + at);
    }
}

extern "C" const char* indexshare_packed_layout() {
    using namespace indexshare;
#define FIELD(field) INDEXSHARE_FIELD(Matrix, field)
    static const std::string text = layout_text({
        INDEXSHARE_WHOLE(Matrix), FIELD(values), FIELD(scales), FIELD(bias), FIELD(kind), FIELD(rows), FIELD(inputs),
        FIELD(stride), FIELD(scale_stride),
    });
#undef FIELD
    return text.c_str();
}
