// Routing of many tokens, sorting them by expert, and their products. Contracts: ops/experts/reference.py,
// torch_impl.py.

#include <atomic>
#include <new>

#include "choose.hpp"
#include "products.hpp"

// scores [tokens, experts], bias [experts] -> ids [tokens, chosen], weights [tokens, chosen]. Returns 0, or 1 when
// memory ran out.
extern "C" int indexshare_route(const float* scores, const float* bias, int64_t tokens, int64_t experts, int64_t chosen,
                                int64_t groups, int64_t chosen_groups, int normalise, float scale, int64_t* ids,
                                float* weights, int threads) {
    using namespace indexshare;
    const Routing routing{experts, chosen, groups, chosen_groups, normalise, scale};
    std::atomic<int> failed{0};
#pragma omp parallel num_threads(threads)
    {
        RoutingScratch scratch;
        bool ready = false;
        try {
            scratch.prepare(routing);
            ready = true;
        } catch (const std::bad_alloc&) {
            failed = 1;
        }
#pragma omp for
        for (int64_t i = 0; i < tokens; ++i) {
            if (ready) choose_experts(routing, scores + i * experts, bias, scratch, ids + i * chosen, weights + i * chosen);
        }
    }
    return failed;
}

// Places for pairs of token and expert, ids [tokens * chosen], in order of expert; every expert's stretch is padded to
// a multiple of `grain` with token 0. stops [experts], tokens_at [pairs + experts * (grain - 1)], place [pairs].
extern "C" void indexshare_group(const int64_t* ids, int64_t pairs, int64_t chosen, int64_t experts, int64_t grain,
                                 int64_t* stops, int64_t* tokens_at, int64_t* place) {
    for (int64_t e = 0; e < experts; ++e) stops[e] = 0;
    for (int64_t i = 0; i < pairs; ++i) ++stops[ids[i]];
    int64_t start = 0;
    for (int64_t e = 0; e < experts; ++e) {  // counts become starts
        const int64_t size = (stops[e] + grain - 1) / grain * grain, count = stops[e];
        stops[e] = start;
        for (int64_t at = start + count; at < start + size; ++at) tokens_at[at] = 0;
        start += size;
    }
    for (int64_t i = 0; i < pairs; ++i) {  // and starts become ends of what has been placed
        place[i] = stops[ids[i]]++;
        tokens_at[place[i]] = i / chosen;
    }
    for (int64_t e = 0; e < experts; ++e) stops[e] = (stops[e] + grain - 1) / grain * grain;
}

// x [tokens, hidden] with `x_stride` bytes between rows, gate_up [experts, 2 * inner, hidden], down [experts, hidden,
// inner]; stops, tokens_at and weights by place; scratch [pairs, inner], out [tokens, hidden]. Returns 0, or 1 when
// memory ran out.
extern "C" int indexshare_experts(int is_bf16, const void* x, int64_t x_stride, const void* gate_up, const void* down,
                                  int64_t tokens, int64_t hidden, int64_t inner, int64_t experts, int64_t pairs,
                                  const int64_t* stops, const int64_t* tokens_at, const float* weights, void* scratch,
                                  void* out, int threads) {
    using namespace indexshare;
    const ExpertProblem p{(const char*)x, (const char*)gate_up, (const char*)down, x_stride, tokens, hidden, inner,
                          experts, pairs, stops, tokens_at, weights};
    if (is_bf16) return all_experts<bf16>(p, (bf16*)scratch, (bf16*)out, threads);
    return all_experts<float>(p, (float*)scratch, (float*)out, threads);
}
