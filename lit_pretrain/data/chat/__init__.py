"""Chat data: rows of post-training as batches."""
