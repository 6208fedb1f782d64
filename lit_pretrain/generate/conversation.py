"""Conversation: talking with a model, turn by turn, within its context."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_pretrain.chat.messages import BadRow, Message, check_messages
from lit_pretrain.chat.render import Renderer
from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import KeptCache, Token, generate
from lit_pretrain.generate.text import split_at_stop
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class Reply:
    """Write a reply while it is iterated over.

    Pieces are whole characters that cannot be part of a stop string.

    Args:
        tokens: Of the engine, one row.
        tokenizer: Theirs.
        prompt: Token ids that they continue.
        stop_ids: Tokens that end it.
        stop: Strings that end it; they are not given out.
    """

    def __init__(
        self,
        tokens: Iterator[Token],
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        stop_ids: Collection[int],
        stop: Sequence[str],
    ) -> None:
        self.text = ""
        """What was given out."""
        self.tokens = 0
        """Tokens drawn, that which ended it included."""
        self.finish: Literal["stop", "length"] | None = None
        """stop: a stop token or string came. length: the limit came first. None: it is not
        finished, or was closed.
        """
        self._tokens = tokens
        self._decoder = tokenizer.stream_decoder(before=prompt)
        self._stop_ids = stop_ids
        self._stop = stop
        self._pieces = self._write()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Stop writing."""
        self._pieces.close()

    def _write(self) -> Generator[str, None, None]:
        decoder, held = self._decoder, ""
        for token in self._tokens:
            self.tokens += 1
            held += decoder.push(token.id) + (decoder.flush() if token.last else "")
            ready, found = split_at_stop(held, self._stop, last=token.last)
            held = held[len(ready) :]
            if found or token.last:
                self.finish = "stop" if found or token.id in self._stop_ids else "length"
            if ready:
                self.text += ready
                yield ready
            if found:
                return


def reply(
    net: Transformer,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    kept: KeptCache | None = None,
) -> Reply:
    """Begin a reply to a prompt; settings are those of `generate`.

    Raises:
        UserError: As of `generate`, before the first piece is asked for.
    """
    tokens = generate(
        net, [prompt], max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
        top_p=top_p, min_p=min_p, seed=seed,
        stop_ids=stop_ids, kept=kept,
    )  # fmt: skip
    return Reply(tokens, tokenizer, prompt, stop_ids=stop_ids, stop=stop)


@dataclass(frozen=True, kw_only=True)
class ReplySampling:
    """Say how replies are drawn."""

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    seed: int = 0
    stop: Sequence[str] = ()


class Talk:
    """Keep a conversation: its messages, and the cache that remembers them for the network.

    When the context is full, the oldest questions and their answers are forgotten, never the system
    message. `messages` stays whole.

    Args:
        net: The network.
        renderer: Of its tokenizer and template.
        sampling: Settings.
        system: System message, if any.
    """

    def __init__(
        self,
        net: Transformer,
        renderer: Renderer,
        sampling: ReplySampling,
        *,
        system: str | None = None,
    ) -> None:
        self.net = net
        self.renderer = renderer
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        """All that was said, the system message not included."""
        self.kept = KeptCache()
        self.forgotten = 0
        """Messages, from the first, that no longer fit into the context."""
        self.prompt_tokens = 0
        """Tokens of the last prompt."""

    @property
    def whole(self) -> list[Message]:
        """Give the conversation as it may be saved and learned from."""
        return [*self._system(self.system), *self.messages]

    def check(self) -> None:
        """Make sure that the template takes the system message, before anybody has said anything.

        Raises:
            UserError: It does not, or there would be no room for a message.
        """
        self._prompt([{"role": "user", "content": "?"}])

    def reset(self, *, system: str | None) -> None:
        """Begin anew."""
        self.system, self.messages, self.forgotten = system, [], 0

    def say(self, text: str) -> Reply:
        """Say something and begin the reply, which is written while it is read.

        `heard` puts into the conversation what was read of it.

        Raises:
            UserError: It cannot be rendered, or is too long by itself; the conversation is as
                before.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt, forgotten, room = self._prompt(asked)
        turn = sum(message["role"] == "user" for message in self.messages)
        s = self.sampling
        answer = reply(
            self.net, self.renderer.tokenizer, prompt, max_new_tokens=room,
            stop_ids=self.renderer.stop_ids, temperature=s.temperature,
            top_k=s.top_k, top_p=s.top_p, min_p=s.min_p, seed=s.seed + turn, stop=s.stop,
            kept=self.kept,
        )  # fmt: skip
        self.messages, self.forgotten, self.prompt_tokens = asked, forgotten, len(prompt)
        return answer

    def heard(self, text: str) -> None:
        """Put a reply, or as much of it as was read, into the conversation."""
        self.messages.append({"role": "assistant", "content": text})

    def _prompt(self, messages: Sequence[Message]) -> tuple[list[int], int, int]:
        """Choose the latest messages that leave room for a reply.

        Returns their tokens, the number of messages left out, and the room.
        """
        limit = self.net.config.max_seq_len
        # Half the context at most is kept free: else a large max_new_tokens would make a small
        # model forget everything at once.
        wanted = max(1, min(self.sampling.max_new_tokens, limit // 2))
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        first = next(place for place, i in enumerate(starts) if i >= self.forgotten)
        for start in starts[first:]:
            shown = [*self._system(self.system), *messages[start:]]
            try:
                check_messages(shown)
                prompt: list[int] = self.renderer.prompt(shown).tolist()
            except BadRow as bad:
                raise UserError(f"this cannot be said: {bad}") from None
            if len(prompt) + wanted <= limit:
                return prompt, start, wanted
        if len(prompt) >= limit:
            raise UserError(
                f"the message takes {len(prompt)} tokens with the system message and the template's"
                f" own, and the model reads {limit} (model.max_seq_len), its reply included:"
                " shorten it"
            )
        return prompt, start, limit - len(prompt)

    @staticmethod
    def _system(system: str | None) -> list[Message]:
        return [] if system is None else [{"role": "system", "content": system}]
