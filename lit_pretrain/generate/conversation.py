"""Text and conversations: prompts and replies as strings, streamed, with stop strings.

A conversation goes on turn by turn within the context of its model.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_pretrain.chat.messages import BadRow, Message, check_messages
from lit_pretrain.chat.render import Renderer
from lit_pretrain.errors import UserError
from lit_pretrain.generate.engine import KeptCache, Token, generate
from lit_pretrain.model.transformer import Transformer
from lit_pretrain.tokenizer.tokenizer import Tokenizer


class Piece(NamedTuple):
    """Hold some new text of one row."""

    row: int
    text: str


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Encode a prompt as the beginning of a document: it starts with bos, as in training."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


class TextStream:
    """Complete prompts while it is iterated over, and count the tokens that it takes.

    Text appears as soon as it is whole characters that cannot be part of a stop string.

    Args:
        tokens: Of the engine.
        tokenizer: Theirs.
        prompts: Token ids that each row continues.
        stop: Strings that end a row; they are not given out.
    """

    def __init__(
        self,
        tokens: Iterator[Token],
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        stop: Sequence[str],
    ) -> None:
        self.tokens = 0
        """Tokens drawn so far in all rows, those that ended them included."""
        self._pieces = self._write(tokens, tokenizer, prompts, stop)

    def __iter__(self) -> Iterator[Piece]:
        return self._pieces

    def _write(
        self,
        tokens: Iterator[Token],
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        stop: Sequence[str],
    ) -> Iterator[Piece]:
        decoders = [tokenizer.stream_decoder(before=prompt) for prompt in prompts]
        held = ["" for _ in prompts]
        stopped: set[int] = set()
        for row, token, last in tokens:
            if row in stopped:
                continue
            self.tokens += 1
            held[row] += decoders[row].push(token) + (decoders[row].flush() if last else "")
            ready, found = split_at_stop(held[row], stop, last=last)
            held[row] = held[row][len(ready) :]
            if ready:
                yield Piece(row, ready)
            if found:
                stopped.add(row)
                if len(stopped) == len(prompts):
                    tokens.close()  # type: ignore[attr-defined]  # a generator, behind a protocol
                    return


def stream(
    net: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> TextStream:
    """Complete prompts and give the text of each row as it grows.

    Args:
        net: The network.
        tokenizer: Its tokenizer.
        prompts: Beginnings of documents.
        max_new_tokens: Limit per row.
        temperature: 0 is greedy.
        top_k: Keep the k likeliest tokens.
        top_p: Keep the likeliest tokens that reach this probability.
        seed: Seed of row 0.
        stop: Strings that end a row; they are not given out.

    Raises:
        UserError: As of `generate`, and before the first piece is asked for.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    tokens = generate(
        net,
        encoded,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=frozenset({tokenizer.eos_id}),
    )
    return TextStream(tokens, tokenizer, encoded, stop)


def split_at_stop(text: str, stop: Sequence[str], *, last: bool) -> tuple[str, bool]:
    """Split off the text of a row that may be given out, and tell whether a stop string ended it.

    Args:
        text: Text that has not been given out.
        stop: Stop strings.
        last: Nothing follows, so nothing need be held back.

    Returns:
        The text before the first stop string, or all but the longest tail that may begin one; and
        whether one was found.
    """
    places = [place for s in stop if s and (place := text.find(s)) >= 0]
    if places:
        return text[: min(places)], True
    # What was held back can no longer become a stop string.
    if last:
        return text, False
    keep = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - keep], False


def complete(
    net: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> list[str]:
    """Collect the completions of `stream`, one string per prompt."""
    texts = ["" for _ in prompts]
    pieces = stream(
        net,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
    )
    for row, text in pieces:
        texts[row] += text
    return texts


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
