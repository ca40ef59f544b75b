// Structures that Python fills, as text: a line for each of them and of their fields, "Matrix.kind 24 8" (offset, size).
// Python compares it with its own when the library loads: see binding.py.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <string>

namespace indexshare {

struct Place {
    const char* name;
    size_t offset, bytes;
};

#define INDEXSHARE_WHOLE(Struct) {#Struct, 0, sizeof(Struct)}
#define INDEXSHARE_FIELD(Struct, field) {#Struct "." #field, offsetof(Struct, field), sizeof(Struct::field)}

inline std::string layout_text(std::initializer_list<Place> places) {
    std::string text;
    for (const Place& each : places) {
        text += each.name;
        text += " " + std::to_string(each.offset) + " " + std::to_string(each.bytes) + "\n";
    }
    return text;
}

}  // namespace indexshare
