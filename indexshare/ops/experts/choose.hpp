// Experts of one token by biased score, and their places when tokens are sorted by expert. Contract: reference.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace indexshare {

struct Routing {
    int64_t experts, chosen, groups, chosen_groups, normalise;
    float scale;
};

// Memory of one thread.
struct RoutingScratch {
    std::vector<char> taken, open;      // of experts, of groups
    std::vector<float> group_scores;

    void prepare(const Routing& r) {
        taken.resize(r.experts);
        open.resize(r.groups);
        group_scores.resize(r.groups);
    }
};

// Larger, with NaN above everything, as in a descending sort.
inline bool above(float a, float b) { return a > b || (a != a && b == b); }

// scores and bias [experts] -> ids [chosen] ascending and weights [chosen]; equal scores go to the lower id.
template <class Id>
void choose_experts(const Routing& r, const float* scores, const float* bias, RoutingScratch& s, Id* ids, float* weights) {
    const int64_t per_group = r.experts / r.groups;
    const bool all_open = r.groups == r.chosen_groups || r.groups == 1;
    auto biased = [&](int64_t e) { return scores[e] + bias[e]; };
    std::fill(s.open.begin(), s.open.end(), all_open);
    for (int64_t g = 0; !all_open && g < r.groups; ++g) {
        float best = -__builtin_inff(), second = best;
        for (int64_t e = g * per_group; e < (g + 1) * per_group; ++e) {
            const float score = biased(e);
            if (above(score, best)) {
                second = best;
                best = score;
            } else if (above(score, second)) {
                second = score;
            }
        }
        s.group_scores[g] = best + second;
    }
    for (int64_t place = all_open ? r.chosen_groups : 0; place < r.chosen_groups; ++place) {
        int64_t best = -1;
        for (int64_t g = 0; g < r.groups; ++g) {
            if (!s.open[g] && (best < 0 || above(s.group_scores[g], s.group_scores[best]))) best = g;
        }
        s.open[best] = true;
    }
    std::fill(s.taken.begin(), s.taken.end(), false);
    for (int64_t place = 0; place < r.chosen; ++place) {
        int64_t best = -1;
        for (int64_t e = 0; e < r.experts; ++e) {
            if (s.taken[e] || !s.open[e / per_group]) continue;
            if (best < 0 || above(biased(e), biased(best))) best = e;
        }
        s.taken[best] = true;
    }
    float total = 0;
    for (int64_t e = 0, place = 0; e < r.experts; ++e) {
        if (!s.taken[e]) continue;
        ids[place] = (Id)e;
        weights[place++] = scores[e];
        total += scores[e];
    }
    for (int64_t place = 0; place < r.chosen; ++place) {
        weights[place] = (r.normalise ? weights[place] / (total + 1e-20f) : weights[place]) * r.scale;
    }
}

}  // namespace indexshare
