"""Linear cross-entropy: output head and loss in one, chunk by chunk.

Tokens × vocabulary logits never exist at once.

Shapes: N tokens, C tokens of one chunk, V vocabulary, D width.

The gradient with respect to the logits is needed only to be multiplied by two matrices, and the
loss is a sum, whose upstream gradient is one number. So the forward pass already computes the
gradients of the hidden states and the head for a chunk while its logits are at hand, throws the
logits away, and the backward pass only multiplies by that number.

Under tensor parallelism a device holds the rows of its own part of the vocabulary. For each chunk
the devices exchange three numbers a token, in one collective: the log-sum-exp of their own logits,
the target's logit where it is theirs, and the sum of their logits. No device ever sees the logits
of another.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from lit_pretrain.batch import IGNORE_INDEX

_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}
_CHUNK_TOKENS = {"cpu": (256, 1024), "cuda": (1024, 16384)}
_TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of the logits `hidden @ weight.T` against the labels.

    Args:
        hidden_ND: Hidden states.
        weight_VD: Weight of the output head: a plain tensor, or a DTensor whose rows are split over
            one axis of devices that all hold the same hidden states. The gradient of the hidden
            states is then this device's part of a sum.
        labels_N: Target ids; `IGNORE_INDEX` where unsupervised.
        z_loss: Weight of `log(Z)^2` per token (Chowdhery et al. 2022, section 5).
        label_smoothing: Share of the target spread evenly over the vocabulary.
        softcap: If given, logits become `cap * tanh(logits / cap)`.
        chunk: Tokens per chunk; by default from the size of the vocabulary.

    Returns:
        The differentiable sum (in nats, z and smoothing terms included) and the detached negative
        log-likelihood per token (N, without those terms, 0 where ignored), both fp32, or fp64 for
        fp64 inputs.

    Raises:
        RuntimeError: A label is neither in the vocabulary nor `IGNORE_INDEX` (on CUDA
            asynchronously, as a device assertion).
    """
    _check_labels(labels_N, weight_VD.shape[0])
    weight_VD, split = _own_rows(weight_VD)
    grad, dtype = torch.is_grad_enabled(), _compute_dtype(hidden_ND, weight_VD)
    chunk = chunk or _chunk(hidden_ND, weight_VD.shape[0], dtype)
    total, nll_N = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden_ND,
        weight_VD,
        labels_N,
        (z_loss, label_smoothing, softcap, chunk, *split),
        dtype,
        (grad and hidden_ND.requires_grad, grad and weight_VD.requires_grad),
    )
    return total, nll_N


