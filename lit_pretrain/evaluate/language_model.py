"""Our network and engine behind lm-evaluation-harness's interface of a language model.

Axes: B rows, T tokens, D width, L tokens of a continuation, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypedDict, cast

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn

from lit_pretrain.chat.model_tokenizer import ModelTokenizer
from lit_pretrain.errors import UserError
from lit_pretrain.generate.conversation import split_at_stop
from lit_pretrain.generate.engine import generate
from lit_pretrain.model.transformer import Transformer

Scored = tuple[tuple[str, str], list[int], list[int]]
"""A request as the harness hands it down: its strings, the tokens of its context, those of its
continuation.
"""
MAX_NEW_TOKENS = 256
"""Longest answer where a task names no length; the harness's own default."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


class TaskSampling(TypedDict, total=False):
    """How a task has tokens drawn, as arguments of `generate`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


class NetworkLM(TemplateLM):  # type: ignore[misc]  # the harness is an optional extra, and has no types
    """Answer the three questions of the harness with a network of ours.

    Conventions are those of the harness's own model of transformers, so that scores can be compared
    with published ones: a context that is too long loses its beginning, an empty one is the bos
    token, and a long text is scored in windows that do not overlap. One differs: in rolling scores
    the bos token is a context and never scored itself.

    Args:
        net: The network.
        language: Its tokenizer and template.
        bos: Whether contexts begin with the bos token.
        chat: Whether texts come out of the chat template, in which special tokens are spelt.
        batch_size: Rows at once.
        autocast: In which scores are computed.
        seed: Of answers that are sampled.
        on_batch: Called after every batch.
    """

    def __init__(
        self,
        net: Transformer,
        language: ModelTokenizer,
        *,
        bos: bool,
        chat: bool,
        batch_size: int,
        autocast: AbstractContextManager[Any],
        seed: int = 0,
        on_batch: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        if chat and language.template is None:
            raise UserError(
                "this network has no chat template: leave --apply_chat_template out, or evaluate a"
                " run that learned conversations"
            )
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be at least 1")
        self.net = net
        self.language = language
        self.bos = bos
        self.chat = chat
        self.batch_size = batch_size
        self.autocast = autocast
        self.seed = seed
        self.on_batch = on_batch

    # ------------------------------------------------------------------ text and tokens

    @property
    def eot_token_id(self) -> int:
        """Return the id that ends a document."""
        return self.language.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Return the id that stands for an empty context."""
        return self.language.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        """Return the longest row in tokens."""
        return self.net.config.max_seq_len

    @property
    def tokenizer_name(self) -> str:
        """Identify tokenizer and template; the harness names caches by it."""
        record = self.language.record()
        return f"{record['tokenizer']}-{record['template']}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """Encode a text, with bos where contexts begin with it."""
        tokenizer = self.language.tokenizer
        ids = (
            [int(i) for i in tokenizer.encode_spelt([string])[0].ids]
            if self.chat
            else tokenizer.encode(string)
        )
        adds = self.bos if add_special_tokens is None else add_special_tokens
        return [tokenizer.bos_id, *ids] if adds and ids[:1] != [tokenizer.bos_id] else ids

    def chat_template(self, chat_template: Any = False) -> str | None:
        """Return the Jinja text, which the harness keeps with the results."""
        return (
            None
            if not chat_template or self.language.template is None
            else self.language.template.source
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Render messages up to the assistant's turn, or within its unfinished message."""
        template, tokenizer = self.language.template, self.language.tokenizer
        assert template is not None
        text = template.render(
            chat_history,
            bos=tokenizer.bos,
            eos=tokenizer.eos,
            generation_prompt=add_generation_prompt,
        ).text
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"].strip()
        return text[: text.rindex(begun) + len(begun)]

    # ------------------------------------------------------------------ scores

    def _loglikelihood_tokens(
        self, requests: Sequence[Scored], **options: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations: log-likelihood in nats, and whether greedy decoding writes them.

        Requests with the same tokens, which are those of one-token answers to one question, are
        computed once.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for i, (strings, context, continuation) in enumerate(requests):
            if not continuation or len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens cannot be scored with"
                    f" {self.max_length} positions: {strings!r}"
                )
            rows.setdefault(
                tuple((context + continuation)[-(self.max_length + 1) : -1]), []
            ).append(i)
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        ordered = sorted(rows, key=len, reverse=True)
        for first in range(0, len(ordered), self.batch_size):
            batch = ordered[first : first + self.batch_size]
            hidden_BTD = self._hidden(batch)
            for tokens, hidden_TD in zip(batch, hidden_BTD, strict=True):
                longest = max(len(requests[i][2]) for i in rows[tokens])
                with torch.inference_mode(), self.autocast:
                    logits_LV = self.net.logits(hidden_TD[len(tokens) - longest : len(tokens)])
                logp_LV = logits_LV.float().log_softmax(-1)
                best_L = logp_LV.argmax(-1)
                for i in rows[tokens]:
                    wanted = torch.tensor(requests[i][2], device=logp_LV.device)
                    own_LV, own_L = logp_LV[-len(wanted) :], best_L[-len(wanted) :]
                    scores[i] = (
                        own_LV.gather(1, wanted[:, None]).sum().item(),
                        bool((own_L == wanted).all()),
                    )
            self.on_batch()
        return scores

    def _hidden(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """Compute hidden states of rows of different lengths.

        Nothing reads the states behind the end of a row.
        """
        longest = max(map(len, rows))
        tokens_BT = torch.tensor(
            [[*row, *[0] * (longest - len(row))] for row in rows],
            device=self.net.token_embedding.weight.device,
        )
        with _looking_at(self.net), self.autocast:
            self.net.check_tokens(tokens_BT)
            hidden_BTD: Tensor = self.net(tokens_BT)
        return hidden_BTD

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts in windows as long as the network; bos is the context of the first."""
        windows: list[Scored] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.args
            found = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, found):
                windows.append(((text, ""), context, continuation))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += score
        return totals

    # ------------------------------------------------------------------ answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer up to a stop string, a stop token or the task's length.

        Requests with the same settings share batches.
        """
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        for members in groups.values():
            stop, length, sampling = _settings(requests[members[0]].args[1])
            room = self.max_length - length
            if room < 1:
                raise UserError(
                    f"the task wants answers of up to {length} tokens, and the network has"
                    f" {self.max_length} positions: give the task generation_kwargs with a smaller"
                    " max_gen_toks"
                )
            prompts = {i: self.tok_encode(requests[i].args[0])[-room:] for i in members}
            ordered = sorted(members, key=lambda i: len(prompts[i]), reverse=True)
            for first in range(0, len(ordered), self.batch_size):
                batch = ordered[first : first + self.batch_size]
                for i, text in zip(
                    batch,
                    self._answer([prompts[i] for i in batch], stop, length, sampling),
                    strict=True,
                ):
                    answers[i] = text
                self.on_batch()
        return answers

    def _answer(
        self,
        prompts: Sequence[list[int]],
        stop: Sequence[str],
        length: int,
        sampling: TaskSampling,
    ) -> list[str]:
        decoders = [self.language.tokenizer.stream_decoder(before=prompt) for prompt in prompts]
        texts = [""] * len(prompts)
        running = set(range(len(prompts)))
        with self.autocast:
            tokens = generate(
                self.net,
                prompts,
                max_new_tokens=length,
                seed=self.seed,
                stop_ids=self.language.stop_ids,
                **sampling,
            )
            for row, token, last in tokens:
                if row not in running:
                    continue
                texts[row] += decoders[row].push(token) + (decoders[row].flush() if last else "")
                before, found = split_at_stop(texts[row], stop, last=True)
                if found or last:
                    texts[row] = before
                    running.remove(row)
                    if not running:
                        break
        return texts


@contextmanager
def _looking_at(net: nn.Module) -> Iterator[None]:
    """Switch off dropout and autograd on a network that may be in training."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _settings(given: Mapping[str, Any]) -> tuple[list[str], int, TaskSampling]:
    """Read stop strings, length and sampling from a task's generation_kwargs.

    Raises:
        UserError: One is not known.
    """
    left = dict(given)
    until = left.pop("until", None) or []
    stop = [until] if isinstance(until, str) else list(until)
    lengths = [left.pop(name) for name in _LENGTHS if name in left]
    sampled = left.pop("do_sample", False)
    sampling = cast(TaskSampling, {name: left.pop(name) for name in _SAMPLING if name in left})
    if left:
        raise UserError(
            f"generation_kwargs {left} of the task are not known; there are until, do_sample,"
            f" {', '.join(_LENGTHS + _SAMPLING)}"
        )
    greedy = not sampled or not sampling.get("temperature", 1.0)
    return (
        stop,
        int(lengths[0]) if lengths else MAX_NEW_TOKENS,
        {"temperature": 0.0} if greedy else sampling,
    )
