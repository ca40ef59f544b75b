// What Python hands over: where the weights lie and how large everything is. Mirrors `structs.py`, field by field.
//
// All integers are 64 bits, all numbers double, all pointers borrowed. T is the model's type, float or bfloat16.
#pragma once

#include <cstdint>

#include "../ops/packed/matrix.hpp"

namespace indexshare {

// down(silu(gate x) * (up x)); rows of 0 mean that there is none.
struct FeedForward {
    Matrix gate, up, down;
};

struct IndexerWeights {
    Matrix key, query, head_weights;
    const char *norm_weight, *norm_bias;  // T [width]
};

struct LayerWeights {
    const char *input_norm, *query_norm, *latent_norm, *post_norm;  // T
    Matrix query_down, query_up, latent_down, output;
    // One matrix per head. A PLAIN key_up is [nope][rank] and used from the left; a quantised one [rank][nope].
    Matrix key_up, value_up;
    int64_t full;  // has an indexer
    IndexerWeights indexer;
    int64_t sparse;  // has a router and experts; `dense` are its shared experts then
    Matrix router;
    const float* router_bias;
    FeedForward experts, dense;
};

struct ModelWeights {
    const char *embedding, *final_norm;  // T
    // Of a draft layer (null for a trunk): its input is mix [embedding_norm(embedding), state_norm(state)].
    const char *embedding_norm, *state_norm;  // T
    Matrix mix;
    Matrix head;
    const LayerWeights* layers;
    const float* frequencies;  // [rope / 2]
    int64_t num_layers, vocabulary, hidden, heads, rank, rope, nope, value, query_rank;
    int64_t index_heads, index_width, topk, interleave;
    int64_t experts, experts_per_token, groups, chosen_groups, normalise;
    int64_t quantized;  // some matrix is not PLAIN
    double norm_eps, latent_eps, key_eps, rope_scale, attention_scale, index_scale, routed_scale;
};

// One step: `rows` new tokens, each at `positions` of its own sequence and stored at row `slots` of the pools.
struct Batch {
    const int64_t *ids, *positions, *slots;
    const int64_t* const* tables;  // of each row: the blocks of its sequence
    char* const* latents;          // of each layer: [slots] rows of rank + rope values without gaps
    char* const* index_keys;       // of each layer: [slots] rows of index width values, null in Shared layers
    int64_t rows, block_size, limit;
    char* hidden;                  // T [rows][hidden], after the final norm
    const int64_t* wanted;         // rows whose logits are wanted
    int64_t num_wanted;
    float* logits;                 // [num_wanted][vocabulary]
    int64_t threads;
    // Of a draft layer, which is one layer under the trunk's embedding and head.
    const char* states;            // T [rows][hidden], what stands beside the embeddings; null for a trunk
    int64_t ahead;                 // rotary positions are `positions` and so many more
    const int64_t* reuse;          // ascending rows of the last step, whose keys and choice these rows reuse; null: own
    int64_t latent_kind, latent_precise, key_kind, key_precise;  // how rows are stored: ops/coded/row_format.hpp
    const int64_t* latent_strides; // of each layer: bytes from one row of latents to the next
    // Of a cache with rows in files (null otherwise), where `latents` are those in memory, at places of their own:
    const int64_t* const* latent_slots;          // of each layer: the places to write, in the place of `slots`
    const int64_t* const* const* latent_tables;  // of each layer and row that attends to everything: places by position
    int (*fetch)(int64_t layer, int64_t* slots, int64_t count);  // brings chosen rows into memory; slots become places
    int64_t fetch_each;            // for every layer, not once for all that share a choice
};

}  // namespace indexshare
