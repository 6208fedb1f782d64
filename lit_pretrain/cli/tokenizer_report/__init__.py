"""`lit_pretrain tokenizer report`: what a tokenizer makes of text, beside others."""
