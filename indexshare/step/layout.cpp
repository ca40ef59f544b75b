// Where the fields of model.hpp lie, for structs.py to compare with.

#include "../ops/layout.hpp"
#include "model.hpp"

extern "C" const char* indexshare_step_layout() {
    using namespace indexshare;
    static const std::string text = layout_text({
#define FIELD(field) INDEXSHARE_FIELD(FeedForward, field)
        INDEXSHARE_WHOLE(FeedForward), FIELD(gate), FIELD(up), FIELD(down),
#undef FIELD
#define FIELD(field) INDEXSHARE_FIELD(IndexerWeights, field)
        INDEXSHARE_WHOLE(IndexerWeights), FIELD(key), FIELD(query), FIELD(head_weights), FIELD(norm_weight),
        FIELD(norm_bias),
#undef FIELD
#define FIELD(field) INDEXSHARE_FIELD(LayerWeights, field)
        INDEXSHARE_WHOLE(LayerWeights), FIELD(input_norm), FIELD(query_norm), FIELD(latent_norm), FIELD(post_norm),
        FIELD(query_down), FIELD(query_up), FIELD(latent_down), FIELD(output), FIELD(key_up), FIELD(value_up),
        FIELD(full), FIELD(indexer), FIELD(sparse), FIELD(router), FIELD(router_bias), FIELD(experts), FIELD(dense),
#undef FIELD
#define FIELD(field) INDEXSHARE_FIELD(ModelWeights, field)
        INDEXSHARE_WHOLE(ModelWeights), FIELD(embedding), FIELD(final_norm),
        FIELD(embedding_norm), FIELD(state_norm), FIELD(mix), FIELD(head), FIELD(layers),
        FIELD(frequencies), FIELD(num_layers), FIELD(vocabulary), FIELD(hidden), FIELD(heads), FIELD(rank),
        FIELD(rope), FIELD(nope), FIELD(value), FIELD(query_rank), FIELD(index_heads), FIELD(index_width),
        FIELD(topk), FIELD(interleave), FIELD(experts), FIELD(experts_per_token), FIELD(groups), FIELD(chosen_groups),
        FIELD(normalise), FIELD(quantized), FIELD(norm_eps), FIELD(latent_eps), FIELD(key_eps), FIELD(rope_scale),
        FIELD(attention_scale), FIELD(index_scale), FIELD(routed_scale),
#undef FIELD
#define FIELD(field) INDEXSHARE_FIELD(Batch, field)
        INDEXSHARE_WHOLE(Batch), FIELD(ids), FIELD(positions), FIELD(slots), FIELD(tables), FIELD(latents),
        FIELD(index_keys), FIELD(rows), FIELD(block_size), FIELD(limit), FIELD(hidden), FIELD(wanted),
        FIELD(num_wanted), FIELD(logits), FIELD(threads), FIELD(states), FIELD(ahead), FIELD(reuse),
        FIELD(latent_kind), FIELD(latent_precise), FIELD(key_kind), FIELD(key_precise),
        FIELD(latent_strides), FIELD(latent_slots), FIELD(latent_tables), FIELD(fetch), FIELD(fetch_each),
#undef FIELD
    });
    return text.c_str();
}
