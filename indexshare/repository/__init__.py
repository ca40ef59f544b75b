"""A source tree as context: its files, and how `complete` lays them out before the cursor."""
