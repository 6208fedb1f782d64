"""The gate finds what was planted, whatever its layout, and nothing else."""

import itertools
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_pretrain.decontaminate.decontamination_index import DecontaminationIndex
from lit_pretrain.decontaminate.evaluation_set import DecontaminateConfig, EvaluationSet
from lit_pretrain.errors import UserError
from lit_pretrain.hashing import plain_words
from lit_pretrain.prepare.read import text_readers

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def made_up(count: int, seed: int, shortest: int = 13, longest: int = 60) -> list[str]:
    """Questions of a made-up language: capitals, commas, numbers, quotes."""
    rng = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ne", "pu", "ra", "so", "ti", "ve", "zu"]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(2000)]

    def question() -> str:
        found = rng.choices(vocabulary, k=rng.randint(shortest, longest))
        found[0] = found[0].capitalize()
        return (
            " ".join(word + rng.choice(["", "", "", ",", " -", "\u2019s"]) for word in found)
            + f" {rng.randint(0, 999)}?"
        )

    return [question() for _ in range(count)]


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def index_of(folder: Path, questions: list[str], **config: object) -> DecontaminationIndex:
    path = write(folder / "made.jsonl", [{"question": question} for question in questions])
    return DecontaminationIndex.build(
        DecontaminateConfig(
            against={"made": EvaluationSet(path=path, fields=["question"])}, **config
        )
    )


def library(limit: int = 3_000_000) -> list[str]:
    texts, size = [], 0
    for _, text in text_readers.module_documents("code", text_readers.module_files("code")):
        texts.append(text)
        size += len(text)
        if size > limit:
            break
    return texts


PLANTS = {
    "verbatim": lambda item, text: item,
    "case": lambda item, text: item.upper(),
    "punctuation": lambda item, text: "; ".join(plain_words(item)),
    "white space": lambda item, text: "\t\u00a0 ".join(item.split()),
    "line breaks": lambda item, text: "\n# ".join(
        " ".join(run) for run in itertools.zip_longest(*[iter(item.split())] * 5, fillvalue="")
    ),
    "quotes": lambda item, text: item.replace("\u2019", "'"),
    "at the start": lambda item, text: item + "\n" + text,
    "at the end": lambda item, text: text + "\n" + item,
    "in the middle": lambda item, text: (
        text[: len(text) // 2] + "\n" + item + "\n" + text[len(text) // 2 :]
    ),
    "its first words": lambda item, text: text + "\n" + " ".join(plain_words(item)[:13]),
    "its last words": lambda item, text: " ".join(plain_words(item)[-13:]) + "\n" + text,
    "in a JSON string": lambda item, text: json.dumps(
        {"prompt": f"Q: {item} A:"}, ensure_ascii=False
    ),
}


@pytest.mark.parametrize("how", PLANTS)
def test_planted_items_are_found(tmp_path: Path, how: str) -> None:
    questions = made_up(200, seed=1)
    index = index_of(tmp_path, questions)
    text = library(200_000)[-1]
    for number, question in enumerate(questions[::4]):
        hits = index.check(PLANTS[how](question, text))
        assert [(hit.set, hit.item) for hit in hits] == [("made", 4 * number + 1)]
        assert hits[0].ngrams >= 1
        match = hits[0].excerpt.split("[")[1].split("]")[0]
        assert match == hits[0].evaluation.split("[")[1].split("]")[0]
        assert len(match.split()) == 13


def test_text_that_was_never_exposed_gives_no_hit(tmp_path: Path) -> None:
    index = index_of(
        tmp_path, [*made_up(1000, seed=2), *made_up(1000, seed=3, shortest=8, longest=12)]
    )
    texts = [*library(), *made_up(500, seed=4)]
    assert sum(map(len, texts)) > 2_000_000
    assert not [hit for text in texts for hit in index.check(text)]


def test_twelve_words_in_a_row_are_no_hit_and_thirteen_are(tmp_path: Path) -> None:
    item = [f"word{n}" for n in range(30)]
    index = index_of(tmp_path, [" ".join(item)])
    for start in range(18):
        assert not index.check(" ".join(["before", *item[start : start + 12], "after"]))
        assert len(index.check(" ".join(["before", *item[start : start + 13], "after"]))) == 1
    assert not index.check(" ".join(reversed(item)))


def test_shorter_items_count_as_a_whole(tmp_path: Path) -> None:
    eight = "the man turned on the tap and waited"
    index = index_of(
        tmp_path,
        [
            eight,
            "the woman retired therefore she got a",
            "eight words to begin with, then a few more",
        ],
    )
    assert (index.sets[0].items, index.sets[0].unchecked_items) == (3, 1)
    assert [hit.item for hit in index.check(f"Then {eight.upper()}!")] == [1]
    assert not index.check("the man turned on the tap and")
    assert not index.check("the woman retired therefore she got a")
    assert not index.check("eight words to begin with, then a few")  # the head alone
    assert [
        hit.item for hit in index.check("Eight words to begin with; then a few more things")
    ] == [3]


def test_min_words_at_ngram_leaves_shorter_items_unchecked(tmp_path: Path) -> None:
    index = index_of(tmp_path, ["one two three four"], ngram=5, min_words=5)
    assert index.sets[0].unchecked_items == 1
    assert not index.check("one two three four")


def test_fields_count_each_on_its_own_or_joined(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"stem": "a b c d e f g h i j", "ends": ["k l m n", "o p q r"]}
    ]
    path = write(tmp_path / "a.jsonl", records)
    text = "a b c d e f g h i j k l m n"

    def hits(*fields: str, text: str = text) -> int:
        config = DecontaminateConfig(against={"a": EvaluationSet(path=path, fields=list(fields))})
        return len(DecontaminationIndex.build(config).check(text))

    assert hits("stem + ends") == 1
    assert hits("stem + ends", text="a b c d e f g h i j") == 0
    assert hits("stem", "ends", text="x k l m n o p q r x") == 0
    assert hits("stem") == 1
    assert hits("ends") == 0


