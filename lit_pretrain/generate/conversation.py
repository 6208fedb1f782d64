"""Conversation: talking with a model, turn by turn, within its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lit_pretrain.data.messages import BadRow, Message, check_messages
from lit_pretrain.data.render import Renderer
from lit_pretrain.errors import UserError
from lit_pretrain.generate.kept import Kept
from lit_pretrain.generate.reply import Reply, reply
from lit_pretrain.model.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How replies are drawn."""

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = 0.95
    min_p: float | None = None
    seed: int = 0
    stop: Sequence[str] = ()


class Talk:
    """A conversation: messages, and the cache that remembers them for the network.

    When the context is full, the oldest questions and their answers are forgotten, never the system message. `messages` stays whole.

    Args:
        net: The network.
        renderer: Of its tokenizer and template.
        sampling: Settings.
        system: System message, if any.
    """

    def __init__(self, net: Transformer, renderer: Renderer, sampling: Sampling, *, system: str | None = None) -> None:
        self.net = net
        self.renderer = renderer
        self.sampling = sampling
        self.system = system
        self.messages: list[Message] = []
        """All that was said, the system message not included."""
        self.kept = Kept()
        self.forgotten = 0
        """Messages, from the first, that no longer fit into the context."""
        self.prompt_tokens = 0
        """Tokens of the last prompt."""

    @property
    def whole(self) -> list[Message]:
        """The conversation as it may be saved and learned from."""
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
        """Say something. The reply is written while it is read; `heard` puts what was read into the conversation.

        Raises:
            UserError: It cannot be rendered, or is too long by itself; the conversation is as before.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        prompt, forgotten, room = self._prompt(asked)
        turn = sum(message["role"] == "user" for message in self.messages)
        s = self.sampling
        answer = reply(
            self.net, self.renderer.tokenizer, prompt, max_new_tokens=room, stop_ids=self.renderer.stop_ids, temperature=s.temperature,
            top_k=s.top_k, top_p=s.top_p, min_p=s.min_p, seed=s.seed + turn, stop=s.stop, kept=self.kept,
        )  # fmt: skip
        self.messages, self.forgotten, self.prompt_tokens = asked, forgotten, len(prompt)
        return answer

    def heard(self, text: str) -> None:
        """Put a reply, or as much of it as was read, into the conversation."""
        self.messages.append({"role": "assistant", "content": text})

    def _prompt(self, messages: Sequence[Message]) -> tuple[list[int], int, int]:
        """Tokens of the latest messages that leave room for a reply, how many are left out, and the room."""
        limit = self.net.config.max_seq_len
        # Half the context at most is kept free: else a large max_new_tokens would make a small model forget everything at once.
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
                f"the message takes {len(prompt)} tokens with the system message and the template's own, and the model reads "
                f"{limit} (model.max_seq_len), its reply included: shorten it"
            )
        return prompt, start, limit - len(prompt)

    @staticmethod
    def _system(system: str | None) -> list[Message]:
        return [] if system is None else [{"role": "system", "content": system}]
