"""The tokenizer: tiktoken equals the reference, nothing is lost, and what it cannot do it says."""

import functools
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.byte_level import BYTE_OF_CHARACTER, PATTERNS, NotByteLevel, analyse
from lit_pretrain.tokenizer.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 12345 o'clock, they'll say; we've 67 of"
    " them.\n" * 3,
    "def encode(self, text: str) -> list[int]:\n    return [self.ids[c] for c in text]\n\n\n" * 3,
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Ελληνικά, русский язык,"
    " 中文字符, 한국어 العربية 👩\u200d👩\u200d👧" * 3,
    " \t \r\n  <think> aaaa bbbb abab </think>   ----====\n" * 3,
]
TEXT = st.text(
    alphabet=st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("ab 1'\n\r\té中👩\u200d\u0301<>|")
    ),
    max_size=60,
)


@functools.cache
def trained_json(
    pattern: str = "cl100k",
    normalizer: str | None = None,
    specials: tuple[str, ...] = ("<|endoftext|>",),
) -> str:
    """A byte-level BPE trained without our code."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    if pattern == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(PATTERNS[pattern]), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if normalizer == "NFC":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


@functools.cache
def tokenizer(pattern: str = "cl100k", normalizer: str | None = None) -> Tokenizer:
    return Tokenizer(trained_json(pattern, normalizer))


@functools.cache
def reference(text: str) -> tokenizers.Tokenizer:
    """The same file, through the other implementation only."""
    hf = tokenizers.Tokenizer.from_str(text)
    hf.encode_special_tokens = True
    return hf


def reference_ids(json_text: str, text: str) -> list[int]:
    return reference(json_text).encode(text, add_special_tokens=False).ids


@functools.cache
def qwen_like() -> str:
    """NFC, single digits, and added tokens that are matched in ordinary text."""
    spec = json.loads(trained_json("qwen2", "NFC"))
    for n, content in enumerate(("<think>", "</think>")):
        flags = {
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        spec["added_tokens"].append(
            {"id": len(spec["model"]["vocab"]) + n, "content": content, **flags}
        )
    return json.dumps(spec)


@functools.cache
def sentencepiece_like() -> str:
    """Llama 2's kind: characters with a fallback to bytes, words marked by ▁."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for piece in ("▁", "a", "b", "c", "é", "▁a", "ab", "▁ab"):
        vocab[piece] = len(vocab)
    model = models.BPE(
        vocab,
        [("▁", "a"), ("a", "b"), ("▁a", "b")],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    hf = tokenizers.Tokenizer(model)
    hf.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    hf.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    hf.add_special_tokens(["<s>", "</s>"])
    return hf.to_str()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_tiktoken_equals_tokenizers(pattern: str, text: str) -> None:
    assert tokenizer(pattern).backend == "tiktoken"
    assert tokenizer(pattern).pattern_name == pattern
    assert tokenizer(pattern).encode(text) == reference_ids(trained_json(pattern), text)


@settings(max_examples=300, deadline=None)
@given(
    text=TEXT.filter(lambda text: "\ufffd" not in text) | st.text("ab éc中", max_size=60),
    place=st.integers(0, 80),
    kind=st.sampled_from([sentencepiece_like, trained_json]),
)
def test_a_completion_is_decoded_in_the_context_of_its_prompt(
    text: str, place: int, kind: Callable[[], str]
) -> None:
    ours = Tokenizer(kind())
    ids = ours.encode(text)
    prompt, completion = [ours.bos_id, *ids[:place]], ids[place:]
    before = ours.decode(prompt).rstrip("\ufffd")  # the prompt may end within a character
    assert before + ours.decode_after(prompt, completion) == ours.decode(ids)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_qwen_like_equals_tokenizers(text: str) -> None:
    ours = Tokenizer(qwen_like())
    assert ours.backend == "tiktoken"
    for variant in (
        text,
        f"<think>{text}</think>",
        f"e\u0301 <think>\u0338{text}",
        f"{text}\u212b",
    ):
        assert ours.encode(variant) == reference_ids(qwen_like(), variant)


@functools.cache
def llama3_like() -> str:
    """Specials after the vocabulary, words that are tokens taken whole, and a post-processor
    that adds a bos.
    """
    spec = json.loads(trained_json(specials=()))
    spec["model"]["ignore_merges"] = True
    size = len(spec["model"]["vocab"])
    flags = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    for n, content in enumerate(
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            *(f"<|reserved_special_token_{k}|>" for k in range(20)),
        )
    ):
        spec["added_tokens"].append({"id": size + n, "content": content, **flags})
    bos = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            bos,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {
            "<|begin_of_text|>": {
                "id": "<|begin_of_text|>",
                "ids": [size],
                "tokens": ["<|begin_of_text|>"],
            }
        },
    }
    return json.dumps(spec)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_llama3_like_equals_tokenizers(text: str) -> None:
    ours = Tokenizer(llama3_like())
    assert (ours.backend, ours.pattern_name, ours.bos, ours.eos) == (
        "tiktoken",
        "cl100k",
        "<|begin_of_text|>",
        "<|end_of_text|>",
    )
    for variant in (
        text,
        f"  {text}'S {text}\r\n\r\n",
        f"12345{text}\u0345\u0661\u0662",
        f"{text}<|begin_of_text|>",
    ):
        assert ours.encode(variant) == reference_ids(llama3_like(), variant)
        assert ours.decode(ours.encode(variant)) == variant


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_nothing_is_lost(text: str) -> None:
    ours = tokenizer()
    ids = ours.encode(text)
    assert ours.decode(ids) == text
    assert int(ours.token_bytes()[ids].sum()) == len(text.encode())
    assert all(0 <= i < ours.vocab_size for i in ids)


