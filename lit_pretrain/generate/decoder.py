"""Decoder: a batch of prompts in the key-value cache, and the logits of what comes next."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.kv_cache import KVCache
from lit_pretrain.model.transformer import Transformer


class Decoder:
    """Reads prompts at once, each once however often it is to be answered, then one token a row at a time.

    Without a gradient, in evaluation mode.

    Args:
        model: A transformer.
        prompts: Token ids, one sequence per row.
        max_new_tokens: Most tokens that will follow each of them.

    Raises:
        UserError: If a prompt is empty, has no room for what follows, or holds an unknown token.
    """

    def __init__(self, model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= model.config.max_seq_len - max_new_tokens:
                raise UserError(
                    f"prompt {row} has {len(prompt)} tokens; it must have at least one, and with {max_new_tokens} new ones no more than "
                    f"model.net.max_seq_len={model.config.max_seq_len}"
                )
        self.model = model
        device = model.token_embedding.weight.device
        distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        lengths = [len(prompt) for prompt in distinct]
        longest = max(lengths)
        # Padded on the right: a row's slots in the cache are its positions, and what the padding wrote there is forgotten.
        tokens_BT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in distinct], device=device)
        model.check_tokens(tokens_BT)
        repeated = len(distinct) < len(prompts)
        slots = longest if repeated else longest + max_new_tokens
        self.cache = KVCache(model.config, len(distinct), slots, device, model.compute_dtype())
        hidden_BTD = model(tokens_BT, cache=self.cache)
        self.cache.truncate(lengths)
        last_B = torch.tensor(lengths, device=device) - 1
        self.logits_BV: Tensor = model.logits(hidden_BTD[torch.arange(len(lengths), device=device), last_B])
        """Of the token that follows in each row."""
        if repeated:
            rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
            self.cache = self.cache.resized(longest + max_new_tokens, rows)
            self.logits_BV = self.logits_BV[rows]

    def advance(self, ids_B: Tensor) -> None:
        """Append a token to each row."""
        self.logits_BV = self.model.logits(self.model(ids_B[:, None], cache=self.cache)[:, -1])

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone; those that have ended cost no more."""
        self.cache.keep(rows)
        self.logits_BV = self.logits_BV[rows]
