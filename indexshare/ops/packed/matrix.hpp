// A matrix of weights as Python hands it over, plain or packed. Mirrors matrix.py, field by field.
#pragma once

#include <cstdint>

namespace indexshare {

enum Kind : int64_t { PLAIN = 0, INT8 = 1, INT4 = 2 };

// y = W x + bias, or a stack of such matrices. PLAIN: [rows][inputs] of T; otherwise see quantized.hpp.
struct Matrix {
    const char* values;
    const char* scales;
    const char* bias;  // T [rows] or null; never in a stack
    int64_t kind, rows, inputs;
    int64_t stride, scale_stride;  // bytes from one matrix of the stack to the next
};

}  // namespace indexshare