@settings(max_examples=200, deadline=None)
@given(text=TEXT, junk=st.lists(st.integers(0, 400), max_size=20))
def test_stream_decoder_gives_whole_characters(text: str, junk: list[int]) -> None:
    ours = tokenizer()
    decoder = ours.stream_decoder()
    given_out = ""
    for index in ours.encode(text):
        given_out += decoder.push(index)
        assert text.startswith(given_out)
    assert given_out + decoder.flush() == text
    decoder = ours.stream_decoder()
    assert "".join(map(decoder.push, junk)) + decoder.flush() == ours.decode(junk)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab cé中👩 ", max_size=20))
def test_sentencepiece_like_falls_back(text: str) -> None:
    ours = Tokenizer(sentencepiece_like())
    assert ours.backend == "tokenizers"
    assert (ours.bos, ours.eos, ours.one_separator) == ("<s>", "</s>", False)
    ids = ours.encode(text)
    assert ids == reference_ids(sentencepiece_like(), text)
    assert int(ours.token_bytes()[ids].sum()) == len(text.encode()) + bool(
        text
    )  # the space in front
    decoder = ours.stream_decoder()
    pieces = [decoder.push(index) for index in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + decoder.flush() == ours.decode(ids) == text


def test_batches_equal_single_texts() -> None:
    for ours in (tokenizer(), Tokenizer(sentencepiece_like())):
        texts = [*CORPUS, "", "a"]
        assert [ids.tolist() for ids in ours.encode_batch(texts)] == [
            ours.encode(text) for text in texts
        ]
        assert all(ids.dtype == np.int32 for ids in ours.encode_batch(texts))


def test_special_tokens_in_text_are_text() -> None:
    ours = tokenizer()
    ids = ours.encode("a<|endoftext|>b")
    assert ours.eos_id not in ids
    assert ours.decode(ids) == "a<|endoftext|>b"
    assert ours.decode([ours.bos_id, *ids]) == "a<|endoftext|>b"
    assert ours.decode([ours.bos_id, *ids], skip_special=False) == "<|endoftext|>a<|endoftext|>b"
    assert ours.token_bytes()[ours.bos_id] == 0


def test_a_million_spaces_and_letters_are_encoded() -> None:
    ours = tokenizer()
    for text in (" " * 1_000_000, "a" * 300_000, "\n" * 300_000):
        assert ours.decode(ours.encode(text)) == text


def test_hash_ignores_formatting_and_sees_content() -> None:
    spec = json.loads(trained_json())
    shuffled = json.dumps(dict(reversed(spec.items())), indent=4)
    assert Tokenizer(shuffled).hash == tokenizer().hash
    assert tokenizer("qwen2").hash != tokenizer().hash


def test_byte_alphabet_is_the_reference_one() -> None:
    assert sorted(BYTE_OF_CHARACTER) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHARACTER.values()) == list(range(256))
    for byte in range(0x80):
        shown = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
            chr(byte)
        )[0][0]
        assert BYTE_OF_CHARACTER[shown] == byte


