// Whether this process may use tiles, and whether the kernels in tiles agree with those in vectors: asked once, at load.
//
// The same small problems go through the bfloat16 kernels, which work in tiles, and through the float32 kernels, which
// do not. All numbers are short enough to be exact in both, so index scores and logits must be equal.

#include <cerrno>
#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "tiles.hpp"

#if defined(INDEXSHARE_TILES) && !defined(INDEXSHARE_EMULATE_TILES) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" int indexshare_select_topk(int is_bf16, const void* q, const float* weights, const void* keys,
                                      int64_t key_stride, int64_t kind, int64_t precise, const int64_t* positions,
                                      int64_t queries, int64_t heads, int64_t width, int64_t num_keys, int64_t topk,
                                      int64_t* out, int threads);
extern "C" int indexshare_sparse_mla(int is_bf16, const void* q, const void* pool, int64_t pool_stride,
                                     int64_t kind, int64_t precise, const int64_t* slots, int64_t queries,
                                     int64_t heads, int64_t width, int64_t values, int64_t chosen, int64_t rows,
                                     float scale, void* out, float* lse, int threads);

namespace indexshare {
namespace {

// Linux keeps the memory of tiles from a process until it asks. Empty, or why not.
std::string ask_permission() {
#if defined(INDEXSHARE_TILES) && !defined(INDEXSHARE_EMULATE_TILES)
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr long ASK = 0x1023, ALLOWED = 0x1022, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, ARCH_GET_XCOMP_PERM
    uint64_t allowed = 0;
    if (syscall(SYS_arch_prctl, ASK, TILE_DATA) != 0 || syscall(SYS_arch_prctl, ALLOWED, &allowed) != 0) {
        return std::string("the system refuses the memory for tiles: ") + std::strerror(errno);
    }
    if (!(allowed >> TILE_DATA & 1)) return "the system grants the memory for tiles, but not to this process";
#else
    return "this system has no way to ask for tiles";
#endif
#endif
    return "";
}

// The same numbers in both types.
struct Numbers {
    std::vector<float> wide;
    std::vector<bf16> narrow;
};

class Source {
   public:
    int64_t below(int64_t bound) {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return (int64_t)((state_ >> 33) % (uint64_t)bound);
    }

    // Quarters from -1 to 1.
    Numbers numbers(int64_t count) {
        Numbers n{std::vector<float>(count), std::vector<bf16>(count)};
        for (int64_t i = 0; i < count; ++i) {
            n.wide[i] = (float)(below(9) - 4) / 4;
            uint32_t bits;
            std::memcpy(&bits, &n.wide[i], 4);
            n.narrow[i].bits = (uint16_t)(bits >> 16);
        }
        return n;
    }

   private:
    uint64_t state_ = 1;
};

const char* check_indexer() {
    constexpr int64_t QUERIES = 19, HEADS = 5, WIDTH = 72, KEYS = 333, TOPK = 24;
    Source source;
    const Numbers q = source.numbers(QUERIES * HEADS * WIDTH), keys = source.numbers(KEYS * WIDTH);
    const Numbers weights = source.numbers(QUERIES * HEADS);
    std::vector<int64_t> positions(QUERIES), expected(QUERIES * TOPK), actual(QUERIES * TOPK);
    for (int64_t& position : positions) position = source.below(KEYS);
    const int failed = indexshare_select_topk(0, q.wide.data(), weights.wide.data(), keys.wide.data(), 4 * WIDTH, 0, 0,
                                              positions.data(), QUERIES, HEADS, WIDTH, KEYS, TOPK, expected.data(), 1) |
                       indexshare_select_topk(1, q.narrow.data(), weights.wide.data(), keys.narrow.data(), 2 * WIDTH, 0, 0,
                                              positions.data(), QUERIES, HEADS, WIDTH, KEYS, TOPK, actual.data(), 1);
    return failed || actual != expected ? "the indexer in tiles chooses other keys than in vectors" : nullptr;
}

const char* check_attention(int64_t heads) {
    constexpr int64_t QUERIES = 3, WIDTH = 104, VALUES = 72, ROWS = 300, CHOSEN = 150;
    Source source;
    const Numbers q = source.numbers(QUERIES * heads * WIDTH), pool = source.numbers(ROWS * WIDTH);
    std::vector<int64_t> slots(QUERIES * CHOSEN);
    for (int64_t& slot : slots) slot = source.below(ROWS + 1) - 1;
    std::vector<float> expected(QUERIES * heads * VALUES), expected_lse(QUERIES * heads), lse(QUERIES * heads);
    std::vector<bf16> actual(expected.size());
    const int failed = indexshare_sparse_mla(0, q.wide.data(), pool.wide.data(), 4 * WIDTH, 0, 0, slots.data(), QUERIES, heads,
                                             WIDTH, VALUES, CHOSEN, ROWS, 0.5f, expected.data(), expected_lse.data(), 1) |
                       indexshare_sparse_mla(1, q.narrow.data(), pool.narrow.data(), 2 * WIDTH, 0, 0, slots.data(), QUERIES,
                                             heads, WIDTH, VALUES, CHOSEN, ROWS, 0.5f, actual.data(), lse.data(), 1);
    bool close = !failed;
    for (size_t i = 0; i < lse.size(); ++i) close &= std::fabs(lse[i] - expected_lse[i]) <= 1e-4f;
    // Weights and results have eight bits in bfloat16; values reach 1.
    for (size_t i = 0; i < actual.size(); ++i) close &= std::fabs(to_float(actual[i]) - expected[i]) <= 1.0f / 64;
    return close ? nullptr : "sparse attention in tiles gives other results than in vectors";
}

}  // namespace
}  // namespace indexshare

// Null when tiles may be used, else the reason why not; the text stays valid until the next call.
extern "C" const char* indexshare_check_tiles() {
    using namespace indexshare;
    static std::string reason;
    try {
        reason = ask_permission();
        if (!reason.empty()) return reason.c_str();
        if (const char* wrong = check_indexer()) return wrong;
        for (const int64_t heads : {5, 35}) {  // one group of sixteen; two, and one left over
            if (const char* wrong = check_attention(heads)) return wrong;
        }
        return nullptr;
    } catch (const std::bad_alloc&) {
        return "no memory for the check of tiles";
    }
}
