"""`tokenizer report`: its figures are those of a plain recomputation, and what cannot be done
is said.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import tokenizers

from lit_pretrain.__main__ import main
from lit_pretrain.cli.tokenizer.compare_tokenizers import characters_outside, find_contestant, use
from lit_pretrain.corpus.chunk_reader import sample_documents, token_counts
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.prepare.prepare_config import TokenizerConfig
from lit_pretrain.prepare.stages.train_tokenizer import train_bpe
from lit_pretrain.tokenizer.tokenizer import Tokenizer

WORDS = [
    f"def function_{n % 13}(x):\n    return x * {n * 37}  # the fox sees the owl\n"
    for n in range(200)
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers") / "small"
    folder.mkdir()
    train_bpe(WORDS, TokenizerConfig(vocab_size=300, pattern="gpt2")).save(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["tokenizer", "report", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_figures_are_those_of_a_plain_recomputation(
    dataset: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys,
        dataset,
        "--against",
        small,
        dataset / "tokenizer.json",
        "--sample_bytes",
        10**9,
        "--json",
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    manifest, own = Manifest.load(dataset), Tokenizer.load(dataset)
    assert [facts["name"] for facts in found["tokenizers"]] == ["tiny", "small", "tiny#2"]
    assert [facts["vocab_size"] for facts in found["tokenizers"]] == [512, 300, 512]
    assert [facts["pattern"] for facts in found["tokenizers"]] == ["cl100k", "gpt2", "cl100k"]
    references = {"tiny": dataset, "small": small, "tiny#2": dataset}
    for name, folder in references.items():
        reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens_of_all = bytes_of_all = 0
        for source, facts in manifest.sources.items():
            texts = list(sample_documents(dataset, manifest, source, own, size=10**9))
            tokens = sum(len(reference.encode(text).ids) for text in texts)
            assert found["results"][name][source]["tokens"] == tokens
            assert (
                found["results"][name][source]["bytes_per_token"]
                == facts.splits["train"].bytes / tokens
            )
            tokens_of_all += tokens
            bytes_of_all += facts.splits["train"].bytes
            if folder == dataset:  # the same text, and one separator each
                assert (
                    tokens + facts.splits["train"].documents
                    == facts.splits["train"].tokens
                    == found["stored"][source]["tokens"]
                )
        assert found["results"][name]["all"]["bytes_per_token"] == bytes_of_all / tokens_of_all
    assert found["manifest"] == manifest.hash


def test_unused_ids_and_coverage_are_exact(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, dataset, "--json")
    found = json.loads(out)["use"]
    counts = Counter(
        {index: int(n) for index, n in enumerate(token_counts(dataset, Manifest.load(dataset)))}
    )
    unused = [index for index in range(4, 512) if not counts[index]]
    assert len(unused) > 100  # bytes that ASCII text has not
    assert found["unused_ids"] == unused
    assert (found["unused"], found["ordinary_ids"], found["tokens"]) == (
        len(unused),
        508,
        counts.total(),
    )
    assert found["rare"] == sum(0 < counts[index] < 10 for index in range(4, 512))
    assert found["special_tokens_unused"] == ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    assert found["ids_without_token"] == 0
    assert found["coverage"] == {"100": sum(n for _, n in counts.most_common(100)) / counts.total()}
    needed = found["ids_for_99_percent"]
    assert (
        sum(n for _, n in counts.most_common(needed))
        >= 0.99 * counts.total()
        > sum(n for _, n in counts.most_common(needed - 1))
    )


def test_table_is_readable(dataset: Path, small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, dataset, "--against", *[small] * 6, "--sample_bytes", 5000)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 140
    for wanted in (
        "bytes per token",
        "as stored",
        "small#6",
        "ordinary ids are unused",
        "coverage",
        "higher is better",
        "example of sums",
    ):
        assert wanted in out
    assert "larger vocabulary gives more bytes per token" in " ".join(out.split())
    assert "│" in out
    assert "⏎" in out


def test_a_tokenizer_on_files(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the fox sees é and 中, 中\n" * 3
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    code, out, _ = run(capsys, small, "--text", tmp_path / "a.txt", "--json")
    found = json.loads(out)
    assert code == 0
    own = Tokenizer.load(small)
    ids = own.encode(text)
    (figures,) = (v for k, v in found["results"]["small"].items() if k != "all")
    assert figures["tokens"] == len(ids)
    assert figures["bytes_per_token"] == len(text.encode()) / len(ids)
    assert figures["cut_character_share"] == (6 + 2 * 9) / len(
        text.encode()
    )  # é and two 中 a line, in bytes
    assert figures["documents_with_cut_characters"] == 1
    one_byte = sum(own.token_bytes()[index] == 1 for index in ids)
    assert figures["one_byte_share"] == one_byte / len(text.encode())
    outside = found["characters_outside"]["small"]
    assert (outside["distinct"], outside["examples"], outside["share"]) == (
        2,
        ["中", "é"],
        9 / len(text),
    )
    assert found["use"]["where"] == "the text given"
    assert found["use"]["tokens"] == len(ids)
    code, out, _ = run(capsys, small)  # and without any text
    assert code == 0
    assert "0123" in out.replace("│", "")


def test_a_sample_may_cut_a_character_but_a_file_may_not(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("ab中", encoding="utf-8")
    _, out, _ = run(capsys, small, "--text", file, "--sample_bytes", 4, "--json")
    assert json.loads(out)["samples"][str(file)]["bytes"] == 2
    file.write_bytes("ab中".encode()[:4])
    code, _, err = run(capsys, small, "--text", file)
    assert code == 2
    assert "is not UTF-8" in err


def test_lossy_tokenizers_are_compared_as_far_as_they_go(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "<unk>": 1, "b": 5}, unk_token="<unk>")
    )
    hf.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    hf.add_special_tokens(["<|endoftext|>"])
    hf.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "t.txt").write_text("a a c b")
    _, out, _ = run(capsys, tmp_path, "--against", small, "--text", tmp_path / "t.txt", "--json")
    found = json.loads(out)
    figures = found["results"][tmp_path.name[-16:]]["all"]
    assert (figures["tokens"], figures["bytes_per_token"], figures["one_byte_share"]) == (
        4,
        7 / 4,
        None,
    )
    assert found["use"]["ids_without_token"] == found["tokenizers"][0]["vocab_size"] - 4 > 0
    code, out, _ = run(capsys, tmp_path, "--against", small, "--text", tmp_path / "t.txt")
    assert code == 0
    assert "have no token" in out


def test_use_of_a_vocabulary_that_is_all_used(small: Path) -> None:
    (contestant,) = find_contestant([str(small)])
    import numpy as np

    found = use(contestant, np.full(300, 20), where="a text")
    assert (
        found["unused"],
        found["unused_examples"],
        found["rare"],
        found["special_tokens_unused"],
    ) == (0, [], 0, [])
    assert characters_outside(contestant, {"a": ["abc"]}) == {
        "distinct": 0,
        "of": 3,
        "share": 0.0,
        "examples": [],
    }


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["{small}", "--against", "{small}"], "nothing to compare on; name files with --text"),
        (["{small}", "--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["nowhere"], "does not exist"),
        (["s3://bucket/data"], "is remote"),
        (["{small}", "--sample_bytes", "0"], "sample_bytes=0 must be at least 1"),
    ],
)
def test_mistakes(
    small: Path, arguments: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *(argument.format(small=small) for argument in arguments))
    assert code == 2
    assert wanted in err


def test_public_encodings_need_a_download(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    def no_network(name: str) -> tiktoken.Encoding:
        raise OSError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    code, _, err = run(capsys, "cl100k_base")
    assert code == 2
    assert "tiktoken downloads when it is first used, and that failed (no route to host)" in err
    assert "TIKTOKEN_CACHE_DIR" in err
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 257}
    encoding = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r"\w+|\W",
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 260},
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    (contestant,) = find_contestant(["cl100k_base"])
    assert contestant.encode("ab<|endoftext|>").tolist()[:2] == [257, ord("<")]
    assert (contestant.vocab_size, contestant.special) == (261, {260: "<|endoftext|>"})
    assert contestant.pieces == {index: piece for piece, index in ranks.items()}


def test_another_tokenizer_in_the_dataset_is_refused(
    dataset: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("manifest.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((dataset / name).read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((small / "tokenizer.json").read_bytes())
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    assert "is not the one that encoded the data" in err


def test_usage_and_imports(capsys: pytest.CaptureFixture[str], dataset: Path) -> None:
    assert main(["tokenizer", "--help"]) == 0
    assert "report" in capsys.readouterr().out
    assert main(["tokenizer", "reprot"]) == 2
    assert "no part 'reprot'" in capsys.readouterr().err
    code = (
        "import sys; from lit_pretrain.__main__ import main;"
        f"assert main(['tokenizer', 'report', {str(dataset)!r}, '--sample_bytes', '1000']) == 0;"
        "assert not {'torch', 'lightning', 'litdata'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
