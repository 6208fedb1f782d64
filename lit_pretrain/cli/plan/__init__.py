"""Plan: what `lit_pretrain plan` reads, computes and shows."""