def change(**changes: object) -> str:
    """The trained tokenizer with some of its top-level entries or its model's replaced."""
    spec = json.loads(trained_json())
    for key, value in changes.items():
        if key in spec["model"]:
            spec["model"][key] = value
        else:
            spec[key] = value
    return json.dumps(spec)


FALLBACKS = {
    "does not split words": lambda: change(
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": False,
        }
    ),
    "adds a space": lambda: change(
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        }
    ),
    "Whitespace": lambda: change(pre_tokenizer={"type": "Whitespace"}),
    "pre-tokenizer is none": lambda: change(pre_tokenizer=None),
    "split is none of": lambda: trained_json().replace(r"\\p{N}{1,3}", r"\\p{N}{1,2}"),
    "normalizer is Lowercase": lambda: change(normalizer={"type": "Lowercase"}),
    "merges are not in the order": lambda: change(
        merges=json.loads(trained_json())["model"]["merges"][::-1]
    ),
    "fallback to bytes": sentencepiece_like,
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_fallback_says_why_and_equals_the_reference(reason: str) -> None:
    text = FALLBACKS[reason]()
    ours = Tokenizer(text)
    assert ours.backend == "tokenizers"
    assert ours.fallback_reason is not None
    assert reason in ours.fallback_reason
    for sample in CORPUS:
        assert ours.encode(sample) == reference_ids(text, sample)


@pytest.mark.parametrize(
    ("mutate", "reason"),
    [
        (lambda spec: spec["model"].update(type="Unigram"), "Unigram"),
        (lambda spec: spec["model"].update(dropout=0.1), "dropout"),
        (lambda spec: spec["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda spec: spec["model"]["vocab"].pop("!"), "1 of the 256 bytes"),
        (lambda spec: spec["model"]["vocab"].update({"中": 9999}), "outside the byte alphabet"),
        (
            lambda spec: spec["added_tokens"].append(
                {"id": 700, "content": "X", "special": False, "lstrip": True}
            ),
            "special rules",
        ),
        (
            lambda spec: spec["added_tokens"].extend(
                {"id": 700, "content": c, "special": False} for c in ("<a", "<ab")
            ),
            "begins",
        ),
    ],
)
def test_analysis_refuses(mutate, reason: str) -> None:
    spec = json.loads(trained_json())
    mutate(spec)
    with pytest.raises(NotByteLevel, match=reason):
        analyse(spec)


def test_difference_on_real_text_gives_tiktoken_up() -> None:
    # A token that no merge makes: tiktoken would use it, the reference does not. The structure
    # looks fine; only text tells.
    spec = json.loads(trained_json())
    spec["model"]["vocab"]["qzqz"] = len(spec["model"]["vocab"])
    ours = Tokenizer(json.dumps(spec))
    assert ours.backend == "tiktoken"
    ours.check_equality(["all is well"])
    assert ours.backend == "tiktoken"
    ours.check_equality(["a qzqz b", "qzqz"])
    assert ours.backend == "tokenizers"
    assert "disagree" in (ours.fallback_reason or "")
    assert ours.encode("qzqz") == reference_ids(json.dumps(spec), "qzqz")


@pytest.mark.parametrize(
    ("specials", "config", "expected"),
    [
        (("<|endoftext|>",), None, ("<|endoftext|>", "<|endoftext|>")),
        (("<|begin_of_text|>", "<|end_of_text|>"), None, ("<|begin_of_text|>", "<|end_of_text|>")),
        (("<a>", "<b>"), {"bos_token": "<a>", "eos_token": {"content": "<b>"}}, ("<a>", "<b>")),
        (("<a>", "<|endoftext|>"), {"bos_token": None, "eos_token": "<a>"}, ("<a>", "<a>")),
        (("<a>", "<|endoftext|>"), {}, ("<|endoftext|>", "<|endoftext|>")),
    ],
)
def test_separators(tmp_path, specials, config, expected) -> None:
    (tmp_path / "tokenizer.json").write_text(trained_json(specials=specials), encoding="utf-8")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos, ours.eos) == expected
    assert (ours.bos_id, ours.eos_id) == (specials.index(expected[0]), specials.index(expected[1]))


def test_separators_that_are_missing() -> None:
    with pytest.raises(UserError, match=r"no token that separates documents.*<a>, <b>"):
        Tokenizer(trained_json(specials=("<a>", "<b>")))
    with pytest.raises(UserError, match="no special token '<c>'"):
        Tokenizer(trained_json(specials=("<a>", "<b>")), bos="<c>")
    assert Tokenizer(trained_json(specials=("<a>", "<b>")), eos="<b>").bos == "<b>"


@pytest.mark.parametrize("shape", ["string", "object"])
def test_special_tokens_map_names_the_separators(tmp_path, shape: str) -> None:
    (tmp_path / "tokenizer.json").write_text(
        trained_json(specials=("<a>", "<b>", "<|endoftext|>")), encoding="utf-8"
    )
    (tmp_path / "tokenizer_config.json").write_text(
        '{"model_max_length": 5, "bos_token": null}', encoding="utf-8"
    )
    named = {"bos_token": "<a>", "eos_token": "<b>"}
    named = (
        named
        if shape == "string"
        else {key: {"content": value, "lstrip": False} for key, value in named.items()}
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    assert (Tokenizer.load(tmp_path).bos, Tokenizer.load(tmp_path).eos) == ("<a>", "<b>")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"eos_token": "<|endoftext|>"}', encoding="utf-8"
    )  # it has the say
    assert Tokenizer.load(tmp_path).bos == "<|endoftext|>"
    assert Tokenizer.load(tmp_path, eos="<b>").bos == "<b>"
    (tmp_path / "special_tokens_map.json").write_text("[]", encoding="utf-8")
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(
        UserError, match=r"special_tokens_map\.json is damaged: expected a JSON object, found list"
    ):
        Tokenizer.load(tmp_path)


