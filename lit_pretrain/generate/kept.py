"""Kept: keys and values of one sequence from one reply to the next, so that a conversation is not read anew at each turn."""

import itertools
from collections.abc import Sequence
from typing import Optional

from lit_pretrain.model.kv_cache import KVCache
from lit_pretrain.model.transformer import Transformer


class Kept:
    """What the cache of a model holds of the last sequence. Begins empty; for one model only."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        """Tokens whose keys and values the cache holds."""
        self.reused = 0
        """Tokens of the last prompt that were not computed again."""
        self._cache: Optional[KVCache] = None

    def begin(self, model: Transformer, prompt: Sequence[int], room: int) -> tuple[KVCache, int]:
        """Get ready for a prompt.

        Args:
            model: The model, always the same one.
            prompt: Token ids.
            room: Tokens that may follow.

        Returns:
            The cache, cut to what it and the prompt begin with in common, and the length of that. At least the prompt's last token is
            left to compute, because its hidden state is what the first new token is drawn from.
        """
        pairs = zip(self.ids, prompt[:-1], strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        needed, limit = len(prompt) + room, model.config.max_seq_len
        device, dtype = model.token_embedding.weight.device, model.compute_dtype()
        cache = self._cache
        if cache is None or cache.dtype != dtype or cache.keys_LBSGK.device != device:
            cache, common = KVCache(model.config, 1, needed, device, dtype), 0
        else:
            cache.truncate([common])
            if cache.max_len < needed:
                # doubled, so that a conversation is not copied at each of its turns
                cache = cache.resized(min(limit, max(needed, 2 * cache.max_len)))
        self._cache, self.ids, self.reused = cache, list(prompt[:common]), common
        return cache, common
