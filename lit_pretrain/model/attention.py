"""Attention: grouped-query, causal, within a document, over the tokens of a pass and of the cache.

The cache keeps keys and values of the tokens already seen, so that a new token costs the work of
one token.

Axes: B rows, T tokens of the pass, S slots of the cache, D width, H query heads, G key and value
heads, K channels of a head, C channels of all value heads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, RopeScaling
from lit_pretrain.model.kernels import Kernel
from lit_pretrain.model.layers import Linear, RMSNorm


class KVCache:
    """Preallocated keys and values of a batch of sequences of different lengths.

    Slot s of a row holds position s of that row's sequence, so rows of different lengths need no
    padding mask: a query sees the slots up to its own position, and whatever lies beyond (the tail
    of a padded prompt, say) is overwritten before any query reaches it. Sliding-window layers keep
    all slots and mask the old ones. What a head reads lies in one piece of memory.

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
        shape = (config.n_layer, batch_size, config.kv_heads, max_len, config.head_size)
        self.keys_LBGSK = torch.zeros(
            shape, device=device, dtype=stored
        )  # zeros: 0 * NaN in a slot nobody sees would still be NaN
        self.values_LBGSK = torch.zeros(shape, device=device, dtype=stored)
        self.lengths_B = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.tokens_BS = (
            None
            if not config.reads_previous
            else torch.zeros(batch_size, max_len, dtype=torch.int64, device=device)
        )
        """Tokens of all slots, of a network that reads the one before each."""
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
        return self.keys_LBGSK.nbytes + self.values_LBGSK.nbytes

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
        k_BSGK = self.keys_LBGSK[layer].transpose(1, 2)
        v_BSGK = self.values_LBGSK[layer].transpose(1, 2)
        if self.even:
            begin = self.used - positions_BT.shape[1]
            k_BSGK[:, begin : self.used] = k_BTGK
            v_BSGK[:, begin : self.used] = v_BTGK
        else:
            rows = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
            k_BSGK[rows, positions_BT] = k_BTGK.to(k_BSGK.dtype)
            v_BSGK[rows, positions_BT] = v_BTGK.to(v_BSGK.dtype)
        return k_BSGK[:, : self.used], v_BSGK[:, : self.used]

    def previous(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Store new tokens at their positions.

        Returns:
            The token before each, (B, T) int64; -1 for the first of a row.
        """
        assert self.tokens_BS is not None
        self.tokens_BS.scatter_(1, positions_BT, tokens_BT.long())
        before_BT = self.tokens_BS.gather(1, (positions_BT - 1).clamp(min=0))
        return torch.where(positions_BT > 0, before_BT, -1)

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
                (self.keys_LBGSK, other.keys_LBGSK),
                (self.values_LBGSK, other.values_LBGSK),
            ):
                used_BGSK = mine[layer, :, :, : self.used]
                its[layer, :, :, : self.used] = used_BGSK if rows is None else used_BGSK[rows]
        if self.tokens_BS is not None and other.tokens_BS is not None:
            used_BS = self.tokens_BS[:, : self.used]
            other.tokens_BS[:, : self.used] = used_BS if rows is None else used_BS[rows]
        other.lengths_B, other.used, other.even = lengths_B, self.used, self.even
        return other

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows, in the order given."""
        self.keys_LBGSK = self.keys_LBGSK.index_select(1, rows)
        # only now, so that not both are there twice
        self.values_LBGSK = self.values_LBGSK.index_select(1, rows)
        self.lengths_B = self.lengths_B[rows]
        if self.tokens_BS is not None:
            self.tokens_BS = self.tokens_BS[rows]


@dataclass(frozen=True)
class Rotation:
    """Cosine and sine of every angle, fp32 or better, broadcastable to (B, T, H, K/2).

    Not a tuple, lest FSDP's mixed precision find the tensors among a block's inputs and round them.
    """

    cos: Tensor
    sin: Tensor


def rotary_frequencies(head_size: int, theta: float, scaling: RopeScaling | None) -> Tensor:
    """Compute each channel pair's radians per token: theta^(-2i/K) (Su et al. 2021, eq. 15).

    They are stretched if `scaling` says so.

    In fp32 and on the CPU, so that they are bit for bit those of the published checkpoints.

    Returns:
        Frequencies of shape (K/2,).
    """
    channel = torch.arange(0, head_size, 2, dtype=torch.int64, device="cpu").to(torch.float32)
    frequency = 1.0 / theta ** (channel / head_size)
    if scaling is None:
        return frequency
    wavelength = 2 * math.pi / frequency
    rotations = scaling.original_max_seq_len / wavelength  # full turns within the original context
    keep = (rotations - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - keep) * frequency / scaling.factor + keep * frequency
    stretched = torch.where(
        rotations < scaling.low_freq_factor, frequency / scaling.factor, frequency
    )
    inside = (rotations >= scaling.low_freq_factor) & (rotations <= scaling.high_freq_factor)
    return torch.where(inside, between, stretched)


class Rotary(nn.Module):
    """Tables of cosines and sines for positions 0 .. max_seq_len - 1.

    The tables are derived, so they are not in the state dict; and they stay fp32 or better whatever
    the module is cast to: a bf16 table would turn distant positions by the same angle. Angles are
    multiplied in fp64, since in fp32 they are off by 5e-4 at position 8192. Scores depend on
    differences of positions only, so packed documents need no restart.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.theta = config.rope_theta
        self.scaling = config.rope_scaling
        self.max_seq_len = config.max_seq_len
        self.register_buffer(
            "cos",
            torch.empty(self.max_seq_len, self.head_size // 2, dtype=torch.float32),
            persistent=False,
        )
        self.register_buffer(
            "sin",
            torch.empty(self.max_seq_len, self.head_size // 2, dtype=torch.float32),
            persistent=False,
        )
        self._fill()

    def _fill(self) -> None:
        device = self.cos.device
        if device.type == "meta":
            return
        dtype = torch.promote_types(self.cos.dtype, torch.float32)
        position = torch.arange(self.max_seq_len, dtype=torch.float64, device="cpu")
        angle = position[:, None] * rotary_frequencies(self.head_size, self.theta, self.scaling)
        self.cos = angle.cos().to(device, dtype)
        self.sin = angle.sin().to(device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        # Every cast, move and to_empty() passes here: whatever it did to the tables, they are made
        # anew.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        self._fill()
        return self

    def forward(self, length: int, positions_BT: Tensor | None = None) -> Rotation:
        """Look up the rotation of positions 0 .. length - 1, or of the positions given."""
        if positions_BT is None:
            return Rotation(self.cos[None, :length, None], self.sin[None, :length, None])
        return Rotation(self.cos[positions_BT][:, :, None], self.sin[positions_BT][:, :, None])


def rotate(x_BTHK: Tensor, rotation: Rotation) -> Tensor:
    """Rotate channels i and i + K/2 of every head together, as Hugging Face checkpoints do."""
    left, right = x_BTHK.chunk(2, dim=-1)
    # The tables are fp32: products are rounded once, at the end.
    cos, sin = rotation.cos, rotation.sin
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).type_as(x_BTHK)


@dataclass(frozen=True)
class Pass:
    """What all layers of one forward pass share; made once."""

    kernel: Kernel
    rotation: Rotation | None
    cache: KVCache | None = None
    positions_BT: Tensor | None = None
    """Slots of the new tokens; only with a cache."""
    doc_BT: Tensor | None = None
    """Number of the document of each token of whole rows; None: every row is one document."""


class Attention(nn.Module):
    """Multi-head attention with grouped key and value heads (Ainslie et al. 2023).

    Queries, keys and values have a matrix each: Muon sees true matrices, and exchange formats map
    one to one.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        q_size, kv_size = config.n_head * config.head_size, config.kv_heads * config.head_size
        self.layer = layer
        self.head_size = config.head_size
        self.window = config.window(layer)
        self.qk_scale = config.qk_scale
        self.gate_channels = config.gate_channels
        self.gate_scale = 2 if config.value_gate_scale is None else config.value_gate_scale
        self.observe: Callable[[Attention, Tensor, Tensor, Pass], None] | None = None
        """Gets queries and keys as the kernel does, where layers are observed."""
        self.q_proj = Linear(config.width, q_size, bias=config.qkv_bias)
        self.k_proj = Linear(config.width, kv_size, bias=config.qkv_bias)
        self.v_proj = Linear(config.width, kv_size, bias=config.qkv_bias)
        self.out_proj = Linear(q_size, config.width, bias=config.attn_out_bias)
        self.q_norm = (
            RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        )
        self.k_norm = (
            RMSNorm(self.head_size, config.norm_eps, config.norm_weight) if config.qk_norm else None
        )
        has_value_embedding = config.has_value_embedding(layer)
        self.value_gate = (
            Linear(config.gate_channels, config.kv_heads, bias=False)
            if has_value_embedding
            else None
        )

    def forward(self, x_BTD: Tensor, shared: Pass, value_BTC: Tensor | None = None) -> Tensor:
        """Mix the tokens that see each other.

        Args:
            x_BTD: Normalised residual stream.
            shared: Kernel, rotation and cache of this forward pass.
            value_BTC: Value embedding of the input tokens, C = G * K; given exactly to the layers
                that have a gate for it.

        Returns:
            What is added to the residual stream, (B, T, D).
        """
        q_BTHK = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        k_BTGK = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        v_BTGK = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_size))
        if self.value_gate is not None:
            assert value_BTC is not None
            # Twice a sigmoid: at first, with a gate of zeros, the embedding enters as it is.
            gate_BTG = self.gate_scale * torch.sigmoid(
                self.value_gate(x_BTD[..., : self.gate_channels])
            )
            v_BTGK = v_BTGK + gate_BTG[..., None] * value_BTC.view_as(v_BTGK).type_as(v_BTGK)
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
            if self.qk_scale is not None:
                q_BTHK, k_BTGK = self.qk_scale * q_BTHK, self.qk_scale * k_BTGK
        if shared.rotation is not None:
            q_BTHK, k_BTGK = rotate(q_BTHK, shared.rotation), rotate(k_BTGK, shared.rotation)
        # Norms may return fp32 under autocast, and kernels take one type.
        q_BTHK, k_BTGK = q_BTHK.type_as(v_BTGK), k_BTGK.type_as(v_BTGK)
        if shared.cache is None:
            if self.observe is not None:
                self.observe(self, q_BTHK, k_BTGK, shared)
            heads_BTHK = shared.kernel(q_BTHK, k_BTGK, v_BTGK, self.window)
        else:
            assert shared.positions_BT is not None
            k_BSGK, v_BSGK = shared.cache.write(self.layer, shared.positions_BT, k_BTGK, v_BTGK)
            with torch.autocast(
                x_BTD.device.type, enabled=False
            ):  # in the type in which the cache is stored
                heads_BTHK = shared.kernel(
                    q_BTHK.type_as(k_BSGK), k_BSGK, v_BSGK, self.window
                ).type_as(q_BTHK)
        out: Tensor = self.out_proj(heads_BTHK.flatten(2))
        return out