def test_too_few_special_tokens(tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"has no special token, and documents need one.*add_special_tokens"
    ):
        Tokenizer(trained_json(specials=()))
    with pytest.raises(
        UserError,
        match=(
            r"neither a tokenizer_config\.json nor .*`tokenizer\.bos` and"
            r" `tokenizer\.eos`.*<\|0\|>.* and 18 more"
        ),
    ):
        Tokenizer(trained_json(specials=tuple(f"<|{n}|>" for n in range(30))))
    with pytest.raises(
        UserError, match=r"no special token 'a'.*calls it an ordinary token.*it has <b>"
    ):
        Tokenizer(trained_json(specials=("<b>",)), bos="a")


@pytest.mark.parametrize(
    "names", [("qwen.tiktoken",), ("tokenizer.model",), ("merges.txt", "vocab.json")]
)
def test_folders_of_another_format_say_what_to_do(tmp_path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(
        UserError,
        match=rf"does not exist; .*holds {', '.join(names)}.*AutoTokenizer\.from_pretrained",
    ):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("text", [trained_json, sentencepiece_like, qwen_like])
def test_pieces_spell_the_text(text) -> None:
    ours = Tokenizer(text())
    pieces = ours.pieces()
    assert pieces.keys() == ours.spellings().keys() - ours.special_tokens.values()
    for sample in ("ab é 中", "a  b"):
        spelt = b"".join(pieces[index] for index in ours.encode(sample)).decode()
        assert spelt in (sample, f" {sample}")


def test_save_load_and_pickle_keep_everything(tmp_path) -> None:
    for ours in (
        Tokenizer(trained_json(specials=("<a>", "<b>")), bos="<b>", eos="<a>"),
        Tokenizer(sentencepiece_like()),
    ):
        ours.save(tmp_path)
        for other in (
            Tokenizer.load(tmp_path),
            Tokenizer.load(tmp_path / "tokenizer.json"),
            pickle.loads(pickle.dumps(ours)),
        ):
            assert (other.hash, other.bos_id, other.eos_id, other.vocab_size) == (
                ours.hash,
                ours.bos_id,
                ours.eos_id,
                ours.vocab_size,
            )
            assert other.encode("ab a c é") == ours.encode("ab a c é")


def test_transformers_reads_what_is_saved(tmp_path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the dev extra")
    ours = tokenizer()
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in CORPUS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)


def test_limits_saved_with_a_model_are_lifted() -> None:
    hf = tokenizers.Tokenizer.from_str(trained_json())
    hf.enable_truncation(3)
    hf.enable_padding(length=10)
    assert Tokenizer(hf.to_str()).encode(CORPUS[0]) == tokenizer().encode(CORPUS[0])


def test_bits_per_byte_need_bytes() -> None:
    hf = tokenizers.Tokenizer(
        models.WordLevel({"a": 0, "<unk>": 1, "<|endoftext|>": 2}, unk_token="<unk>")
    )
    hf.add_special_tokens(["<|endoftext|>"])
    with pytest.raises(UserError, match="tokens spell bytes"):
        Tokenizer(hf.to_str()).token_bytes()


def test_load_errors(tmp_path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        Tokenizer.load(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(trained_json()[:1000], encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
        Tokenizer.load(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.load(file)
    file.write_text(trained_json(), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        Tokenizer.load(file)


def test_imports_no_torch() -> None:
    code = (
        "import sys, lit_pretrain.tokenizer.tokenizer,"
        " lit_pretrain.corpus.manifest;print(*({'torch', 'litdata', 'lightning'} &"
        " set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == ""
    )


# ---------------------------------------------------------------------- what separates documents


@pytest.mark.parametrize(
    ("stated", "specials", "found"),
    [
        ({"eos_token": "<|im_end|>"}, ["<|endoftext|>", "<|im_end|>"], ("<|endoftext|>",) * 2),
        (
            {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            ("<|endoftext|>",) * 2,
        ),
        (
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
            ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
            ("<|begin_of_text|>", "<|end_of_text|>"),
        ),
        (
            {"bos_token": "<bos>", "eos_token": "<end_of_turn>"},
            ["<bos>", "<eos>", "<end_of_turn>"],
            ("<bos>", "<eos>"),
        ),
        ({"bos_token": "<s>", "eos_token": "<|end|>"}, ["<s>", "</s>", "<|end|>"], ("<s>", "</s>")),
        # Without an end of text, the end of a turn is all there is.
        ({"eos_token": "<|im_end|>"}, ["<|im_end|>"], ("<|im_end|>",) * 2),
        (
            {"bos_token": "<s>", "eos_token": "</s>"},
            ["<s>", "</s>", "<|im_end|>"],
            ("<s>", "</s>"),
        ),
    ],
)
def test_the_end_of_a_turn_separates_no_documents(
    stated: dict[str, str], specials: list[str], found: tuple[str, str], tmp_path: Path
) -> None:
    spec = json.loads(trained_json(specials=()))
    size = len(spec["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] = [
        {"id": size + n, "content": token, "special": True, **flags}
        for n, token in enumerate(specials)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.bos, tokenizer.eos) == found
    asked = stated.get("bos_token", stated["eos_token"]), stated["eos_token"]
    if found == asked:
        assert tokenizer.separator_note is None
    else:
        assert f"says {stated['eos_token']}, which ends a turn" in str(tokenizer.separator_note)
    # In a folder of ours the statement was meant, and a user's own word counts always.
    (tmp_path / "lineage.json").write_text("{}")
    assert Tokenizer.load(tmp_path).eos == stated["eos_token"]
    assert Tokenizer.load(tmp_path, eos=stated["eos_token"]).eos == stated["eos_token"]


def without_bytes(unknown: str | None) -> str:
    """A byte-level vocabulary that lacks the bytes above 0x7f, as some trained on English have."""
    alphabet = [c for c, byte in BYTE_OF_CHARACTER.items() if byte < 128]
    vocab = {token: n for n, token in enumerate([*([unknown] if unknown else []), *alphabet])}
    hf = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token=unknown, fuse_unk=True))
    hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens(["<|endoftext|>", *([unknown] if unknown else [])])
    return hf.to_str()


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_bytes_that_no_token_spells_are_counted(unknown: str | None) -> None:
    tokenizer = Tokenizer(without_bytes(unknown))
    assert not tokenizer.spells_every_byte
    for text, lost in (("plain text\n", 0), ("鯨は", 6), ("a é b", 2)):
        ids = np.asarray(tokenizer.encode(text), dtype=np.int32)
        assert tokenizer.unspelt_bytes(text, ids) == lost, text


@pytest.mark.parametrize("make", [sentencepiece_like, trained_json, llama3_like])
@given(text=TEXT)
@settings(max_examples=50, deadline=None)
def test_a_whole_vocabulary_spells_everything(make: Callable[[], str], text: str) -> None:
    tokenizer = Tokenizer(make())
    assert tokenizer.spells_every_byte
    assert tokenizer.unspelt_bytes(text, np.asarray(tokenizer.encode(text), dtype=np.int32)) == 0
