"""Observation: sums over what the blocks of a network compute, without changing any of it.

Hooks look at the output of every block, of its attention and of its feed-forward, and at the
queries and keys that attention gets. What lies within a compiled block is looked at by an opaque
operation. It reads what matrix products have written and attention will read, which is in memory
anyway, so that the code around it computes the same bits. While no step is being measured the
operation returns at once.

Axes: B rows, T tokens of this device, S keys, H query heads, G key and value heads, R = H / G,
K channels of a head, C queries of a chunk.
"""

from functools import partial

import torch
from torch import Tensor, nn

from lit_pretrain.model.attention import Attention, Pass
from lit_pretrain.model.gather import RowParts
from lit_pretrain.model.kernels import document_starts, first_visible, softcap
from lit_pretrain.model.transformer import Block, Transformer

PLACES = ("block", "attention", "feed_forward", "attention_logits")
"""What is looked at in every layer: outputs, and the scores that enter the softmax."""
CHUNK_SCORES = 2**20
"""Scores that exist at a time: 4 MiB in fp32. With 2^22 it takes twice as long on a CPU."""


class Observation:
    """Observe the blocks of a network in the passes that it learns from.

    Passes without a gradient (validation, references, rollouts) are not counted.

    Args:
        net: The network, on its device and not yet run: compiling keeps the hooks that it finds.
    """

    def __init__(self, net: Transformer) -> None:
        device = net.token_embedding.weight.device
        # On the CPU, so that looking at it waits for nothing; a tensor, so that a compiled block
        # takes it as an input and not as a constant.
        self._due = torch.zeros((), dtype=torch.bool, device="cpu")
        self._sums: list[list[Tensor]] = []
        for block in net.blocks:
            assert isinstance(block, Block)
            # A tensor for each, because parts of one tensor that are written would keep a compiled
            # block from being shared by all layers.
            sums = [torch.zeros(3, dtype=torch.float64, device=device) for _ in PLACES]
            # bf16 values between an observed output and dropout may be rounded or not, as the
            # compiler likes. Then only what bounds the compiled code is looked at.
            inner = () if net.is_compiled and net.config.dropout else (
                block.attention, block.feed_forward
            )  # fmt: skip
            for module, its in zip((block, *inner), sums, strict=False):
                module.register_forward_hook(partial(_see_output, its, self._due))
            block.attention.observe = partial(
                _see_scores, sums[3], self._due, net.parts, net.config.attn_softcap
            )
            self._sums.append(sums)

    def begin(self) -> None:
        """Begin to sum, from nothing."""
        for sums in self._sums:
            for its in sums:
                its.zero_()
        self._due.fill_(True)

    def end(self) -> Tensor:
        """Stop.

        Returns:
            (layers, places, 3), fp64, of this rank: sum of squares, count and largest absolute
            value. The count of a place that the blocks do not use is 0.
        """
        self._due.fill_(False)
        return torch.stack([torch.stack(sums) for sums in self._sums])


def sums_of(x: Tensor) -> Tensor:
    """Sum a tensor's squares, count its elements and find its largest absolute value: (3,), fp64.

    Not a number and infinity come out in both figures.
    """
    x = x.reshape(1) if x.ndim == 0 else x
    wide = torch.promote_types(x.dtype, torch.float32)
    # Row by row: one fp32 sum over a whole tensor is off by 1e-5.
    rows = torch.linalg.vector_norm(x, dim=-1, dtype=wide)
    squares = rows.double().square().sum()
    low, high = x.aminmax()  # 20 times as fast as a norm of order infinity on a CPU
    largest = torch.maximum(low.abs(), high.abs()).double()
    return torch.stack([squares, squares.new_tensor(x.numel()), largest])


def add_(total: Tensor, more: Tensor) -> None:
    """Add what `sums_of` returns to a total, in place."""
    total[:2] += more[:2]
    total[2] = torch.maximum(total[2], more[2])


def _see_output(
    sums: Tensor, due: Tensor, module: nn.Module, inputs: object, output: Tensor
) -> None:
    if torch.is_grad_enabled():
        _observe(output.detach(), sums, due)


