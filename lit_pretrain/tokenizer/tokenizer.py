"""Tokenizer: one tokenizer.json, encoded through tiktoken where that is proven equal."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash
from lit_pretrain.plain_data import load_json
from lit_pretrain.tokenizer import byte_level, tokenizer_files
from lit_pretrain.tokenizer.tokenizer_files import CONFIG_FILENAME, TOKENIZER_FILENAME

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

_SELF_CHECK = (
    (
        "The quick brown fox can't; we'LL see: it's 3.14159, 1234567 or 0x1F.\r\n\r\n  def"
        " f(x):\n\t\treturn x  # ok   \n\n\n"
    ),
    "Grüße, naïve café — “quoted”… 中文字符 テスト 한국어 العربية हिन्दी עברית ไทย",
    (
        "\u0301combining e\u0301 \u212b ﬁ Ⅷ ½ ٣٤٥ \U0001d518\U0001d52b"
        " \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea"
    ),
    "\x00\x01\x7f\x85\xa0\u2028\u2029\ufeff\ufffd\U0010ffff  \t \n \r a\u200bb  ",
    "aaaaaaaaaaaaaaaaaaaaaaaaa" + " " * 65 + "!!!!!!????====----____" + "\n" * 9 + "ÿþ" * 7,
)


class Spelt(NamedTuple):
    """Hold the tokens of a text, with the characters that each of them stands for."""

    ids: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int64]
    """First character of each token, counted in the text."""
    ends: npt.NDArray[np.int64]
    """The character after its last. Two tokens overlap if a character is split between them."""
    special: npt.NDArray[np.bool_]
    """Whether each is a special token."""

    def part(self, begin: int, end: int) -> Spelt:
        """Return the tokens from `begin` to `end` - 1."""
        return Spelt(
            self.ids[begin:end],
            self.begins[begin:end],
            self.ends[begin:end],
            self.special[begin:end],
        )


class Tokenizer:
    """Turn text into ids and back.

    Text is data: the spelling of a special token within a text is encoded as ordinary text, never
    as that token. (Added tokens that their tokenizer.json does not call special, such as Qwen 3's
    <think>, are matched, as everywhere.)
    """

    def __init__(
        self,
        text: str,
        *,
        bos: str | None = None,
        eos: str | None = None,
        where: str = TOKENIZER_FILENAME,
    ) -> None:
        """Build a tokenizer from the text of a tokenizer.json.

        Args:
            text: The JSON.
            bos: Token that starts a document; None guesses it from the names of the special
                tokens.
            eos: Token that ends it. A tokenizer with only one of both uses it for both.
            where: Names the file in messages.

        Raises:
            UserError: This is no tokenizer.json, or no token can separate documents.
        """
        import tokenizers

        try:
            self._spec: dict[str, Any] = load_json(text)
            self._hf: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(
                f"{where} is not a tokenizer.json that `tokenizers` can read: {error}"
            ) from None
        self._text = text
        # Some published files carry the limits of the model they were saved with.
        self._hf.no_truncation()
        self._hf.no_padding()
        self._hf.encode_special_tokens = True
        # The ids as `tokenizers` gives them: it renumbers added tokens whose stored ids leave a
        # gap.
        self._added = self._hf.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {
            token.content: index for index, token in self._added.items() if token.special
        }
        """Spelling -> id."""
        self.bos, self.eos = tokenizer_files.separators(self.special_tokens, bos, eos, where)
        self.bos_id = self._id(self.bos, where)
        """Starts every stored document."""
        self.eos_id = self._id(self.eos, where)
        """Ends it; equal to `bos_id` when one separator does both."""
        self.vocab_size: int = max(self._hf.get_vocab(with_added_tokens=True).values()) + 1
        """Highest id + 1, special tokens included."""
        self.pattern_name: str | None = byte_level.pattern_name(self._spec)
        """Name of the pre-tokenizer's regex, None when unknown."""
        self.separator_note: str | None = None
        """Says which token separates documents, where it is not the one that its folder names."""
        self._nfc = False
        self._plain: frozenset[str] = frozenset()
        self._tiktoken: tiktoken.Encoding | None = None
        self.fallback_reason: str | None = None
        """Why `tokenizers` encodes and not tiktoken, None where tiktoken does."""
        self._try_tiktoken()

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, bos: str | None = None, eos: str | None = None
    ) -> Tokenizer:
        """Load a tokenizer.json, or that of a folder: a prepared dataset, a Hugging Face model.

        The folder's tokenizer_config.json names the bos and eos tokens, else its
        special_tokens_map.json, unless they are given here.

        Raises:
            UserError: It does not exist, cannot be read, or has no token that could separate
                documents.
        """
        file, text = tokenizer_files.read_tokenizer_file(path)
        if bos is not None or eos is not None:
            return cls(text, bos=bos, eos=eos, where=str(file))
        stated = bos, eos = tokenizer_files.stated_separators(file.parent)
        if not tokenizer_files.is_ours(file.parent):
            bos, eos = tokenizer_files.document_separators(bos, eos, special_tokens_of(text))
        tokenizer = cls(text, bos=bos, eos=eos, where=str(file))
        if (bos, eos) != stated:
            tokenizer.separator_note = (
                f"documents of {file} end with {tokenizer.eos}: its {CONFIG_FILENAME} says"
                f" {stated[1] or stated[0]}, which ends a turn of a chat"
            )
        return tokenizer

    def save(self, directory: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write tokenizer.json unchanged, and a tokenizer_config.json for transformers.

        AutoTokenizer can load the folder then.

        Returns:
            The two files.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos,
            "eos_token": self.eos,
            "clean_up_tokenization_spaces": False,
        }
        files = Path(directory) / TOKENIZER_FILENAME, Path(directory) / CONFIG_FILENAME
        files[0].write_text(self._text, encoding="utf-8")
        files[1].write_text(
            json.dumps(config, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        return files

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._text, self.bos, self.eos, self.fallback_reason)

    @property
    def backend(self) -> str:
        """Name the library that encodes: tiktoken or tokenizers."""
        return "tokenizers" if self._tiktoken is None else "tiktoken"

    @property
    def one_separator(self) -> bool:
        """Tell whether one token both starts and ends documents."""
        return self.bos_id == self.eos_id

    @property
    def normalizes(self) -> bool:
        """Tell whether it alters text before encoding, so that decoding may give another text."""
        return self._spec.get("normalizer") is not None

    @cached_property
    def hash(self) -> str:
        """Hash the canonical tokenizer.json: the same for any spacing and order of keys."""
        return canonical_hash(self._spec)

    def encode(self, text: str) -> list[int]:
        """Encode a text, without separators."""
        ids: list[int] = self._encode(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Encode many texts, without separators, in their order.

        The GIL is released meanwhile, so that threads scale.
        """
        if self._tiktoken is None:
            return self._encode_hf(texts)
        return [self._encode(text) for text in texts]

    def encode_spelt(self, texts: Sequence[str], *, special: bool = True) -> list[Spelt]:
        """Encode texts that may spell special tokens, as chat templates do, with offsets.

        Args:
            texts: The texts.
            special: Encode the spelling of a special token as that token; otherwise as text, like
                `encode`.
        """
        self._hf_places.encode_special_tokens = not special
        encodings = self._hf_places.encode_batch(list(texts), add_special_tokens=False)
        spelt = []
        for encoding in encodings:
            ids = np.asarray(encoding.ids, dtype=np.int32)
            places = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            spelt.append(Spelt(ids, places[:, 0], places[:, 1], self._special_ids[ids]))
        return spelt

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Decode ids; bytes that are not UTF-8 (a character cut in half) become U+FFFD.

        Args:
            ids: Token ids.
            skip_special: Leave special tokens out instead of spelling them.
        """
        if self._bytes_of is None:
            return str(self._hf.decode([int(i) for i in ids], skip_special_tokens=skip_special))
        return b"".join(self._token_bytes(int(i), skip_special) for i in ids).decode(
            "utf-8", errors="replace"
        )

    def decode_after(
        self, before: Sequence[int], ids: Iterable[int], *, skip_special: bool = True
    ) -> str:
        """Decode the ids of a completion in the context of its prompt.

        Args:
            before: Ids of the prompt.
            ids: Ids of the completion.
            skip_special: Leave special tokens out; otherwise they are spelt.
        """
        decoder = self.stream_decoder(before=before, skip_special=skip_special)
        return "".join(decoder.push(int(index)) for index in ids) + decoder.flush()

    def stream_decoder(
        self, *, before: Sequence[int] = (), skip_special: bool = True
    ) -> StreamDecoder:
        """Return a decoder that takes one id at a time and never gives out half a character."""
        return StreamDecoder(self, before=before, skip_special=skip_special)

    def context_of(self, before: Sequence[int], *, skip_special: bool) -> list[int]:
        """Return the last of some ids, enough to decode what follows as it stands after them."""
        special = set(self.special_tokens.values()) if skip_special else set()
        ids = [index for index in map(int, before) if index not in special]
        # A few tokens decide about a blank. A character in bytes must not be cut: it would make
        # all bytes behind it U+FFFD.
        for length in range(16, 24):
            if not self.decode(ids[-length:], skip_special=skip_special).startswith("\ufffd"):
                return ids[-length:]
        return ids

    def spellings(self) -> dict[int, str]:
        """Return the spelling of every token by its id, as the file has it, with special tokens."""
        return {index: token for token, index in self._hf.get_vocab(with_added_tokens=True).items()}

    def pieces(self) -> dict[int, bytes]:
        """Return the UTF-8 bytes of every ordinary token by its id; special tokens are left out.

        Raises:
            UserError: The tokenizer is lossy (WordPiece, Unigram without bytes), so that its tokens
                stand for no bytes.
        """
        if self._bytes_of is not None:
            return dict(self._bytes_of)
        decoder = json.dumps(self._spec.get("decoder"))
        if "ByteFallback" not in decoder:
            raise UserError(
                "bits per byte need a tokenizer whose tokens spell bytes (byte-level BPE, or BPE"
                f" with byte fallback); this one's decoder is {decoder}. Use another tokenizer, or"
                " train one with `tokenizer: {kind: train}` in the prepare config."
            )
        pieces = {}
        for token, index in self._hf.get_vocab(with_added_tokens=True).items():
            if token not in self.special_tokens:
                byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
                pieces[index] = (
                    bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()
                )
        return pieces

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """Count the UTF-8 bytes of each id, [vocab_size]; 0 for special tokens and unused ids.

        The sum over a document is its length in bytes: the denominator of bits per byte.
        SentencePiece-like tokenizers put a space in front of a text, which counts as one byte.

        Raises:
            UserError: The tokenizer is lossy (WordPiece, Unigram without bytes), so that its tokens
                have no byte length.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for index, piece in self.pieces().items():
            lengths[index] = len(piece)
        return lengths

    def unspelt_bytes(self, text: str, ids: npt.NDArray[np.integer]) -> int:
        """Count the bytes of a text that its tokens do not spell.

        A vocabulary without some of the 256 bytes drops what it lacks, or makes one unknown token
        of a whole sentence. What a normalizer changes is not lost.

        Args:
            text: The text.
            ids: Its tokens, as `encode` gives them.
        """
        lengths = self._spelt_lengths
        if lengths is None:  # tokens without a length in bytes: count those that say "unknown"
            return int((ids == self._unknown_id).sum())
        if self.normalizes:
            text = self._hf.normalizer.normalize_str(text)
        if self._bytes_of is None:
            text = text.replace("▁", " ")
        return max(0, len(text.encode("utf-8", "surrogatepass")) - int(lengths[ids].sum()))

    @cached_property
    def _spelt_lengths(self) -> npt.NDArray[np.int32] | None:
        """Bytes of each id without the unknown token; None if tokens stand for no bytes."""
        try:
            lengths = self.token_bytes()
        except UserError:
            return None
        if self._unknown_id >= 0:
            lengths[self._unknown_id] = 0
        return lengths

    @cached_property
    def _unknown_id(self) -> int:
        """Id of the token for what the vocabulary lacks; -1 without one."""
        model = self._spec.get("model") or {}
        unknown = model.get("unk_token")
        if unknown is None and isinstance(model.get("unk_id"), int):
            return int(model["unk_id"])
        index = None if unknown is None else self._hf.token_to_id(unknown)
        return -1 if index is None else index

    def has_unknown(self, ids: npt.NDArray[np.integer]) -> bool:
        """Tell whether one of some tokens says that the vocabulary lacks a text."""
        return bool((ids == self._unknown_id).any())

    @property
    def spells_every_byte(self) -> bool:
        """Whether it has a token for each of the 256 bytes, so that no text is beyond it."""
        if self._tiktoken is not None:
            return True
        vocabulary = self._hf.get_vocab(with_added_tokens=False)
        if self._bytes_of is not None:
            return all(character in vocabulary for character in byte_level.BYTE_OF_CHARACTER)
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))

    def check_equality(self, texts: Sequence[str]) -> None:
        """Encode texts both ways; at the first difference keep to `tokenizers` from then on.

        `fallback_reason` quotes the text. Does nothing if tiktoken is not used anyway.
        """
        if self._tiktoken is None:
            return
        for text, reference in zip(texts, self._encode_hf(texts), strict=True):
            if not np.array_equal(self._encode(text), reference):
                self._tiktoken = None
                self.fallback_reason = f"tiktoken and tokenizers disagree on {text[:80]!r}"
                return

    def _id(self, token: str, where: str) -> int:
        """Return the id of a special token."""
        if token not in self.special_tokens:
            kind = (
                "calls it an ordinary token, which text could spell"
                if self._hf.token_to_id(token) is not None
                else "does not have it"
            )
            raise UserError(
                f"{where} has no special token {token!r} to separate documents with: it"
                f" {kind}. Set `tokenizer.bos` and `tokenizer.eos` in the prepare config to others;"
                f" it has {tokenizer_files.listed(self.special_tokens)}"
            )
        return self.special_tokens[token]

    def _try_tiktoken(self) -> None:
        """Encode with tiktoken if the file allows it and both give the same ids on hard texts."""
        try:
            bpe = byte_level.analyse(self._spec)
        except byte_level.NotByteLevel as reason:
            self.fallback_reason = str(reason)
            return
        import tiktoken

        self._nfc = bpe.nfc
        self._plain = bpe.plain
        self._tiktoken = tiktoken.Encoding(
            "lit_pretrain",
            pat_str=byte_level.PATTERNS[bpe.pattern_name],
            mergeable_ranks=dict(bpe.ranks),
            special_tokens={token.content: index for index, token in self._added.items()},
        )
        self.check_equality(_SELF_CHECK)

    def _encode(self, text: str) -> npt.NDArray[np.int32]:
        """Encode one text with tiktoken where it runs, else with `tokenizers`."""
        if self._tiktoken is None:
            return self._encode_hf([text])[0]
        if self._nfc and not text.isascii():
            # The reference cuts these tokens out before it normalises the text.
            if any(token in text for token in self._plain):
                return self._encode_hf([text])[0]
            # Not unicodedata: its Unicode version is Python's, the reference's is that of
            # `tokenizers`.
            text = self._hf.normalizer.normalize_str(text)
        try:
            return self._tiktoken.encode_to_numpy(
                text, allowed_special=self._plain, disallowed_special=()
            ).view(np.int32)
        except ValueError:
            # tiktoken's regex gives up on about a million spaces in a row; the reference's does
            # not.
            return self._encode_hf([text])[0]

    def _encode_hf(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Encode with the reference implementation."""
        encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    @cached_property
    def _hf_places(self) -> tokenizers.Tokenizer:
        """Return the reference implementation, set up to report the offsets of tokens."""
        import tokenizers

        # A post-processor would add tokens that a template writes itself, and trim blanks off the
        # places of tokens.
        hf = tokenizers.Tokenizer.from_str(json.dumps({**self._spec, "post_processor": None}))
        hf.no_truncation()
        hf.no_padding()
        return hf

    @cached_property
    def _special_ids(self) -> npt.NDArray[np.bool_]:
        """Tell for each id whether it is a special token, [vocab_size]."""
        special = np.zeros(self.vocab_size, dtype=np.bool_)
        special[list(self.special_tokens.values())] = True
        return special

    @cached_property
    def _bytes_of(self) -> dict[int, bytes] | None:
        """Map ids of ordinary tokens to bytes; None if the tokenizer is not byte-level."""
        if "ByteLevel" not in json.dumps(self._spec.get("decoder")):
            return None
        bytes_of: dict[int, bytes] = {}
        table = byte_level.BYTE_OF_CHARACTER
        for token, index in self._hf.get_vocab(with_added_tokens=True).items():
            if token in self.special_tokens:
                continue
            # An added token that is not special is spelt as text, not in the byte alphabet.
            is_bytes = index in self._model_ids and all(character in table for character in token)
            bytes_of[index] = (
                bytes(table[character] for character in token) if is_bytes else token.encode()
            )
        return bytes_of

    @cached_property
    def _model_ids(self) -> frozenset[int]:
        """Return the ids that the model itself spells: the vocabulary without added tokens."""
        return frozenset(self._hf.get_vocab(with_added_tokens=False).values()) - self._added.keys()

    def extended(self, tokens: Sequence[str]) -> Tokenizer:
        """Return this tokenizer with further special tokens, behind all its ids.

        Tokens that are special already change nothing.

        Raises:
            UserError: A token is empty, or is an ordinary one.
        """
        ordinary = self._hf.get_vocab(with_added_tokens=True).keys() - self.special_tokens.keys()
        for token in tokens:
            if not token.strip() or token in ordinary:
                wrong = "an ordinary token already" if token.strip() else "blank"
                raise UserError(
                    f"tokenizer.add: {token!r} is {wrong}; name tokens that no text holds, such as"
                    " <|im_start|>"
                )
        new = [token for token in dict.fromkeys(tokens) if token not in self.special_tokens]
        if not new:
            return self
        spec = dict(self._spec)
        spec["added_tokens"] = [
            *(spec.get("added_tokens") or []),
            *(
                {
                    "id": self.vocab_size + number,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for number, token in enumerate(new)
            ),
        ]
        text = json.dumps(spec, ensure_ascii=False)
        return Tokenizer(text, bos=self.bos, eos=self.eos, where="tokenizer.add")

    def tokens_beyond(self, parent: Tokenizer) -> list[str] | None:
        """List the special tokens that this tokenizer adds to another one, by their ids.

        Returns:
            None if it is not the same with added tokens behind all ids: another vocabulary.
        """
        mine, others = ({**each._spec, "added_tokens": None} for each in (self, parent))
        beyond = {
            index: token.content
            for index, token in self._added.items()
            if index >= parent.vocab_size and token.special
        }
        kept = {
            index: str(token.content)
            for index, token in self._added.items()
            if index < parent.vocab_size
        }
        known = {index: str(token.content) for index, token in parent._added.items()}
        if mine != others or kept != known or not beyond:
            return None
        if sorted(beyond) != list(range(parent.vocab_size, self.vocab_size)):
            return None
        return [beyond[index] for index in sorted(beyond)]

    @cached_property
    def _fallback_bytes(self) -> frozenset[int]:
        """Ids of tokens that stand for one byte (`<0xE4>`); empty if the decoder knows none."""
        if "ByteFallback" not in json.dumps(self._spec.get("decoder")):
            return frozenset()
        vocabulary = self._hf.get_vocab(with_added_tokens=True)
        return frozenset(
            index
            for token, index in vocabulary.items()
            if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token)
        )

    @cached_property
    def _special_spelling(self) -> dict[int, bytes]:
        """Map the ids of special tokens to their spelling."""
        return {index: token.encode() for token, index in self.special_tokens.items()}

    def _token_bytes(self, index: int, skip_special: bool) -> bytes:
        """Return the bytes of one id; unused ids have none."""
        assert self._bytes_of is not None
        return self._bytes_of.get(index) or (
            b"" if skip_special else self._special_spelling.get(index, b"")
        )


_CONTEXT = 6
"""Tokens that are decoded again with the next one."""


class StreamDecoder:
    """Decode ids one at a time; the pieces concatenate to what the decoder says of all ids.

    A piece never ends within a character. Each token is decoded a few times, however long the text.

    Args:
        tokenizer: Of the ids.
        before: Ids that stand before the first, such as a prompt: a SentencePiece model leaves out
            the blank of the token that begins a text, and no other.
        skip_special: Leave special tokens out; otherwise they are spelt.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, before: Sequence[int] = (), skip_special: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []
        """What decides about the next token: some ids that were given out, then those held back."""
        self._pushed = ""
        """The text of those that were given out."""
        self._special = set(tokenizer.special_tokens.values()) if skip_special else set()
        if tokenizer._bytes_of is not None:
            for index in before[-8:]:  # the prompt may end within a character
                self.push(int(index))
        else:
            self._ids = tokenizer.context_of(before, skip_special=skip_special)
            self._pushed = tokenizer.decode(self._ids, skip_special=skip_special)
            if self._ids and self._ids[-1] in tokenizer._fallback_bytes:
                self._pushed = self._pushed.rstrip("\ufffd")  # half a character, to be completed

    def push(self, index: int) -> str:
        """Take one id, and return the text that is complete now, which may be empty."""
        tokenizer = self._tokenizer
        if tokenizer._bytes_of is not None:
            return self._utf8.decode(tokenizer._token_bytes(index, self._skip_special))
        if index in self._special or tokenizer._hf.id_to_token(index) is None:
            return ""
        self._ids.append(index)
        # A run of bytes becomes text only if all of it is UTF-8: one more byte may undo it.
        if index in tokenizer._fallback_bytes:
            return ""
        text = tokenizer.decode(self._ids, skip_special=self._skip_special)
        new = text[len(self._pushed) :]
        self._pushed = self._forget(text)
        return new

    def _forget(self, text: str) -> str:
        """Keep the last few ids and return their text: what follows does not depend on others.

        Other kinds than byte-level ones decode in context: the first token of a text loses its
        blank, and a word has a blank before it that it has not at the beginning. A few tokens with
        some text decide about that. They begin after a run of bytes, if there is one.

        Args:
            text: The text of all ids.
        """
        begin = len(self._ids)
        while begin and len(self._ids) - begin < _CONTEXT:
            if self._ids[begin - 1] in self._tokenizer._fallback_bytes:
                break
            begin -= 1
        kept = self._ids[begin:]
        shorter = self._tokenizer.decode(kept, skip_special=self._skip_special)
        if not shorter:
            return text
        self._ids = kept
        return shorter

    def flush(self) -> str:
        """Return whatever is held back at the end, half characters as U+FFFD."""
        if self._tokenizer._bytes_of is not None:
            return self._utf8.decode(b"", final=True)
        return self._tokenizer.decode(self._ids, skip_special=self._skip_special)[
            len(self._pushed) :
        ]


def special_tokens_of(text: str) -> list[str]:
    """List the special tokens in the text of a tokenizer.json; none if it is not one."""
    try:
        added = load_json(text).get("added_tokens") or []
        return [token["content"] for token in added if token["special"]]
    except (ValueError, AttributeError, TypeError, KeyError):
        return []  # building the tokenizer says what is wrong


def _rebuild(text: str, bos: str, eos: str, fallback_reason: str | None) -> Tokenizer:
    """Unpickle a tokenizer: build its native parts from the JSON, and keep its backend."""
    tokenizer = Tokenizer(text, bos=bos, eos=eos)
    if fallback_reason is not None and tokenizer.fallback_reason is None:
        tokenizer._tiktoken, tokenizer.fallback_reason = None, fallback_reason
    return tokenizer