def linear_logp(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Compute the differentiable log-probability of each label (N), in nats, 0 where ignored.

    The upstream gradient differs from token to token, so the backward pass computes each chunk's
    logits once more.
    """
    _check_labels(labels_N, weight_VD.shape[0])
    weight_VD, split = _own_rows(weight_VD)
    dtype = _compute_dtype(hidden_ND, weight_VD)
    chunk = chunk or _chunk(hidden_ND, weight_VD.shape[0], dtype)
    config = 0.0, 0.0, softcap, chunk, *split
    logp_N: Tensor = _LinearLogp.apply(  # type: ignore[no-untyped-call]  # torch's own
        hidden_ND, weight_VD, labels_N, config, dtype
    )
    return logp_N


_Split = tuple[str | None, int, int]
"""The process group over which the vocabulary is split, by name, the number of its parts and the
first id of this device's; (None, 1, 0) where this device has all of it.
"""
_Config = tuple[float, float, float | None, int, str | None, int, int]
"""z-loss, smoothing, softcap, tokens per chunk, and the three of `_Split`."""


def _own_rows(weight_VD: Tensor) -> tuple[Tensor, _Split]:
    """Return the rows of the head that this device holds, and how the vocabulary is split."""
    if not hasattr(weight_VD, "device_mesh"):
        return weight_VD, (None, 1, 0)
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(weight_VD, DTensor)
    assert weight_VD.placements == (Shard(0),)
    own_VD, mesh = weight_VD.to_local(), weight_VD.device_mesh
    first = mesh.get_local_rank() * own_VD.shape[0]
    return own_VD, (mesh.get_group().group_name, mesh.size(), first)


def _exchange(own_3C: Tensor, group: str, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Combine log-sum-exp, target's logit and sum of logits over the parts of a vocabulary."""
    ops = torch.ops._c10d_functional
    gathered = ops.wait_tensor(ops.all_gather_into_tensor(own_3C, parts, group))
    lse_PC, target_PC, sum_PC = gathered.view(-1, *own_3C.shape).unbind(1)
    # A target lies in one part of the vocabulary, and its logit is 0 in the others.
    return lse_PC.logsumexp(0), target_PC.sum(0), sum_PC.sum(0)


_Limit = TypeVar("_Limit")


def _of_device(table: Mapping[str, _Limit], tensor: Tensor) -> _Limit:
    return table["cpu" if tensor.device.type == "cpu" else "cuda"]


def _chunk(hidden_ND: Tensor, vocabulary: int, dtype: torch.dtype) -> int:
    least, most = _of_device(_CHUNK_TOKENS, hidden_ND)
    fitting = _of_device(_CHUNK_BYTES, hidden_ND) // (dtype.itemsize * vocabulary)
    chunks = int(-(-hidden_ND.shape[0] // min(most, max(least, fitting))))
    return max(
        1, -(-hidden_ND.shape[0] // max(1, chunks))
    )  # equal chunks: a compiled body meets one shape, or two


def _compute_dtype(hidden_ND: Tensor, weight_VD: Tensor) -> torch.dtype:
    device = hidden_ND.device.type
    common = torch.promote_types(hidden_ND.dtype, weight_VD.dtype)
    if torch.is_autocast_enabled(device) and common != torch.float64:  # autocast leaves fp64 alone
        return torch.get_autocast_dtype(device)
    return common


def _check_labels(labels_N: Tensor, vocabulary: int) -> None:
    good_N = ((labels_N >= 0) & (labels_N < vocabulary)) | (labels_N == IGNORE_INDEX)
    # Asynchronous: to read the answer the host would have to wait for the device.
    torch._assert_async(
        good_N.all(), f"a label is neither in the vocabulary [0, {vocabulary}) nor {IGNORE_INDEX}"
    )


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _losses_and_logit_grad_(
    logits_CV: Tensor,
    labels_C: Tensor,
    scale_C: Tensor,
    z_loss: float,
    smoothing: float,
    softcap: float | None,
    want_grad: bool,
    work_CV: Tensor | None,
    probs_CV: Tensor | None,
    group: str | None,
    parts: int,
    first: int,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of a chunk.

    With `want_grad` its logits are overwritten by the gradient of `sum(scale * loss)`.

    `work_CV` and `probs_CV` are buffers that may be used; without them (under a compiler)
    intermediates are allocated. With `group` the logits are those of the ids from `first` on, one
    of `parts` of a vocabulary.
    """
    valid_C = labels_C != IGNORE_INDEX
    if group is not None:
        labels_C = labels_C - first
        valid_C = valid_C & (labels_C >= 0) & (labels_C < logits_CV.shape[1])
    # Any id will do where there is no target, because its scale is 0.
    target_C1 = torch.where(valid_C, labels_C, 0)[:, None]
    x_CV = logits_CV
    if logits_CV.dtype != scale_C.dtype:
        x_CV = logits_CV.to(scale_C.dtype) if work_CV is None else work_CV.copy_(logits_CV)
    if softcap is not None:
        x_CV = torch.tanh(x_CV / softcap) * softcap
    # One pass makes the probabilities. The largest of them is exp(0) / sum, which gives the
    # normaliser without another exp.
    probs_CV = (
        torch.softmax(x_CV, dim=1) if probs_CV is None else torch.softmax(x_CV, dim=1, out=probs_CV)
    )
    lse_C = x_CV.amax(dim=1) - probs_CV.amax(dim=1).log()
    target_logit_C = x_CV.gather(1, target_C1).squeeze(1)
    sum_C = x_CV.sum(dim=1) if smoothing else lse_C  # exchanged for nothing without smoothing
    target_scale_C = scale_C
    if group is not None:
        target_scale_C = torch.where(valid_C, scale_C, 0.0)
        own_lse_C, own_target_C = lse_C, torch.where(valid_C, target_logit_C, 0.0)
        own_3C = torch.stack([own_lse_C, own_target_C, sum_C])
        lse_C, target_logit_C, sum_C = _exchange(own_3C, group, parts)
        # From a softmax over this part to one over the whole vocabulary.
        probs_CV.mul_((own_lse_C - lse_C).exp()[:, None])
    nll_C = lse_C - target_logit_C
    loss_C = nll_C
    vocabulary = parts * x_CV.shape[1]
    if smoothing:
        loss_C = loss_C + smoothing * (target_logit_C - sum_C / vocabulary)
    if z_loss:
        loss_C = loss_C + z_loss * lse_C.square()
    if want_grad:
        # The gradient of z lse² is 2 z lse × softmax, so that both terms are one product.
        probs_CV.mul_((scale_C * (1.0 + 2.0 * z_loss * lse_C) if z_loss else scale_C)[:, None])
        if smoothing:
            probs_CV.sub_(scale_C[:, None], alpha=smoothing / vocabulary)
        probs_CV.scatter_add_(1, target_C1, (target_scale_C * (smoothing - 1.0))[:, None])
        if softcap is not None:
            # x is cap × tanh(...), and the derivative of tanh is 1 - tanh².
            probs_CV.mul_(1.0 - (x_CV / softcap).square())
        logits_CV.copy_(probs_CV)
    return loss_C, nll_C


@functools.cache
def _compiled_body() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_losses_and_logit_grad_, dynamic=False)


@torch.library.custom_op("lit_pretrain::linear_cross_entropy", mutates_args=())
def _op(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    scale_N: Tensor,
    z_loss: float,
    smoothing: float,
    softcap: float | None,
    chunk: int,
    group: str | None,
    parts: int,
    first: int,
    hidden_grad: bool,
    weight_grad: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the losses and, if wanted, the gradients of `sum(scale * loss)`.

    Returns total, nll_N, grad_hidden_ND and grad_weight_VD, which are empty where not wanted.
    """
    (tokens, _), vocabulary, acc = hidden_ND.shape, weight_VD.shape[0], scale_N.dtype
    want_grad = hidden_grad or weight_grad
    nll_N = hidden_ND.new_empty(tokens, dtype=acc)
    total = hidden_ND.new_zeros((), dtype=acc)
    grad_hidden_ND = torch.empty_like(hidden_ND) if hidden_grad else hidden_ND.new_empty(0)
    # fp32: a bf16 sum over chunks loses what the later ones add.
    grad_weight_VD = (
        torch.zeros_like(weight_VD, dtype=acc) if weight_grad else weight_VD.new_empty(0, dtype=acc)
    )
    # The buffers are allocated once: fresh ones per chunk cost more in page faults than the
    # arithmetic.
    rows = min(chunk, tokens)
    tile = (
        rows
        if compiled
        else max(1, min(rows, _of_device(_TILE_BYTES, hidden_ND) // (4 * vocabulary)))
    )
    logits_buffer = hidden_ND.new_empty(rows, vocabulary)
    work_buffer = (
        None
        if compiled or hidden_ND.dtype == acc
        else hidden_ND.new_empty(tile, vocabulary, dtype=acc)
    )
    probs_buffer = None if compiled else hidden_ND.new_empty(tile, vocabulary, dtype=acc)
    weight_buffer = torch.empty_like(weight_VD) if weight_grad and weight_VD.dtype != acc else None
    body = _compiled_body() if compiled else _losses_and_logit_grad_
    for start in range(0, tokens, chunk):
        part = slice(start, min(start + chunk, tokens))
        rows = part.stop - start
        hidden_CD = hidden_ND[part]
        logits_CV = torch.mm(hidden_CD, weight_VD.T, out=logits_buffer[:rows])
        for low in range(start, part.stop, tile):
            sub = slice(low, min(low + tile, part.stop))
            labels_C, scale_C = labels_N[sub], scale_N[sub]
            loss_C, nll_C = body(
                logits_CV[low - start : sub.stop - start],
                labels_C,
                scale_C,
                z_loss,
                smoothing,
                softcap,
                want_grad,
                None if work_buffer is None else work_buffer[: sub.stop - low],
                None if probs_buffer is None else probs_buffer[: sub.stop - low],
                group,
                parts,
                first,
            )
            total += torch.dot(loss_C, scale_C)
            torch.mul(nll_C, labels_C != IGNORE_INDEX, out=nll_N[sub])
        if hidden_grad:
            torch.mm(logits_CV, weight_VD, out=grad_hidden_ND[part])
        if weight_grad:
            if acc == logits_CV.dtype:
                grad_weight_VD.addmm_(logits_CV.T, hidden_CD)
            else:
                grad_weight_VD += torch.mm(logits_CV.T, hidden_CD, out=weight_buffer)
    return total, nll_N, grad_hidden_ND, grad_weight_VD


@_op.register_fake
def _(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    scale_N: Tensor,
    z_loss: float,
    smoothing: float,
    softcap: float | None,
    chunk: int,
    group: str | None,
    parts: int,
    first: int,
    hidden_grad: bool,
    weight_grad: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    acc = scale_N.dtype
    return (
        hidden_ND.new_empty((), dtype=acc),
        hidden_ND.new_empty(hidden_ND.shape[0], dtype=acc),
        torch.empty_like(hidden_ND) if hidden_grad else hidden_ND.new_empty(0),
        torch.empty_like(weight_VD, dtype=acc)
        if weight_grad
        else weight_VD.new_empty(0, dtype=acc),
    )


def _run(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    scale_N: Tensor,
    config: _Config,
    dtype: torch.dtype,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    # Compiled pointwise kernels pay where memory traffic rules (CUDA); on a CPU the eager body is
    # as fast (scripts/bench_head.py).
    compiled = torch.compiler.is_compiling() and hidden_ND.device.type == "cuda"
    total, nll_N, grad_hidden, grad_weight = _op(
        hidden_ND.to(dtype), weight_VD.to(dtype), labels_N, scale_N, *config, *wanted, compiled
    )
    return (
        total,
        nll_N,
        grad_hidden.to(hidden_ND.dtype) if wanted[0] else None,
        grad_weight.to(weight_VD.dtype) if wanted[1] else None,
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        config: _Config,
        dtype: torch.dtype,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        scale_N = (labels_N != IGNORE_INDEX).to(_accumulator(dtype))
        total, nll_N, grad_hidden, grad_weight = _run(
            hidden_ND, weight_VD, labels_N, scale_N, config, dtype, wanted
        )
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(nll_N)
        return total, nll_N

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_total.to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * grad_total.to(grad_weight.dtype),
            None,
            None,
            None,
            None,
        )


class _LinearLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        labels_N: Tensor,
        config: _Config,
        dtype: torch.dtype,
    ) -> Tensor:
        # Only gradients would be scaled, and none is computed here.
        scale_N = labels_N.new_zeros(labels_N.shape, dtype=_accumulator(dtype))
        _, nll_N, _, _ = _run(
            hidden_ND, weight_VD, labels_N, scale_N, config, dtype, (False, False)
        )
        ctx.save_for_backward(hidden_ND, weight_VD, labels_N)
        ctx.config, ctx.dtype = config, dtype
        return -nll_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, labels_N = ctx.saved_tensors
        # Negative, because the loss of the kernel is the negative of what is differentiated.
        scale_N = torch.where(labels_N != IGNORE_INDEX, -grad_N, 0.0)
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        _, _, grad_hidden, grad_weight = _run(
            hidden_ND, weight_VD, labels_N, scale_N, ctx.config, ctx.dtype, wanted
        )
        return grad_hidden, grad_weight, None, None, None
