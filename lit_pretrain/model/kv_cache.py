"""KVCache: keys and values of the tokens already seen, so that a new token costs one token's work.

Axes: B rows, T new tokens, S slots of the cache, G key and value heads, K channels of a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig


class KVCache:
    """Preallocated keys and values of a batch of sequences of different lengths.

    Slot s of a row holds position s of that row's sequence, so rows of different lengths need no
    padding mask: a query sees the slots up to its own position, and whatever lies beyond (the tail
    of a padded prompt, say) is overwritten before any query reaches it. Sliding-window layers keep
    all slots and mask the old ones.

    Args:
        config: Shape of the model that will write here.
        batch_size: Rows.
        max_len: Slots of a row, in tokens.
        device: Where the model runs.
        dtype: In which the model computes. On a CPU keys and values in half precision are stored in
            fp32, unrounded: attention of a last token is several times faster there than in bf16
            (docs/experiments.md).

    Raises:
        UserError: If the model has no positions for `max_len` tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_len: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if max_len > config.max_seq_len:
            raise UserError(
                f"a sequence of {max_len} tokens is longer than"
                f" model.max_seq_len={config.max_seq_len}"
            )
        self.config = config
        self.dtype = dtype
        stored = (
            torch.promote_types(dtype, torch.float32)
            if torch.device(device).type == "cpu"
            else dtype
        )
        shape = (config.n_layer, batch_size, max_len, config.kv_heads, config.head_size)
        self.keys_LBSGK = torch.zeros(
            shape, device=device, dtype=stored
        )  # zeros: 0 * NaN in a slot nobody sees would still be NaN
        self.values_LBSGK = torch.zeros(shape, device=device, dtype=stored)
        self.lengths_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.max_len = max_len
        self.used = 0
        """No row is longer than this; known without asking the device."""
        self.even = True
        """Whether every row is so long: new tokens then have the same slots in all of them, and
        a last token sees all that is in use.
        """

    @property
    def nbytes(self) -> int:
        """Count the bytes of keys and values."""
        return self.keys_LBSGK.nbytes + self.values_LBSGK.nbytes

    def extend(self, length: int) -> Tensor:
        """Make room for `length` more tokens in every row.

        Returns:
            Their positions, (B, T), which are also their slots.

        Raises:
            UserError: If a row would outgrow the cache.
        """
        if self.used + length > self.max_len:
            raise UserError(
                f"the cache holds {self.max_len} tokens a row: {self.used} and {length} more do"
                " not fit"
            )
        positions_BT = self.lengths_B[:, None] + torch.arange(length, device=self.lengths_B.device)
        self.used += length
        self.lengths_B = self.lengths_B + length
        return positions_BT

    def write(
        self, layer: int, positions_BT: Tensor, k_BTGK: Tensor, v_BTGK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Store new keys and values of a layer at their positions.

        Returns:
            Keys and values of all slots in use, (B, used, G, K) each.
        """
        keys, values = self.keys_LBSGK[layer], self.values_LBSGK[layer]
        if self.even:
            begin = self.used - positions_BT.shape[1]
            keys[:, begin : self.used] = k_BTGK
            values[:, begin : self.used] = v_BTGK
            return keys[:, : self.used], values[:, : self.used]
        rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        keys[rows, positions_BT] = k_BTGK.to(keys.dtype)
        values[rows, positions_BT] = v_BTGK.to(values.dtype)
        return keys[:, : self.used], values[:, : self.used]

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all but the first `lengths[row]` tokens of each row, such as padding."""
        assert len(lengths) == len(self.lengths_B)
        assert max(lengths) <= self.used
        self.lengths_B = torch.tensor(lengths, dtype=torch.int64, device=self.lengths_B.device)
        self.used = max(lengths)
        self.even = min(lengths) == self.used

    def resized(self, max_len: int, rows: Tensor | None = None) -> "KVCache":
        """Copy the tokens to a cache of another length.

        Args:
            max_len: Slots of a row.
            rows: The row whose tokens each of the new rows holds; None: the same rows.

        Raises:
            UserError: The model has no positions for so many.
        """
        assert max_len >= self.used
        lengths_B = self.lengths_B if rows is None else self.lengths_B[rows]
        other = KVCache(self.config, len(lengths_B), max_len, self.lengths_B.device, self.dtype)
        for layer in range(
            self.config.n_layer
        ):  # one by one: rows that are picked are copied once more
            for mine, its in (
                (self.keys_LBSGK, other.keys_LBSGK),
                (self.values_LBSGK, other.values_LBSGK),
            ):
                its[layer, :, : self.used] = (
                    mine[layer, :, : self.used] if rows is None else mine[layer, rows, : self.used]
                )
        other.lengths_B, other.used, other.even = lengths_B, self.used, self.even
        return other

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, in the order given."""
        self.keys_LBSGK = self.keys_LBSGK[:, rows]
        self.values_LBSGK = self.values_LBSGK[:, rows]  # only now, so that not both are there twice
        self.lengths_B = self.lengths_B[rows]
