"""Tiled attention: the CPU kernel, which does no work for keys that documents or windows hide.

Queries are taken row by row in tiles of a hundred or so. A tile multiplies only the keys from the
first that any of its queries sees to its own end, so the work follows the documents' own squares;
its scores stay in the cache, and none are kept: the backward pass computes them again, as flash
attention does (Dao et al. 2022). Torch's fused CPU kernel computes the full square under any mask.

Measured on one core with AVX512-BF16, forward and backward, 6 heads of 64, against torch's with a
mask: 8 rows of 512 tokens in documents of 150, bf16 48 ms for 135, fp32 57 for 147; undivided rows
65 for 134 and 96 for 144; 2 rows of 2048 in documents of 700, 84 for 430 and 135 for 580. For
torch.compile it is one opaque operation that needs no C++ compilation.

Axes: B rows, T queries, S keys, H query heads, G key and value heads, K channels, N = H/G x queries
of a tile, L keys of a tile.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = {torch.float32: 64, torch.float64: 64}
"""Queries in a tile, by dtype."""
HALF_TILE = 128
"""Queries in a tile in bf16 and fp16."""


def tiled_attention(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, first_BT: Tensor, offset: int = 0
) -> Tensor:
    """Attend, on a CPU, from each query to the keys first_BT[query] .. query of its row.

    Scores are computed in fp32 or better, whatever the dtype.

    Args:
        q_BTHK: Queries.
        k_BTGK: Keys; G divides H, and each key head serves H / G query heads that stand together.
        v_BTGK: Values.
        first_BT: Column of the first key that each query sees, int64; must not decrease along a row
            nor exceed the query's own column.
        offset: Column of the first query; there are as many keys more than queries.

    Returns:
        Outputs, (B, T, H, K), contiguous.
    """
    out: Tensor = _forward(q_BTHK, k_BTGK, v_BTGK, first_BT, offset)
    return out


@torch.library.custom_op("lit_pretrain::tiled_attention", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, first_BT: Tensor, offset: int) -> Tensor:
    out = q.new_empty(q.shape)
    wide = torch.promote_types(q.dtype, torch.float32)
    tiles_of = _tiles(first_BT, q.dtype, offset)

    def work(row: int, groups: slice, heads: slice) -> None:
        q_TFK, k_GTK = q[row, :, heads].to(wide), k[row, :, groups].to(wide).transpose(0, 1)
        v_GTK = v[row, :, groups].transpose(0, 1)
        for tile in tiles_of[row]:
            weights = _weights(
                _fold(q_TFK[tile.queries], len(k_GTK)), k_GTK[:, tile.keys], tile
            ).to(q.dtype)
            out[row, tile.queries, heads] = _unfold(
                torch.bmm(weights, v_GTK[:, tile.keys]), tile.size
            )

    _share_out(work, q, k)
    return out


@torch.library.custom_op(
    "lit_pretrain::tiled_attention_backward", mutates_args=(), device_types="cpu"
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first_BT: Tensor, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5
    tiles_of = _tiles(first_BT, q.dtype, offset)

    def work(row: int, groups: slice, heads: slice) -> None:
        q_TFK, k_GTK, v_GKT = (
            q[row, :, heads],
            k[row, :, groups].transpose(0, 1),
            v[row, :, groups].permute(1, 2, 0),
        )
        wide_q_TFK, wide_k_GTK, G = q_TFK.to(wide), k_GTK.to(wide), len(k_GTK)
        # Sums over tiles are kept in fp32 or better, like the scores.
        dk_GTK, dv_GTK = torch.zeros_like(wide_k_GTK), torch.zeros_like(wide_k_GTK)
        for tile in tiles_of[row]:
            grad_GNK = _fold(grad[row, tile.queries, heads], G)
            weights = _weights(
                _fold(wide_q_TFK[tile.queries], G), wide_k_GTK[:, tile.keys], tile
            ).to(q.dtype)
            dv_GTK[:, tile.keys] += torch.bmm(weights.transpose(1, 2), grad_GNK)
            dweights = torch.bmm(grad_GNK, v_GKT[:, :, tile.keys])
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dq[row, tile.queries, heads] = _unfold(
                torch.bmm(dscores, k_GTK[:, tile.keys]), tile.size
            ).mul_(scale)
            dk_GTK[:, tile.keys] += torch.bmm(
                dscores.transpose(1, 2), _fold(q_TFK[tile.queries], G)
            )
        dk[row, :, groups], dv[row, :, groups] = (
            dk_GTK.mul_(scale).transpose(0, 1),
            dv_GTK.transpose(0, 1),
        )

    _share_out(work, q, k)
    return dq, dk, dv


def _share_out(work: Callable[[int, slice, slice], None], q: Tensor, k: Tensor) -> None:
    """Call `work` for every row and its heads, on as many threads as torch may use.

    Each thread runs its operations alone. With torch's own threads inside each of a tile's twenty
    short operations, all would wait for the slowest at the end of each: on a busy machine that was
    measured five times slower.
    """
    B, _, H, _ = q.shape
    G = k.shape[2]
    threads = torch.get_num_threads()
    size = -(
        -G // -(-threads // B)
    )  # key heads in a part: rows are split only where there are fewer of them than threads
    parts = [
        (row, slice(g, min(g + size, G)), slice(g * H // G, min(g + size, G) * H // G))
        for row in range(B)
        for g in range(0, G, size)
    ]

    inference = torch.is_inference_mode_enabled()

    def run(part: tuple[int, slice, slice]) -> None:
        # None of these is inherited by a thread.
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", enabled=False):
            work(*part)

    if threads == 1:
        for part in parts:
            run(part)
    else:
        list(_pool(os.getpid(), threads).map(run, parts))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Make threads whose operations are not themselves spread over threads.

    There is one pool a process, because a fork does not inherit threads.
    """
    together = threading.Barrier(threads + 1)

    def alone() -> None:
        # It sets the number of this thread, and of threads yet to come, which is mended below.
        torch.set_num_threads(1)
        # A thread's first call takes over the number of the process: let it do so while that is 1.
        torch.get_num_threads()
        together.wait()

    pool = ThreadPoolExecutor(threads, "tiled_attention", initializer=alone)
    for _ in range(threads):
        pool.submit(lambda: None)
    together.wait()
    torch.set_num_threads(threads)
    return pool


