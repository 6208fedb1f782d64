"""Text: prompts and completions as strings, streamed, with stop strings."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lit_pretrain.generate.engine import Token, generate
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
                    tokens.close()  # type: ignore[attr-defined]
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
