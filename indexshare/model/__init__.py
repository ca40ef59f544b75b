"""The model, for one device: sharding, compilation and recompute are applied from outside."""
