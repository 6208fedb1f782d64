"""Kernels: ways to compute attention that is causal, within a document and within a window.

All kernels obey one rule, `first[query] <= key <= query`, where `first` is the later of the start
of the query's document and the start of its window. They give the same numbers and differ in speed
and in where they run. One kernel object serves a whole forward pass: what it derives from the
document numbers is made once, not once per layer.

Axes: B rows, T tokens of this pass, S keys, H query heads, G key and value heads, K channels.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.model.gather import RowParts
from lit_pretrain.model.tiled_attention import tiled_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

KernelName = Literal["sdpa", "matmul", "tiled", "flex", "varlen"]


class Kernel(Protocol):
    """Attention over one batch.

    Queries (B, T, H, K), keys and values (B, S, G, K) with G dividing H, to outputs (B, T, H, K).
    """

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend.

        `window` is the number of keys that a position sees, itself included, or None for all.
        """
        ...


def softcap(x: Tensor, cap: float) -> Tensor:
    """Bound x smoothly by cap * tanh(x / cap) (Gemma 2).

    It is the identity near zero and never beyond ±cap.
    """
    return cap * torch.tanh(x / cap)


def document_starts(doc_BT: Tensor) -> Tensor:
    """Find the column in which the document of each position starts, (B, T) int64.

    A document begins wherever the number changes.
    """
    column_T = torch.arange(doc_BT.shape[1], device=doc_BT.device)
    return torch.where(_begins(doc_BT), column_T, 0).cummax(dim=1).values


def first_visible(start_BT: Tensor, window: int | None) -> Tensor:
    """Find the column of the first key that each position sees, (B, T) int64."""
    if window is None:
        return start_BT
    column_T = torch.arange(start_BT.shape[1], device=start_BT.device)
    return torch.maximum(start_BT, column_T - (window - 1))


def choose_kernel(
    config: ModelConfig, device: str, dtype: torch.dtype, has_documents: bool
) -> KernelName:
    """Pick the kernel of a forward pass without a cache.

    Args:
        config: Names the kernel, or leaves it to us.
        device: Type of the device.
        dtype: In which queries, keys and values will come.
        has_documents: Whether a row may hold several documents.

    Raises:
        UserError: If the kernel that the config names does not run here.
    """
    name = config.attention
    if name == "auto":
        if device == "cuda":
            # Without documents, windows or caps torch's flash kernel needs no mask, and flex
            # nothing to skip.
            plain = (
                not has_documents and config.sliding_window is None and config.attn_softcap is None
            )
            return "sdpa" if plain else "flex"
        if config.attn_softcap is not None:
            return "matmul"
        return "tiled" if device == "cpu" else "sdpa"
    if name == "tiled" and device != "cpu":
        raise UserError(f"model.attention='tiled' runs on CPU only, not on {device}: use 'auto'")
    if name == "varlen" and (device != "cuda" or dtype not in (torch.float16, torch.bfloat16)):
        raise UserError(
            f"model.attention='varlen' runs on CUDA in fp16 or bf16, here it is {device} in"
            f" {dtype}: use 'auto'"
        )
    if name == "flex" and device == "cpu" and torch.is_grad_enabled():
        raise UserError("model.attention='flex' has no backward pass on CPU: use 'auto'")
    return name


def make_kernel(
    config: ModelConfig,
    tokens_BT: Tensor,
    doc_BT: Tensor | None,
    dtype: torch.dtype,
    parts: RowParts | None = None,
) -> Kernel:
    """Build the kernel of one forward pass without a cache.

    Args:
        config: Names the kernel, the windows and the cap.
        tokens_BT: Gives shape and device of whole rows.
        doc_BT: Number of the document of each position; None if every row is one document.
        dtype: In which queries, keys and values will come.
        parts: Which tokens of the rows come, where devices share rows.
    """
    name = choose_kernel(config, tokens_BT.device.type, dtype, doc_BT is not None)
    if name == "varlen":
        assert parts is None, "check_sizes refuses it"
        return VarlenKernel(tokens_BT if doc_BT is None else doc_BT, one_document=doc_BT is None)
    start_BT = (
        torch.zeros_like(tokens_BT, dtype=torch.int64)
        if doc_BT is None
        else document_starts(doc_BT)
    )
    T = tokens_BT.shape[1]
    first: dict[int | None, Tensor | None] = {}
    for window in {config.window(layer) for layer in range(config.n_layer)}:
        unmasked = doc_BT is None and (window is None or window >= T) and name != "tiled"
        first[window] = None if unmasked and parts is None else first_visible(start_BT, window)
    if parts is None:
        return _kernel_for(name, first, slice(0, T), config, tokens_BT)
    kernels = []
    for chunk in parts.chunks(T):
        own = {w: None if rows is None else rows[:, chunk] for w, rows in first.items()}
        kernels.append((chunk, _kernel_for(name, own, chunk, config, tokens_BT)))
    return PartedKernel(parts, kernels)


