"""Generate: sample continuations from a trained model, batched and with a key-value cache."""
