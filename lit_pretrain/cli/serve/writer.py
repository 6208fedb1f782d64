"""Writer: the network on a thread of its own, one reply after the other, read by coroutines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_pretrain.chat.render import Renderer
from lit_pretrain.generate.conversation import ReplySampling, reply
from lit_pretrain.generate.engine import KeptCache
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer

GRACE = 3.0
"""Seconds that replies under way get when the server is stopped."""


class Stopping(Exception):
    """The server was stopped before a reply was finished."""


class ReplyPart(NamedTuple):
    """Some text of a reply, or its end."""

    number: int
    """Which of the replies of a request."""
    text: str
    finish: Literal["stop", "length"] | None = None
    """At the end: how it ended."""


@dataclass
class Usage:
    """What a request took, in tokens."""

    prompt: int = 0
    cached: int = 0
    """Tokens of the prompt that the cache remembered from the request before."""
    completion: int = 0


class Writer:
    """Writes replies, those of one request at a time; requests wait their turn.

    Torch has threads of its own for every thread that calls it, so one thread makes all calls. What
    is written does not wait for whoever reads it: a slow client holds nobody up.

    Args:
        net: The network.
        tokenizer: Its tokenizer.
        renderer: For chats; None where there can be none.
        no_chat: Why there can be none.
        max_tokens: Longest chat reply if a client asks for no limit.
    """

    def __init__(
        self,
        net: Transformer,
        tokenizer: Tokenizer,
        renderer: Renderer | None,
        *,
        no_chat: str | None,
        max_tokens: int,
    ) -> None:
        self.net = net
        self.tokenizer = tokenizer
        self.renderer = renderer
        self.no_chat = no_chat
        self.max_tokens = max_tokens
        self.context = net.config.max_seq_len
        self.stopping: Callable[[], bool] = lambda: False
        """Whether the server has been told to stop."""
        self._deadline: float | None = None
        self._kept = KeptCache()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._turn = asyncio.Lock()

    async def write(
        self, prompts: Sequence[list[int]], n: int, sampling: ReplySampling, usage: Usage
    ) -> AsyncIterator[ReplyPart]:
        """Write replies to prompts; leaving the iterator stops the writing.

        Args:
            prompts: Token ids that leave room for `sampling.max_new_tokens`.
            n: Replies to each.
            sampling: Settings; the seed counts on from one reply to the next.
            usage: Counts up.
        """
        parts: asyncio.Queue[ReplyPart | BaseException | None] = asyncio.Queue()
        task = asyncio.get_running_loop().create_task(
            self._write(prompts, n, sampling, usage, parts)
        )
        try:
            while (part := await parts.get()) is not None:
                if isinstance(part, BaseException):
                    raise part
                yield part
        finally:
            task.cancel()

    async def _write(
        self,
        prompts: Sequence[list[int]],
        n: int,
        sampling: ReplySampling,
        usage: Usage,
        parts: asyncio.Queue[ReplyPart | BaseException | None],
    ) -> None:
        loop = asyncio.get_running_loop()
        ids = {self.tokenizer.eos_id} if self.renderer is None else self.renderer.stop_ids
        try:
            async with self._turn:
                for index, prompt in enumerate(prompt for prompt in prompts for _ in range(n)):
                    answer = reply(
                        self.net, self.tokenizer, prompt, max_new_tokens=sampling.max_new_tokens,
                        stop_ids=ids,
                        temperature=sampling.temperature, top_k=sampling.top_k,
                        top_p=sampling.top_p, min_p=sampling.min_p,
                        seed=sampling.seed + index, stop=sampling.stop, kept=self._kept,
                    )  # fmt: skip
                    pieces = iter(answer)
                    try:
                        while (
                            piece := await loop.run_in_executor(self._thread, next, pieces, None)
                        ) is not None:
                            parts.put_nowait(ReplyPart(index, piece))
                            self._check_stopping()
                    finally:
                        # On the same thread: after a step that was under way when a client left.
                        self._thread.submit(answer.close)
                        usage.completion += answer.tokens
                        if index % n == 0:  # a prompt counts once, however many replies it gets
                            usage.prompt += len(prompt)
                            usage.cached += self._kept.reused
                    parts.put_nowait(ReplyPart(index, "", answer.finish))
        except Exception as error:  # whoever reads the parts raises it
            parts.put_nowait(error)
        else:
            parts.put_nowait(None)

    def _check_stopping(self) -> None:
        """Give up when the server is to stop and the time of grace is over."""
        if self.stopping():
            self._deadline = self._deadline or time.monotonic() + GRACE
            if time.monotonic() > self._deadline:
                raise Stopping("the server is stopping")

    def close(self) -> None:
        """Wait for the step under way, and write no more."""
        self._thread.shutdown(cancel_futures=True)