def test_an_item_that_stands_in_many_sets_hits_each(tmp_path: Path) -> None:
    question = made_up(1, seed=5)[0]
    paths = [
        write(tmp_path / f"{n}.jsonl", [{"text": "another"}, {"text": question}]) for n in range(3)
    ]
    hits = DecontaminationIndex.build(
        DecontaminateConfig(
            against={f"s{n}": EvaluationSet(path=path) for n, path in enumerate(paths)}
        )
    ).check(question)
    assert [(hit.set, hit.item) for hit in hits] == [("s0", 2), ("s1", 2), ("s2", 2)]


def test_the_order_of_the_sets_makes_no_difference(tmp_path: Path) -> None:
    questions = made_up(60, seed=6)
    sets = {
        name: EvaluationSet(
            path=write(
                tmp_path / f"{name}.jsonl", [{"text": text} for text in questions[at : at + 30]]
            )
        )
        for name, at in (("a", 0), ("b", 15), ("c", 30))
    }
    first = DecontaminationIndex.build(DecontaminateConfig(against=sets))
    second = DecontaminationIndex.build(DecontaminateConfig(against=dict(reversed(sets.items()))))
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    assert first.hash == second.hash
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert [first.check(text) for text in questions] == [second.check(text) for text in questions]


def test_a_loaded_index_finds_the_same(tmp_path: Path) -> None:
    questions = [
        *made_up(50, seed=7),
        *made_up(50, seed=8, shortest=3, longest=12),
        "half \ud83d pair " * 9,
    ]
    index = index_of(tmp_path, questions)
    index.save(tmp_path / "deep" / "index.npz")
    loaded = DecontaminationIndex.load(tmp_path / "deep" / "index.npz")
    assert (loaded.sets, loaded.ngram, loaded.min_words, loaded.hash) == (
        index.sets,
        index.ngram,
        index.min_words,
        index.hash,
    )
    text = "\n".join(questions)
    assert loaded.check(text) == index.check(text)
    assert len(index.check(text)) > 60
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["index.npz"]


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    index_of(tmp_path, made_up(50, seed=9)).save(tmp_path / "index")
    data = (tmp_path / "index").read_bytes()
    for damaged in (data[: len(data) // 2], b"", data[:400] + bytes(400) + data[800:]):
        (tmp_path / "index").write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            DecontaminationIndex.load(tmp_path / "index")
    with pytest.raises(UserError, match="does not exist"):
        DecontaminationIndex.load(tmp_path / "nowhere")


def test_no_set_at_all_gives_no_hit() -> None:
    assert DecontaminationIndex.build(DecontaminateConfig()).check("some text " * 30) == []


@pytest.mark.parametrize("change", [{"ngram": 1}, {"min_words": 14}, {"min_words": 0}])
def test_lengths_out_of_range(change: dict[str, int]) -> None:
    with pytest.raises(UserError, match="must lie between"):
        DecontaminateConfig(**change).validate()


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no item"):
        index_of(tmp_path, [])


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    items=st.lists(st.lists(st.sampled_from("ab"), max_size=9), min_size=1, max_size=4),
    documents=st.lists(st.lists(st.sampled_from("abAB"), max_size=16), max_size=4),
    ngram=st.integers(3, 5),
    min_words=st.integers(2, 3),
)
def test_hit_if_and_only_if_words_are_shared(
    tmp_path: Path, items: list[list[str]], documents: list[list[str]], ngram: int, min_words: int
) -> None:
    index = index_of(tmp_path, [" ".join(item) for item in items], ngram=ngram, min_words=min_words)
    for document in documents:
        found = tuple(word.lower() for word in document)
        expected = []
        for number, item in enumerate(items, start=1):
            if len(item) >= ngram:
                runs = {tuple(item[at : at + ngram]) for at in range(len(item) - ngram + 1)}
            else:
                runs = {tuple(item)} if len(item) >= min_words else set()
            places = {
                at for run in runs for at in range(len(found)) if found[at : at + len(run)] == run
            }
            if places:
                expected.append((number, len(places)))
        assert [(hit.item, hit.ngrams) for hit in index.check(", ".join(document))] == expected


@pytest.mark.real_data
@pytest.mark.skipif(not (SHARED / "eval").is_dir(), reason=f"{SHARED}/eval is absent")
def test_public_sets() -> None:
    fields = {
        "arc_easy": ["query + choices"],
        "copa": ["query + choices"],
        "lambada_openai": ["context + continuation"],
        "openbook_qa": ["query + choices"],
        "piqa": ["query + choices"],
        "winogrande": ["context_options + continuation"],
    }
    against = {
        name: EvaluationSet(path=str(SHARED / "eval" / f"{name}.jsonl"), fields=named)
        for name, named in fields.items()
    }
    against["gsm8k"] = EvaluationSet(
        path=str(SHARED / "gsm8k" / "test.jsonl"), fields=["question", "answer"]
    )
    index = DecontaminationIndex.build(DecontaminateConfig(against=against))
    assert {described.name: described.items for described in index.sets}["gsm8k"] == 1319
    lines = (SHARED / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        hits = index.check(json.loads(line)["question"])
        assert ("gsm8k", number) in [(hit.set, hit.item) for hit in hits]
    assert not [hit for text in library() for hit in index.check(text)]
