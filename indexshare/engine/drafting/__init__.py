"""Speculative decoding: cheap drafts of the next tokens, verified exactly by the model itself."""
