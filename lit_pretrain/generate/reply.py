"""Reply: what one prompt is answered, as text that grows, and how it ended."""

from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Literal, Optional

from lit_pretrain.data.tokenizer import Tokenizer
from lit_pretrain.generate.engine import Token, generate
from lit_pretrain.generate.kept import Kept
from lit_pretrain.generate.text import split_at_stop
from lit_pretrain.model.transformer import Transformer


class Reply:
    """A reply that is written while it is iterated over, in pieces of whole characters that cannot be part of a stop string.

    Args:
        tokens: Of the engine, one row.
        tokenizer: Theirs.
        stop_ids: Tokens that end it.
        stop: Strings that end it; they are not given out.
    """

    def __init__(self, tokens: Iterator[Token], tokenizer: Tokenizer, *, stop_ids: Collection[int], stop: Sequence[str]) -> None:
        self.text = ""
        """What was given out."""
        self.tokens = 0
        """Tokens drawn, that which ended it included."""
        self.finish: Optional[Literal["stop", "length"]] = None
        """stop: a stop token or string came. length: the limit came first. None: it is not finished, or was closed."""
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._stop = stop
        self._pieces = self._write()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Write no more."""
        self._pieces.close()

    def _write(self) -> Generator[str, None, None]:
        decoder, held = self._tokenizer.stream_decoder(), ""
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
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    min_p: Optional[float] = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    kept: Optional[Kept] = None,
) -> Reply:
    """Begin a reply to a prompt; settings are those of `generate`.

    Raises:
        UserError: As of `generate`, before the first piece is asked for.
    """
    tokens = generate(
        net, [prompt], max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed,
        stop_ids=stop_ids, kept=kept,
    )  # fmt: skip
    return Reply(tokens, tokenizer, stop_ids=stop_ids, stop=stop)
