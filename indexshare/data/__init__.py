"""What models are trained and measured on: corpora, installed packages, generated tasks, sources of batches."""
