"""`lit_pretrain scaling`: fit laws to runs, find the best sizes, forecast, and draw."""
