"""Kernels: ways to compute attention that is causal, within a document and within a window.

All kernels obey one rule, `key <= query, same document, query - key < window`, and give the same numbers; they differ in speed and in
where they run. One kernel object serves a whole forward pass: what it derives from the document numbers is made once, not once per layer.
"""

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Optional, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

CHUNKS = 4
"""Most pieces that the queries of a row are cut into on CPU; a piece skips the keys after it. 4 pieces do 5/8 of the square."""
MIN_CHUNK = 128
"""Fewest queries in a piece, in tokens."""

KernelName = Literal["sdpa", "matmul", "flex", "varlen"]


class Kernel(Protocol):
    """Attention over one batch: queries (B, T, H, K), keys and values (B, S, G, K) with G dividing H, to outputs (B, T, H, K)."""

    def __call__(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: Optional[int]) -> Tensor:
        """Attend; `window` is the number of keys that a position sees, itself included, or None for all."""
        ...


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): the identity near zero, never beyond ±cap (Gemma 2)."""
    return cap * torch.tanh(x / cap)


def visible(query: Tensor, key: Tensor, window: Optional[int]) -> Tensor:
    """Whether each query position sees each key position, by order and window; broadcasts."""
    seen = key <= query
    return seen if window is None else seen & (query - key < window)


def choose_kernel(config: ModelConfig, device: str, *, has_documents: bool, dtype: torch.dtype, compiled: bool) -> KernelName:
    """Pick the kernel of a forward pass without a cache.

    Measured on 2 CPU cores (AVX512-BF16), 8 rows × 512 tokens, 6 heads of 64, forward and backward, documents masked: sdpa in one piece
    77 ms fp32 and 65 ms bf16; sdpa in 4 pieces 57 and 62; matmul in 4 pieces, compiled, 60 and 28; matmul eager 164 and 124.
    """
    name = config.attention
    if name == "auto":
        if device == "cuda":
            # Without documents, windows or caps, torch's flash kernel needs no mask and beats flex.
            plain = not has_documents and config.sliding_window is None and config.attn_softcap is None
            return "sdpa" if plain else "flex"
        if config.attn_softcap is not None or (device == "cpu" and compiled and dtype == torch.bfloat16):
            return "matmul"
        return "sdpa"
    if name == "varlen" and (device != "cuda" or dtype not in (torch.float16, torch.bfloat16)):
        raise UserError(f"model.attention='varlen' runs on CUDA in fp16 or bf16, here it is {device} in {dtype}: use 'auto'")
    if name == "flex" and device == "cpu" and torch.is_grad_enabled():
        raise UserError("model.attention='flex' has no backward pass on CPU: use 'auto'")
    return name


def make_kernel(config: ModelConfig, tokens_BT: Tensor, doc_BT: Optional[Tensor], dtype: torch.dtype) -> Kernel:
    """Build the kernel of one forward pass without a cache.

    Args:
        config: Names the kernel, the windows and the cap.
        tokens_BT: Gives shape and device.
        doc_BT: Number of the document of each position; None if every row is one document.
        dtype: In which queries, keys and values will come.
    """
    B, T = tokens_BT.shape
    device = tokens_BT.device
    name = choose_kernel(
        config, device.type, has_documents=doc_BT is not None, dtype=dtype, compiled=torch.compiler.is_compiling()
    )
    windows = {config.window(layer) for layer in range(config.n_layer)}
    if name == "flex":
        return FlexKernel(B, T, doc_BT, windows, config.attn_softcap, device)
    if name == "varlen":
        return VarlenKernel(B, T, doc_BT, device)
    if name == "sdpa" and doc_BT is None and device.type != "cpu":
        no_mask = {window for window in windows if window is None or window >= T}
    else:
        no_mask = set()
    position_T = torch.arange(T, device=device)
    same_document = None if doc_BT is None else (doc_BT[:, :, None] == doc_BT[:, None, :])[:, None]
    masks: dict[Optional[int], Optional[Tensor]] = {}
    for window in windows:
        mask = None
        if window not in no_mask:
            mask = visible(position_T[:, None], position_T, window)[None, None]
            mask = mask if same_document is None else mask & same_document
        masks[window] = mask
    pieces = CHUNKS if device.type == "cpu" else 1
    return DenseKernel(masks, config.attn_softcap, explicit=name == "matmul", pieces=pieces)


class DenseKernel:
    """Attention under a dense boolean mask, fused (SDPA) or as two products and a softmax.

    Args:
        masks: What each query sees, (1 or B, 1, T, S), for each window among the layers; None: causal, nothing else.
        cap: Bound of the scores, or None.
        explicit: Two products and a softmax instead of SDPA. Compiled in bf16 on CPU this is the faster one; it keeps the weights for
            the backward pass and rounds scores to the dtype, so outputs are off by 5e-3 where SDPA's are by 2e-3 (bf16, scores of deviation 2).
        pieces: Cut the queries into at most so many pieces and give each only the keys that the order and window let it see.
    """

    def __init__(self, masks: dict[Optional[int], Optional[Tensor]], cap: Optional[float], *, explicit: bool, pieces: int) -> None:
        self.masks = masks
        self.cap = cap
        self.explicit = explicit
        self.pieces = pieces

    def __call__(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: Optional[int]) -> Tensor:
        q, k, v = q_BTHK.transpose(1, 2), k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
        mask = self.masks[window]
        attend = self._explicit if self.explicit else self._fused
        T = q.shape[2]
        size = max(MIN_CHUNK, -(-T // self.pieces))
        if size >= T or mask is None:
            return attend(q, k, v, mask).transpose(1, 2)
        outputs = []
        for start in range(0, T, size):
            stop = min(start + size, T)
            first = 0 if window is None else max(0, start - window + 1)
            outputs.append(attend(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], mask[:, :, start:stop, first:stop]))
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1])

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> Tensor:
        assert mask is not None
        B, H, T, K = q.shape
        G = k.shape[1]
        R = H // G  # query heads that share a key head stand below each other, so that no key is copied
        scores = (q.reshape(B, G, R * T, K) @ k.transpose(-1, -2)).unflatten(2, (R, T)) * K**-0.5
        if self.cap is not None:
            scores = softcap(scores, self.cap)
        scores = scores.masked_fill(~mask[:, :, None], float("-inf"))
        weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).type_as(v)
        return (weights.flatten(2, 3) @ v).view(B, H, T, K)


def make_cached_kernel(config: ModelConfig, positions_BT: Tensor, length: int) -> Kernel:
    """Build the kernel of a forward pass over new tokens at `positions_BT` and a cache whose slots 0 .. length - 1 hold those positions."""
    position_S = torch.arange(length, device=positions_BT.device)
    windows = {config.window(layer) for layer in range(config.n_layer)}
    masks: dict[Optional[int], Optional[Tensor]] = {
        window: visible(positions_BT[:, None, :, None], position_S, window) for window in windows
    }
    return DenseKernel(masks, config.attn_softcap, explicit=config.attn_softcap is not None, pieces=1)


class FlexKernel:
    """FlexAttention: compiled to one fused kernel that skips blocks no query sees."""

    def __init__(
        self, B: int, T: int, doc_BT: Optional[Tensor], windows: Iterable[Optional[int]], cap: Optional[float], device: torch.device
    ) -> None:
        self.score_mod: Optional[Callable[..., Tensor]] = None
        if cap is not None:
            limit = cap
            self.score_mod = lambda score, b, h, q, k: softcap(score, limit)
        _, create_block_mask = _flex_functions(device.type == "cuda" and not torch.compiler.is_compiling())
        self.masks: dict[Optional[int], BlockMask] = {}
        for window in windows:
            rule = functools.partial(_flex_rule, doc_BT, window)
            self.masks[window] = create_block_mask(rule, None if doc_BT is None else B, None, T, T, device=device)

    def __call__(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: Optional[int]) -> Tensor:
        flex_attention, _ = _flex_functions(q_BTHK.is_cuda and not torch.compiler.is_compiling())
        out: Tensor = flex_attention(
            q_BTHK.transpose(1, 2),
            k_BSGK.transpose(1, 2),
            v_BSGK.transpose(1, 2),
            score_mod=self.score_mod,
            block_mask=self.masks[window],
            enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
        )
        return out.transpose(1, 2)


def _flex_rule(doc_BT: Optional[Tensor], window: Optional[int], b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    seen = visible(q, k, window)
    return seen if doc_BT is None else seen & (doc_BT[b, q] == doc_BT[b, k])


@functools.cache
def _flex_functions(compiled: bool) -> tuple[Any, Any]:
    # Imported on use: it drags in the compiler, seconds that a CPU run need not spend. Uncompiled, both functions work on the whole
    # square of scores, so outside of torch.compile they are compiled on their own.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if compiled:
        return torch.compile(flex_attention, dynamic=False), torch.compile(create_block_mask, dynamic=False)
    return flex_attention, create_block_mask


class VarlenKernel:
    """The flash kernel over documents laid end to end: no mask at all, work proportional to the documents' own squares."""

    def __init__(self, B: int, T: int, doc_BT: Optional[Tensor], device: torch.device) -> None:
        self.longest = T  # an upper bound serves; the true one would have to be read back from the device
        if doc_BT is None:
            self.offsets = torch.arange(0, (B + 1) * T, T, dtype=torch.int32, device=device)
        else:
            self.offsets = document_offsets(doc_BT)

    def __call__(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, window: Optional[int]) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        group = q_BTHK.shape[2] // k_BSGK.shape[2]  # expanded here: torch 2.11 has no enable_gqa, later ones insist on it
        out = varlen_attn(
            q_BTHK.flatten(0, 1),
            k_BSGK.flatten(0, 1).repeat_interleave(group, dim=1),
            v_BSGK.flatten(0, 1).repeat_interleave(group, dim=1),
            self.offsets,
            self.offsets,
            self.longest,
            self.longest,
            window_size=(-1 if window is None else window - 1, 0),  # keys before and after the query's own
        )
        assert isinstance(out, Tensor)
        return out.view_as(q_BTHK)


@torch.compiler.disable
def document_offsets(doc_BT: Tensor) -> Tensor:
    """Where each document starts in the flattened batch, and the end: (documents + 1,), int32.

    Reads the number of documents back from the device: one synchronisation and, when compiled, one graph break per forward pass.
    """
    starts_BT = torch.ones_like(doc_BT, dtype=torch.bool)
    starts_BT[:, 1:] = doc_BT[:, 1:] != doc_BT[:, :-1]
    starts_N = starts_BT.flatten().nonzero().squeeze(1)
    return F.pad(starts_N, (0, 1), value=doc_BT.numel()).to(torch.int32)
