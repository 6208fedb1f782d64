"""Text as it is written: equal to the whole at the end, whatever the tokenizer, and linear."""

import functools
import json
from collections.abc import Callable, Sequence

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lit_pretrain.tokenizer.tokenizer import Tokenizer

BYTES = [f"<0x{value:02X}>" for value in range(256)]
WORDS = ["▁", "▁the", "▁boat", "s", "▁went", ".", "▁a", "b", "中", "é", "▁▁", "\ufffd", "'", "n't"]
SPECIAL = ["<s>", "</s>", "<unk>"]


def built(model: models.Model, decoder: decoders.Decoder) -> Tokenizer:
    hf = tokenizers.Tokenizer(model)
    hf.decoder = decoder
    hf.normalizer = normalizers.Replace(" ", "▁")
    hf.pre_tokenizer = pre_tokenizers.Metaspace()
    hf.add_special_tokens(SPECIAL)
    hf.add_tokens(["<added>"])
    return Tokenizer(json.dumps(json.loads(hf.to_str())), bos="<s>", eos="</s>")


@functools.cache
def llama(strip: bool) -> Tokenizer:
    """BPE that spells in bytes what it does not know, as SentencePiece does."""
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *BYTES, *WORDS])}
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        chain.append(decoders.Strip(" ", 1, 0))
    model = models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return built(model, decoders.Sequence(chain))


@functools.cache
def unigram() -> Tokenizer:
    vocabulary = [(token, -float(n)) for n, token in enumerate([*SPECIAL, *WORDS])]
    return built(models.Unigram(vocabulary, 2, False), decoders.Metaspace())


@functools.cache
def wordpiece() -> Tokenizer:
    words = ["the", "boat", "##s", "went", ".", "##b", "don", "'", "##t", "n't", "中", "?"]
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *words])}
    return built(models.WordPiece(vocabulary, unk_token="<unk>"), decoders.WordPiece("##", True))


@functools.cache
def suffixes() -> Tokenizer:
    words = ["the</w>", "boat", "boat</w>", "s</w>", "went</w>", ".</w>", "b", "中</w>"]
    vocabulary = {token: n for n, token in enumerate([*SPECIAL, *words])}
    return built(models.BPE(vocabulary, [], unk_token="<unk>"), decoders.BPEDecoder("</w>"))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "llama": lambda: llama(True),
    "gemma": lambda: llama(False),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "suffixes": suffixes,
}


def write(ours: Tokenizer, ids: Sequence[int], before: Sequence[int], skip: bool) -> list[str]:
    decoder = ours.stream_decoder(before=before, skip_special=skip)
    return [*map(decoder.push, ids), decoder.flush()]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_the_pieces_are_the_whole(kind: str, data: st.DataObject, skip: bool) -> None:
    """Any ids: unknown ones, special ones, bytes that are no text, and long runs of each."""
    ours = KINDS[kind]()
    some = st.one_of(
        st.integers(0, ours.vocab_size + 3),
        st.integers(max(0, ours.vocab_size - 20), ours.vocab_size - 1),
    )
    lists = st.lists(st.lists(some, max_size=12).map(lambda one: one * 2), max_size=6)
    ids = [index for one in data.draw(lists) for index in one]
    assert "".join(write(ours, ids, (), skip)) == ours.decode(ids, skip_special=skip)
    before = [ours.bos_id, *[n for n in data.draw(st.lists(some, max_size=30)) if n >= 3 + 256]]
    if kind not in ("llama", "gemma"):
        before = [ours.bos_id, *data.draw(st.lists(some, max_size=30))]
    start = ours.decode(before, skip_special=skip)
    whole = ours.decode([*before, *ids], skip_special=skip)
    if kind != "suffixes" and start:
        assert "".join(write(ours, ids, before, skip)) == whole[len(start) :]


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_decoded_a_few_times(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = KINDS[kind]()
    decoded: list[int] = []
    plain = Tokenizer.decode

    def counting(self: Tokenizer, ids: Sequence[int], *, skip_special: bool = True) -> str:
        decoded.append(len(ids))
        return plain(self, ids, skip_special=skip_special)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    ids = [3 + (n * 7 + n // 9) % (ours.vocab_size - 3) for n in range(3000)]
    pieces = write(ours, ids, [ours.bos_id], True)
    assert sum(decoded) < 20 * len(ids)
    assert max(decoded) < 300, "a run of bytes may be long; nothing else is"
    monkeypatch.undo()
    assert "".join(pieces) == ours.decode(ids)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    ours = llama(True)
    id_of = {token: index for index, token in ours.spellings().items()}
    tokens = ["▁the", "▁boat", "<0xE4>", "<0xBD>", "<0xA0>", "▁went", "<0xFF>", "."]
    pieces = write(ours, [id_of[token] for token in tokens], (), True)
    assert pieces == ["the", " boat", "", "", "", "你 went", "", "\ufffd.", ""]