def _kernel_for(
    name: KernelName,
    first: dict[int | None, Tensor | None],
    queries: slice,
    config: ModelConfig,
    tokens_BT: Tensor,
) -> Kernel:
    """Build a kernel for queries that stand at the end of the keys given."""
    if name == "tiled":
        return TiledKernel(first, queries.start)
    if name == "flex":
        return FlexKernel(first, config.attn_softcap, tokens_BT[:, queries], queries.start)
    column_S = torch.arange(queries.stop, device=tokens_BT.device)
    causal_TS = column_S <= column_S[queries, None]
    masks: dict[int | None, Tensor | None] = {}
    for window, first_BT in first.items():
        if first_BT is not None:
            masks[window] = (causal_TS & (column_S >= first_BT[:, :, None]))[:, None]
        else:
            # Torch's own kernel needs no mask to be causal, and is faster without one.
            masks[window] = causal_TS[None, None] if name == "matmul" else None
    return ProductKernel(masks, config.attn_softcap) if name == "matmul" else FusedKernel(masks)


def make_cached_kernel(
    config: ModelConfig, positions_BT: Tensor, length: int, *, even: bool
) -> Kernel:
    """Build the kernel of a forward pass over new tokens and a cache.

    Args:
        config: Names the windows and the cap.
        positions_BT: Of the new tokens.
        length: Slots 0 .. length - 1 of the cache hold these positions.
        even: Whether they do so in every row.
    """
    if even and positions_BT.shape[1] == 1 and config.attn_softcap is None:
        return LastTokenKernel()
    slot_S = torch.arange(length, device=positions_BT.device)
    last_B1T1 = positions_BT[:, None, :, None]
    masks: dict[int | None, Tensor | None] = {}
    for window in {config.window(layer) for layer in range(config.n_layer)}:
        mask = slot_S <= last_B1T1
        masks[window] = mask if window is None else mask & (slot_S > last_B1T1 - window)
    return (
        FusedKernel(masks)
        if config.attn_softcap is None
        else ProductKernel(masks, config.attn_softcap)
    )


class PartedKernel:
    """Attention of this device's tokens over whole rows, whose keys and values are gathered.

    Args:
        parts: Which tokens of a row this device holds.
        kernels: For each of its chunks the columns, and a kernel for queries at the end of the
            keys up to there.
    """

    def __init__(self, parts: RowParts, kernels: list[tuple[slice, Kernel]]) -> None:
        self.parts = parts
        self.kernels = kernels

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        # One collective for both; grouped heads make it small beside the queries.
        k_BSGK, v_BSGK = self.parts.gather(torch.cat([k_BSGK, v_BSGK], dim=-1)).chunk(2, dim=-1)
        outs = [
            kernel(q, k_BSGK[:, : chunk.stop], v_BSGK[:, : chunk.stop], window)
            for q, (chunk, kernel) in zip(q_BTHK.chunk(2, dim=1), self.kernels, strict=True)
        ]
        return torch.cat(outs, dim=1)


class FusedKernel:
    """Run torch's scaled_dot_product_attention under a dense mask.

    Args:
        masks: What each query sees, (1 or B, 1, T, S), for each window among the layers; None:
            causal, nothing else.
    """

    def __init__(self, masks: dict[int | None, Tensor | None]) -> None:
        self.masks = masks

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        mask = self.masks[window]
        q, k, v = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None, enable_gqa=grouped
        ).transpose(1, 2)


class LastTokenKernel:
    """Attention of one new token a row, in rows of one length.

    The token sees all there is, or the end of it, and nothing needs a mask.
    """

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        if window is not None:
            k_BSGK, v_BSGK = k_BSGK[:, -window:], v_BSGK[:, -window:]
        q, k, v = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
        return F.scaled_dot_product_attention(
            q, k, v, enable_gqa=q.shape[1] != k.shape[1]
        ).transpose(1, 2)


class ProductKernel:
    """Two products and a softmax under a dense mask.

    The plain formula, for what no fused kernel does.

    Args:
        masks: As for FusedKernel, but never None.
        cap: Bound of the scores, or None.
    """

    def __init__(self, masks: dict[int | None, Tensor | None], cap: float | None) -> None:
        self.masks = masks
        self.cap = cap

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        mask = self.masks[window]
        assert mask is not None
        B, T, H, K = q_BTHK.shape
        G = k_BSGK.shape[2]
        R = (
            H // G
        )  # query heads that share a key head stand below each other, so that no key is copied
        q = q_BTHK.transpose(1, 2).reshape(B, G, R * T, K)
        scores = (q @ k_BSGK.permute(0, 2, 3, 1)).view(B, G, R, T, -1) * K**-0.5
        if self.cap is not None:
            scores = softcap(scores, self.cap)
        scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
        # At least fp32, as in the fused kernels.
        weights = scores.softmax(
            -1, dtype=torch.promote_types(scores.dtype, torch.float32)
        ).type_as(v_BSGK)
        heads: Tensor = weights.flatten(2, 3) @ v_BSGK.transpose(1, 2)
        return heads.view(B, H, T, K).transpose(1, 2)


