"""Encoding keeps the order of the documents, bounds its memory, and notices lost bytes."""

import os
from collections.abc import Iterator

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lit_pretrain.errors import UserError
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.prepare_config import TokenizerConfig
from lit_pretrain.prepare.stages import encode
from lit_pretrain.prepare.stages.encode import encode_documents
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe
from lit_pretrain.tokenizer.byte_level import BYTE_OF_CHARACTER
from lit_pretrain.tokenizer.tokenizer import Tokenizer

TEXTS = [f"def function_{n % 17}(argument):  # Größe №{n % 5} of the thing\n" for n in range(200)]


def document(text: str, n: int = 0) -> Document:
    return Document(text, f"file:{n}")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, TokenizerConfig(vocab_size=300))


def test_encoding_keeps_the_order(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_DOCUMENTS", 3)
    documents = [document(text, n) for n, text in enumerate(TEXTS)]
    encoded = list(encode_documents(documents, tokenizer, "uint16"))
    assert [e.document for e in encoded] == documents
    for e in encoded:
        assert e.ids.dtype == np.uint16
        assert e.ids.tolist() == [0, *tokenizer.encode(e.document.text)]


def test_two_separators_enclose_a_document(tokenizer: Tokenizer) -> None:
    other = Tokenizer(tokenizer._text, bos="<|im_start|>", eos="<|im_end|>")
    (encoded,) = encode_documents([document("abc")], other, "int32")
    assert encoded.ids.tolist() == [1, *tokenizer.encode("abc"), 2]
    assert encoded.ids.dtype == np.int32


def test_memory_is_bounded(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_BATCH_DOCUMENTS", 1)
    taken = 0

    def endless() -> Iterator[Document]:
        nonlocal taken
        while True:
            taken += 1
            yield document("abc")

    stream = encode_documents(endless(), tokenizer, "uint16")
    for given_out in range(1, 50):
        next(stream)
        assert taken - given_out <= 1
    stream.close()
    assert (
        "TOKENIZERS_PARALLELISM" not in os.environ
        or os.environ["TOKENIZERS_PARALLELISM"] != "false"
    )


def test_lost_bytes_are_noticed(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenizer.encode_batch
    monkeypatch.setattr(tokenizer, "encode_batch", lambda texts: [ids[:-1] for ids in whole(texts)])
    with pytest.raises(RuntimeError, match="file:0: its tokens do not spell its 5 bytes"):
        list(encode_documents([Document("abcde", "file:0")], tokenizer, "uint16"))


def test_what_a_vocabulary_lacks_is_refused_or_counted() -> None:
    alphabet = [c for c, byte in BYTE_OF_CHARACTER.items() if byte < 128]
    hf = tokenizers.Tokenizer(models.BPE({c: n for n, c in enumerate(alphabet)}, []))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(["<|endoftext|>"])
    english = Tokenizer(hf.to_str())
    documents = [document("plain"), document("鯨は眠る", 1)]
    with pytest.raises(UserError, match=r"file:1: the tokenizer has no tokens for a part of '鯨"):
        list(encode_documents(documents, english, "uint16"))
    kept = list(encode_documents(documents, english, "uint16", allow_unspelt=True))
    assert [encoded.unspelt for encoded in kept] == [0, 12]