class _Tile(NamedTuple):
    """Some queries of a row and the keys that they see, as columns.

    The last keys stand at the queries' own columns.
    """

    queries: slice
    keys: slice
    size: int
    hidden_SL: Tensor | None
    """Keys of another document, or before the window, that a query must not see; None if there
    are none.
    """


def _tiles(first_BT: Tensor, dtype: torch.dtype, offset: int) -> list[list[_Tile]]:
    """List the tiles of each row."""
    T = first_BT.shape[1]
    size = TILE.get(dtype, HALF_TILE)
    column_S = torch.arange(offset + T, device=first_BT.device)
    starts = range(0, T, size)
    ends = [min(start + size, T) for start in starts]
    lowest, highest = first_BT[:, ::size].tolist(), first_BT[:, [end - 1 for end in ends]].tolist()
    rows = []
    for row, first_T in enumerate(first_BT):
        tiles = []
        for start, end, low, high in zip(starts, ends, lowest[row], highest[row], strict=True):
            # From a multiple of the tile: oneDNN compiles a product for every new shape, so there
            # must be few.
            key = low - low % size
            stop = offset + end
            hidden_SL = column_S[key:stop] < first_T[start:end, None] if high > key else None
            tiles.append(_Tile(slice(start, end), slice(key, stop), end - start, hidden_SL))
        rows.append(tiles)
    return rows


def _weights(q_GNK: Tensor, k_GLK: Tensor, tile: _Tile) -> Tensor:
    """Compute the softmax of a tile's masked scores, (G, N, L)."""
    scores = torch.baddbmm(
        q_GNK.new_empty(()), q_GNK, k_GLK.transpose(1, 2), beta=0, alpha=q_GNK.shape[-1] ** -0.5
    )
    by_head = scores.view(-1, tile.size, scores.shape[2])
    by_head[..., -tile.size :] += _causal(tile.size, scores.dtype)
    if tile.hidden_SL is not None:
        by_head.masked_fill_(tile.hidden_SL, float("-inf"))
    return scores.softmax(-1)


@functools.cache
def _causal(size: int, dtype: torch.dtype) -> Tensor:
    """Make the mask of a tile: zero where a query sees a key, else -inf."""
    return torch.full((size, size), float("-inf"), dtype=dtype, device="cpu").triu_(1)


def _fold(x_SHK: Tensor, groups: int) -> Tensor:
    """Reshape (S, H, K) to (G, H/G * S, K): query heads that share a key head below each other."""
    S, H, K = x_SHK.shape
    if groups == H:
        return x_SHK.transpose(0, 1)
    return x_SHK.view(S, groups, H // groups, K).permute(1, 2, 0, 3).reshape(groups, -1, K)


def _unfold(x_GNK: Tensor, S: int) -> Tensor:
    """Undo `_fold`."""
    G, N, K = x_GNK.shape
    return x_GNK.view(G, N // S, S, K).permute(2, 0, 1, 3).reshape(S, -1, K)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, first_BT: Tensor, offset: int) -> Tensor:
    return q.new_empty(q.shape)


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, first_BT: Tensor, offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_inputs(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: Tensor
) -> None:
    *tensors, ctx.offset = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    dq, dk, dv = _backward(grad, *ctx.saved_tensors, ctx.offset)
    return dq, dk, dv, None, None


_forward.register_autograd(_differentiate, setup_context=_keep_inputs)
