"""Model: a dense decoder-only transformer that covers the Llama, Qwen3 and GPT-2 families."""
