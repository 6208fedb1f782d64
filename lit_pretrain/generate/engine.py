"""Engine: many prompts at once, one token of each per step, through the key-value cache."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import torch

from lit_pretrain.errors import UserError
from lit_pretrain.generate.sampling import check_sampling, sample
from lit_pretrain.model.kv_cache import KVCache
from lit_pretrain.model.transformer import Transformer


class Generated(NamedTuple):
    """One new token of one row."""

    row: int
    token: int
    last: bool
    """No more tokens follow in this row: it reached a stop token or its limit."""


def generate(
    net: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    seed: int = 0,
    stop_ids: frozenset[int] = frozenset(),
) -> Iterator[Generated]:
    """Continue prompts of any lengths, as a stream of tokens.

    A row gets the tokens that it would get alone: lengths, neighbours and their order do not matter, and row r draws from a generator of its
    own that is seeded with `seed + r`. The caller may stop rows by closing the iterator. The network is in eval mode meanwhile.

    Args:
        net: The network, whole and on one device.
        prompts: Token ids, at least one per row.
        max_new_tokens: Limit per row.
        temperature: 0 is greedy.
        top_k: Keep the k likeliest tokens.
        top_p: Keep the likeliest tokens that reach this probability.
        seed: Seed of row 0.
        stop_ids: Tokens that end a row; they are given out as its last.

    Yields:
        Tokens, row by row within each step.

    Raises:
        UserError: An empty prompt, settings without meaning, or more tokens than the network has positions.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    if not prompts or not all(prompts):
        raise UserError("every prompt needs at least one token: start an empty one with the tokenizer's bos id")
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths) + max_new_tokens
    if longest > net.config.max_seq_len:
        raise UserError(
            f"a prompt of {max(lengths)} tokens and {max_new_tokens} new ones make {longest}, but the network has positions for "
            f"model.net.max_seq_len={net.config.max_seq_len}: shorten the prompt or ask for fewer tokens"
        )
    weight = net.head_weight
    cache = KVCache(net.config, len(prompts), longest, device=weight.device, dtype=weight.dtype)
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    # Padding stands behind a prompt, where no query of the row sees it; its slots are overwritten by the row's own tokens.
    padded = torch.tensor([[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts], device=weight.device)
    last = torch.tensor(lengths, device=weight.device) - 1
    running = set(range(len(prompts)))
    tokens = padded
    training = net.training
    net.eval()
    try:
        for step in range(max_new_tokens):
            # A with-block must not span a yield: the caller would run its own code without gradients.
            with torch.no_grad():
                hidden_BTD = net(tokens, cache=cache)
                if step == 0:
                    hidden_BD = hidden_BTD[torch.arange(len(prompts), device=weight.device), last]
                    cache.truncate(lengths)
                else:
                    hidden_BD = hidden_BTD[:, -1]
                chosen = sample(net.logits(hidden_BD), generators, temperature=temperature, top_k=top_k, top_p=top_p)
            for row in sorted(running):
                done = chosen[row] in stop_ids or step + 1 == max_new_tokens
                if done:
                    running.discard(row)
                yield Generated(row, chosen[row], done)
            if not running:
                return
            tokens = torch.tensor(chosen, device=weight.device)[:, None]
    finally:
        net.train(training)
