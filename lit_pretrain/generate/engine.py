"""Engine: continue a batch of prompts of different lengths, token by token.

`generate` hands each token on as it is drawn; `sample_completions` returns whole answers with the
log-probability of every token, for rollouts.

Axes: B rows, T tokens, N new tokens, D width, C candidates, V vocabulary.
"""

import itertools
import random
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lit_pretrain.errors import UserError
from lit_pretrain.generate.native_step import NativeStep, native_step
from lit_pretrain.generate.sampling import candidates, check_sampling, draw
from lit_pretrain.model.attention import KVCache
from lit_pretrain.model.transformer import Transformer


class Decoder:
    """Read prompts into the key-value cache, then decode one token a row at a time.

    Equal prompts are read once, however many answers they get.

    Without a gradient, in evaluation mode.

    Args:
        model: A transformer.
        prompts: Token ids, one sequence per row.
        max_new_tokens: Most tokens that will follow each of them.

    Raises:
        UserError: If a prompt is empty, has no room for what follows, or holds an unknown token.
    """

    def __init__(
        self, model: Transformer, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        for row, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= model.config.max_seq_len - max_new_tokens:
                raise UserError(
                    f"prompt {row} has {len(prompt)} tokens; it must have at least one, and with"
                    f" {max_new_tokens} new ones no more than"
                    f" model.net.max_seq_len={model.config.max_seq_len}"
                )
        self.model = model
        self._native = native_step(model)
        device = model.token_embedding.weight.device
        distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        lengths = [len(prompt) for prompt in distinct]
        longest = max(lengths)
        # Padded on the right: a row's slots in the cache are its positions, and what the padding
        # wrote there is forgotten.
        tokens_BT = torch.tensor(
            [[*prompt, *[0] * (longest - len(prompt))] for prompt in distinct], device=device
        )
        model.check_tokens(tokens_BT)
        repeated = len(distinct) < len(prompts)
        # Where prompts repeat, the cache is copied to its full length below, once for all answers.
        slots = longest if repeated else longest + max_new_tokens
        self.cache = KVCache(model.config, len(distinct), slots, device, model.compute_dtype())
        hidden_BTD = model(tokens_BT, cache=self.cache)
        self.cache.truncate(lengths)
        last_B = torch.tensor(lengths, device=device) - 1
        self.logits_BV: Tensor = model.logits(
            hidden_BTD[torch.arange(len(lengths), device=device), last_B]
        )
        """Of the token that follows in each row."""
        if repeated:
            rows = torch.tensor([distinct[tuple(prompt)] for prompt in prompts], device=device)
            self.cache = self.cache.resized(longest + max_new_tokens, rows)
            self.logits_BV = self.logits_BV[rows]

    def advance(self, ids_B: Tensor) -> None:
        """Append a token to each row."""
        self.logits_BV = _next_logits(self.model, self._native, ids_B, self.cache)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows alone; those that have ended cost no more."""
        self.cache.keep(rows)
        self.logits_BV = self.logits_BV[rows]


class KeptCache:
    """Keep the keys and values of the last sequence, so that a conversation is not read anew.

    It begins empty and serves one model only.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        """Tokens whose keys and values the cache holds."""
        self.reused = 0
        """Tokens of the last prompt that were not computed again."""
        self._cache: KVCache | None = None

    def begin(self, model: Transformer, prompt: Sequence[int], room: int) -> tuple[KVCache, int]:
        """Reuse what a prompt has in common with the last sequence.

        Args:
            model: The model, always the same one.
            prompt: Token ids.
            room: Tokens that may follow.

        Returns:
            The cache, cut to what it and the prompt begin with in common, and the length of that.
            At least the prompt's last token is left to compute, because its hidden state is what
            the first new token is drawn from.
        """
        # Without the last token, whose hidden state is needed even where its keys are known.
        pairs = zip(self.ids, prompt[:-1], strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        needed, limit = len(prompt) + room, model.config.max_seq_len
        device, dtype = model.token_embedding.weight.device, model.compute_dtype()
        cache = self._cache
        if cache is None or cache.dtype != dtype or cache.keys_LBGSK.device != device:
            cache, common = KVCache(model.config, 1, needed, device, dtype), 0
        else:
            cache.truncate([common])
            if cache.max_len < needed:
                # doubled, so that a conversation is not copied at each of its turns
                cache = cache.resized(min(limit, max(needed, 2 * cache.max_len)))
        self._cache, self.ids, self.reused = cache, list(prompt[:common]), common
        return cache, common


class Token(NamedTuple):
    """Hold one new token of one row."""

    row: int
    """Index of the prompt that it continues."""
    id: int
    """Token id; a stop id is reported like any other token."""
    last: bool
    """Nothing follows in this row: a stop id ended it, or max_new_tokens did."""


def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | Sequence[int] = 0,
    stop_ids: Collection[int] = (),
    kept: KeptCache | None = None,
) -> Iterator[Token]:
    """Continue prompts, yielding each token as soon as it is drawn, the rows in turn.

    A row's tokens depend on its prompt, its seed and the settings, not on its neighbours. Dropout
    is off while a step runs; between steps the model is as the caller left it, and autograd is
    untouched. The caller's autocast applies. A compiled model runs uncompiled here, because the
    length changes with every token; on a CPU, `native_step` says where a token costs one call of
    compiled C instead. For stop strings, decode the tokens and close the iterator.

    Args:
        model: A transformer, on any device.
        prompts: Token ids, one sequence per row, none empty.
        max_new_tokens: Most tokens to add to each row.
        temperature: Divides the logits; 0 is greedy.
        top_k: Keep so many of the likeliest tokens; None: all.
        top_p: Keep the fewest tokens that together reach this probability; None: all.
        min_p: Keep the tokens at least this fraction as likely as the likeliest; None: all.
        seed: One number, from which every row gets its own stream; or one per row, with which a row
            draws as it would alone.
        stop_ids: A row ends after drawing one of these.
        kept: Keys and values of an earlier sequence of this model: what the prompt begins with in
            common is not computed again. One prompt.

    Returns:
        An iterator over new tokens.

    Raises:
        UserError: If a prompt is empty, holds an unknown token or has no room for max_new_tokens,
            or if a setting is out of range.
    """
    check_sampling(temperature, top_k, top_p, min_p)
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} must be at least 1")
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(
                f"prompt {row} is empty: start it with the tokenizer's beginning-of-text token at"
                " least"
            )
        if len(prompt) + max_new_tokens > model.config.max_seq_len:
            raise UserError(
                f"prompt {row} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that"
                f" is more than model.max_seq_len={model.config.max_seq_len}: shorten one of them"
            )
    assert kept is None or len(prompts) == 1, "what is kept is one sequence"
    if isinstance(seed, int):
        streams = [random.Random(f"{seed}:{row}") for row in range(len(prompts))]
    elif len(seed) == len(prompts):
        streams = [random.Random(f"{number}:0") for number in seed]
    else:
        raise UserError(
            f"{len(seed)} seeds for {len(prompts)} prompts: give one for all, or one for each"
        )

    def sample(logits_BV: Tensor) -> Tensor:
        probabilities_BC, ids_BC = candidates(
            logits_BV, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        uniform_B = torch.tensor(
            [stream.random() for stream in streams], dtype=probabilities_BC.dtype
        )
        return draw(probabilities_BC, ids_BC, uniform_B.to(probabilities_BC.device))

    return _stream(model, prompts, max_new_tokens, sample, stop_ids, kept) if prompts else iter(())


def _stream(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sample: Callable[[Tensor], Tensor],
    stop_ids: Collection[int],
    kept: KeptCache | None,
) -> Iterator[Token]:
    device = model.token_embedding.weight.device
    rows = torch.arange(len(prompts), device=device)
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    # Padded on the right: a row's slots in the cache are its positions, and what the padding wrote
    # there is forgotten.
    tokens_BT = torch.tensor(
        [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device
    )
    with _one_step(model):
        model.check_tokens(tokens_BT)
        known = 0
        if kept is None:
            cache = KVCache(
                model.config, len(prompts), longest + max_new_tokens, device, model.compute_dtype()
            )
        else:
            cache, known = kept.begin(model, prompts[0], max_new_tokens)
        hidden_BTD = model(tokens_BT[:, known:], cache=cache)
        cache.truncate(lengths)
        if kept is not None:
            kept.ids = list(prompts[0])
        drawn_B = sample(
            model.logits(hidden_BTD[rows, torch.tensor(lengths, device=device) - known - 1])
        )
        del hidden_BTD
    native = native_step(model) if max_new_tokens > 1 else None
    if native is not None and not native.suits(len(prompts)):
        native = None
    alive = set(range(len(prompts)))
    for count in range(1, max_new_tokens + 1):
        for row, token in enumerate(drawn_B.tolist()):
            if row in alive:
                last = count == max_new_tokens or token in stop_ids
                if last:
                    alive.remove(row)
                # No context is held here: the caller may never come back.
                yield Token(row, token, last)
        if not alive:
            return
        # Compiled code runs no module, and walking over them would take as long as a short step.
        with _one_step(model) if native is None else torch.inference_mode():
            logits_BV = _next_logits(model, native, drawn_B, cache)
            if kept is not None:
                kept.ids.append(int(drawn_B))
            drawn_B = sample(logits_BV)


def _next_logits(
    model: Transformer, native: NativeStep | None, ids_B: Tensor, cache: KVCache
) -> Tensor:
    """Append a token to each row and return the logits of the next, (B, V)."""
    if native is not None and native.suits(len(ids_B)):
        return native(ids_B, cache)
    return model.logits(model(ids_B[:, None], cache=cache)[:, -1])


@contextmanager
def _one_step(model: nn.Module) -> Iterator[None]:
    """Switch off dropout, autograd and the compiler for one step.

    Never hold this across a yield: a generator may be abandoned there.
    """
    with torch.inference_mode(), uncompiled_eval(model):
        yield


@contextmanager
def uncompiled_eval(model: nn.Module) -> Iterator[None]:
    """Switch off dropout and the compiler, and leave every module in the mode it was in."""
    # Not model.eval(): modules that are in evaluation mode already must stay so afterwards.
    training = [module for module in model.modules() if module.training]
    with ExitStack() as stack:
        # Unless the compiler has been imported nothing is compiled, and asking would import it.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True


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
    autocast = torch.is_autocast_enabled(device.type)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if autocast:
            dtype = torch.get_autocast_dtype(device.type)
            stack.enter_context(torch.autocast(device.type, dtype=dtype, cache_enabled=True))
        stack.enter_context(uncompiled_eval(model))
        try:
            yield
        finally:
            if autocast:
                torch.clear_autocast_cache()


def _logp(logits_BV: Tensor, ids_B: Tensor, temperature: float) -> Tensor:
    logits_BV = logits_BV.float() / (temperature or 1.0)
    return logits_BV.gather(1, ids_B[:, None]).squeeze(1) - logits_BV.logsumexp(dim=1)
