"""Completions: whole answers to a batch of prompts, with the log-probability of every token.

Axes: B rows, N new tokens, C candidates, V vocabulary.
"""

import random
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_pretrain.generate.engine import Decoder
from lit_pretrain.generate.sampling import candidates, check_sampling, draw
from lit_pretrain.model.transformer import Transformer


class Completions(NamedTuple):
    """Hold the answers to B prompts; N is at most the number of tokens allowed."""

    tokens_BN: Tensor
    """Token ids, int64, a stop id included; 0 behind the end of an answer."""
    mask_BN: Tensor
    """Whether a token was drawn, bool."""
    logp_BN: Tensor
    """Log-probability of each token, fp32 nats, 0 where none was drawn: at the temperature, but
    before top-k, top-p and min-p, so that a policy which computes softmax(logits / temperature)
    gives the same.
    """


class CompletionSampling(NamedTuple):
    """Say from which distribution tokens are drawn, and where answers end."""

    max_tokens: int
    """Longest answer."""
    stop_ids: Collection[int]
    """An answer ends after one of these."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy, and then log-probabilities are those at temperature 1."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


def sample_completions(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: CompletionSampling,
    seeds: Sequence[int],
) -> Completions:
    """Answer prompts, all at once.

    Rows that have ended leave the batch as soon as that halves it.

    The tokens that `lit_pretrain.generate.engine.generate` draws for the same prompt, seed and
    settings. Dropout is off, and no gradient is recorded.

    Args:
        model: A transformer, on any device.
        prompts: Token ids, one sequence per row, none empty.
        sampling: How to draw.
        seeds: One number a row; a row draws as it would alone.

    Raises:
        UserError: If a prompt has no room for its answer or holds an unknown token, or if a setting
            is out of range.
    """
    temperature, top_k = sampling.temperature, sampling.top_k
    top_p, min_p = sampling.top_p, sampling.min_p
    check_sampling(temperature, top_k, top_p, min_p)
    assert len(seeds) == len(prompts)
    device = model.token_embedding.weight.device
    shape = (len(prompts), sampling.max_tokens)
    tokens_BN = torch.zeros(shape, dtype=torch.int64, device=device)
    mask_BN = torch.zeros(shape, dtype=torch.bool, device=device)
    logp_BN = torch.zeros(shape, dtype=torch.float32, device=device)
    streams = [random.Random(f"{seed}:0") for seed in seeds]
    rows = torch.arange(len(prompts), device=device)  # the prompt of each row that is still decoded
    live = torch.ones(
        len(prompts), dtype=torch.bool, device=device
    )  # of those, whether its answer goes on
    stops = torch.tensor(sorted(sampling.stop_ids), dtype=torch.int64, device=device)
    with _sampling_mode(model, device):
        decoder = Decoder(model, prompts, sampling.max_tokens)
        for n in range(sampling.max_tokens):
            probabilities_BC, ids_BC = candidates(
                decoder.logits_BV, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
            )
            uniform_B = torch.tensor(
                [stream.random() for stream in streams], dtype=probabilities_BC.dtype
            )
            drawn_B = draw(probabilities_BC, ids_BC, uniform_B.to(device))
            tokens_BN[rows, n] = torch.where(live, drawn_B, 0)
            logp_BN[rows, n] = torch.where(
                live, _logp(decoder.logits_BV, drawn_B, sampling.temperature), 0.0
            )
            mask_BN[rows, n] = live
            live = live & ~torch.isin(drawn_B, stops)
            going = int(live.sum())
            if going == 0 or n + 1 == sampling.max_tokens:
                break
            if 2 * going <= len(rows):
                kept = live.nonzero().squeeze(1)
                decoder.keep(kept)
                rows, drawn_B, live = rows[kept], drawn_B[kept], live[kept]
                streams = [streams[i] for i in kept.tolist()]
            decoder.advance(drawn_B)
    return Completions(tokens_BN[:, : n + 1], mask_BN[:, : n + 1], logp_BN[:, : n + 1])


@contextmanager
def _sampling_mode(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Switch off dropout, gradients and the compiler; under autocast, cast weights once a rollout.

    Not inference mode, in which autocast keeps no casts: a matrix of 2048 x 2048 then takes a row
    three times as long on a CPU. What was kept is thrown away at the end: torch 2.13 does not use
    casts made without a gradient for a loss that follows in the same context, but older releases
    did, and so hid the weights from its backward pass.
    """
    training = [module for module in model.modules() if module.training]
    autocast = torch.is_autocast_enabled(device.type)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if autocast:
            dtype = torch.get_autocast_dtype(device.type)
            stack.enter_context(torch.autocast(device.type, dtype=dtype, cache_enabled=True))
        if (
            "torch._dynamo" in sys.modules
        ):  # else nothing is compiled, and asking would import the compiler
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
            if autocast:
                torch.clear_autocast_cache()


def _logp(logits_BV: Tensor, ids_B: Tensor, temperature: float) -> Tensor:
    logits_BV = logits_BV.float() / (temperature or 1.0)
    return logits_BV.gather(1, ids_B[:, None]).squeeze(1) - logits_BV.logsumexp(dim=1)
