"""Index sharing as a thing to look at, to search and to train: what layers choose, which pattern, which indexers."""