class TiledKernel:
    """Our own kernel for CPUs; see lit_pretrain.model.tiled_attention."""

    def __init__(self, first: dict[int | None, Tensor | None], offset: int = 0) -> None:
        self.first = first
        self.offset = offset

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        first_BT = self.first[window]
        assert first_BT is not None
        return tiled_attention(q_BTHK, k_BSGK, v_BSGK, first_BT, self.offset)


class FlexKernel:
    """FlexAttention: compiled to one fused kernel that skips blocks no query sees."""

    def __init__(
        self,
        first: dict[int | None, Tensor | None],
        cap: float | None,
        tokens_BT: Tensor,
        offset: int = 0,
    ) -> None:
        B, T = tokens_BT.shape
        device = tokens_BT.device
        self.score_mod = None if cap is None else functools.partial(_flex_cap, cap)
        _, create_block_mask = _flex_functions(
            device.type == "cuda" and not torch.compiler.is_compiling()
        )
        self.masks: dict[int | None, BlockMask] = {}
        for window, first_BT in first.items():
            rule = _flex_causal
            if first_BT is not None and offset:
                rule = functools.partial(_flex_shifted, first_BT, offset)
            elif first_BT is not None:
                rule = functools.partial(_flex_rule, first_BT)
            self.masks[window] = create_block_mask(
                rule, None if first_BT is None else B, None, T, offset + T, device=device
            )

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        flex_attention, _ = _flex_functions(
            q_BTHK.device.type == "cuda" and not torch.compiler.is_compiling()
        )
        out: Tensor = flex_attention(
            q_BTHK.transpose(1, 2),
            k_BSGK.transpose(1, 2),
            v_BSGK.transpose(1, 2),
            score_mod=self.score_mod,
            block_mask=self.masks[window],
            enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
        )
        return out.transpose(1, 2)


def _flex_causal(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return key <= query


def _flex_rule(first_BT: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & (key >= first_BT[b, query])


def _flex_shifted(
    first_BT: Tensor, offset: int, b: Tensor, h: Tensor, query: Tensor, key: Tensor
) -> Tensor:
    return (key <= query + offset) & (key >= first_BT[b, query])


def _flex_cap(cap: float, score: Tensor, *indices: Tensor) -> Tensor:
    return softcap(score, cap)


@functools.cache
def _flex_functions(compiled: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    # Imported on use: it drags in the compiler, seconds that other kernels need not spend.
    # Uncompiled, both functions work on the whole square of scores, so outside of torch.compile
    # they are compiled on their own.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if compiled:
        return torch.compile(flex_attention, dynamic=False), torch.compile(
            create_block_mask, dynamic=False
        )
    return flex_attention, create_block_mask


class VarlenKernel:
    """The flash kernel over documents laid end to end.

    It needs no mask, and its work is proportional to the documents' own squares.

    Args:
        doc_BT: Number of the document of each position, or anything of that shape if
            `one_document`.
        one_document: Every row is one document.
    """

    def __init__(self, doc_BT: Tensor, one_document: bool) -> None:
        B, T = doc_BT.shape
        self.longest = (
            T  # an upper bound serves; the true one would have to be read back from the device
        )
        rows = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=doc_BT.device)
        self.offsets = rows if one_document else document_offsets(doc_BT)

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: int | None
    ) -> Tensor:
        """Attend, as `Kernel` says."""
        from torch.nn.attention.varlen import varlen_attn

        group = (
            q_BTHK.shape[2] // k_BSGK.shape[2]
        )  # expanded here: torch 2.11 has no enable_gqa, later ones insist on it
        out = varlen_attn(
            q_BTHK.flatten(0, 1),
            k_BSGK.flatten(0, 1).repeat_interleave(group, dim=1),
            v_BSGK.flatten(0, 1).repeat_interleave(group, dim=1),
            self.offsets,
            self.offsets,
            self.longest,
            self.longest,
            window_size=(
                -1 if window is None else window - 1,
                0,
            ),  # keys before and after the query's own
        )
        assert isinstance(out, Tensor)
        return out.view_as(q_BTHK)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's own
def document_offsets(doc_BT: Tensor) -> Tensor:
    """Find where each document starts in the flattened batch, and the end: (documents + 1,), int32.

    Reads the number of documents back from the device: one synchronisation per forward pass, and a
    break in a graph of the whole network.
    """
    starts_N = _begins(doc_BT).flatten().nonzero().squeeze(1)
    return F.pad(starts_N, (0, 1), value=doc_BT.numel()).to(torch.int32)


def _begins(doc_BT: Tensor) -> Tensor:
    begins_BT = torch.ones_like(doc_BT, dtype=torch.bool)
    begins_BT[:, 1:] = doc_BT[:, 1:] != doc_BT[:, :-1]
    return begins_BT