def _see_scores(
    sums: Tensor,
    due: Tensor,
    parts: RowParts | None,
    cap: float | None,
    attention: Attention,
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    shared: Pass,
) -> None:
    if torch.is_grad_enabled():
        group, devices, rank = ("", 1, 0) if parts is None else (
            parts.group, parts.devices, parts.rank
        )  # fmt: skip
        _observe_scores(
            q_BTHK.detach(), k_BTGK.detach(), shared.doc_BT, sums, due, attention.window, cap,
            group, devices, rank,
        )  # fmt: skip


@torch.library.custom_op("lit_pretrain::observe", mutates_args=("sums",))
def _observe(x: Tensor, sums: Tensor, due: Tensor) -> None:
    if due:
        add_(sums, sums_of(x))


@torch.library.custom_op("lit_pretrain::observe_scores", mutates_args=("sums",))
def _observe_scores(
    q: Tensor,
    k: Tensor,
    doc_BT: Tensor | None,
    sums: Tensor,
    due: Tensor,
    window: int | None,
    cap: float | None,
    group: str,
    devices: int,
    rank: int,
) -> None:
    if due:
        parts = None if devices == 1 else RowParts(group, devices, rank)
        with torch.autocast(q.device.type, enabled=False):  # or products would be rounded
            add_(sums, scores_sums(q, k, doc_BT, window=window, cap=cap, parts=parts))


def scores_sums(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    doc_BT: Tensor | None,
    *,
    window: int | None,
    cap: float | None,
    parts: RowParts | None = None,
) -> Tensor:
    """Return `sums_of` the scores of all visible pairs, in fp32 and without keeping them.

    Args:
        q_BTHK: Queries of this device, as the kernel gets them.
        k_BTGK: Keys of this device.
        doc_BT: Number of the document of each token of whole rows; None: one document.
        window: Keys that a position sees, or None for all.
        cap: Bound of the scores, or None.
        parts: Which tokens of the rows this device holds; None: all of them.
    """
    wide = torch.promote_types(q_BTHK.dtype, torch.float32)
    k_BSGK = k_BTGK if parts is None else parts.gather(k_BTGK)
    B, S, G, K = k_BSGK.shape
    H, device = q_BTHK.shape[2], q_BTHK.device
    column_S = torch.arange(S, device=device)
    start_BS = torch.zeros_like(column_S[None]) if doc_BT is None else document_starts(doc_BT)
    first_BS = first_visible(start_BS, window)
    keys_BGKS = k_BSGK.permute(0, 2, 3, 1).to(wide)
    total = torch.zeros(3, dtype=torch.float64, device=device)
    size = max(1, CHUNK_SCORES // (B * H * S))
    held = [slice(0, S)] if parts is None else parts.chunks(S)
    columns = [
        (begin, min(begin + size, chunk.stop))
        for chunk in held
        for begin in range(chunk.start, chunk.stop, size)
    ]
    queries = q_BTHK.split([end - begin for begin, end in columns], dim=1)
    for q_BCHK, (begin, end) in zip(queries, columns, strict=True):
        first_BC = first_BS[:, begin:end]
        # Elsewhere, looking at it would wait for the device.
        low = int(first_BC.min()) if device.type == "cpu" else 0
        # Query heads that share a key head stand below each other, so that no key is copied.
        q = q_BCHK.transpose(1, 2).reshape(B, G, -1, K).to(wide) * K**-0.5
        scores = (q @ keys_BGKS[..., low:end]).view(B, G, H // G, end - begin, end - low)
        if cap is not None:
            scores = softcap(scores, cap)
        keys_S = column_S[low:end]
        visible = (keys_S <= column_S[begin:end, None]) & (keys_S >= first_BC[..., None])
        # A bit mask makes zeros of whatever is hidden, 10 times as fast as `masked_fill` on a CPU.
        bits = scores.view(torch.int32 if wide == torch.float32 else torch.int64)
        bits.bitwise_and_(visible[:, None, None].to(bits.dtype).neg_())
        found = sums_of(scores)
        found[1] = visible.expand(B, -1, -1).sum() * H
        add_(total, found)
    return total
