"""Ids: of all documents of a source with one id, in whatever part, the first stays; in memory
by ranges.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.prepare.document_store import (
    Document,
    DocumentWriter,
    clean_file,
    read_documents,
)
from lit_pretrain.prepare.stages.ids import (
    DropTask,
    RepeatedIdsTask,
    hashes_file,
    id_hash,
    repeated_ids_file,
    save_hashes,
    with_ids_file,
)


def drop(
    work: Path, parts: list[list[str | None]], sources: list[int], ranges: int
) -> tuple[list[list[str]], list[dict[str, object]]]:
    """The origins that stay in each part, and what the tasks say."""
    for number, identities in enumerate(parts):
        documents = [
            Document(f"text {n}", f"{number}:{n}", {"id": i} if i is not None else {})
            for n, i in enumerate(identities)
        ]
        with DocumentWriter(with_ids_file(work, number)) as writer:
            for document in documents:
                writer.add(document)
        save_hashes(
            hashes_file(work, number),
            [key for d in documents if (key := id_hash(d, sources[number])) is not None],
        )
    numbers = tuple(range(len(parts)))
    for number in range(ranges):
        RepeatedIdsTask(work, numbers, ranges)(number, lambda done: None)
    everything = tuple(frozenset(range(len(part))) for part in parts)
    task = DropTask(work, numbers, tuple(sources), tuple(10 for _ in parts), everything, ranges, 2)
    results = [task(number, lambda done: None) for number in numbers]
    return [
        [document.origin for document in read_documents(clean_file(work, number))]
        for number in numbers
    ], results


PARTS = st.lists(
    st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), max_size=8), min_size=1, max_size=5
)


@settings(max_examples=60)
@given(parts=PARTS, ranges=st.integers(1, 4), data=st.data())
def test_the_first_of_each_id_stays(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str | None]], ranges: int, data
) -> None:
    sources = sorted(
        data.draw(st.lists(st.integers(0, 1), min_size=len(parts), max_size=len(parts)))
    )
    kept, results = drop(tmp_path_factory.mktemp("work"), parts, sources, ranges)
    seen: set[tuple[int, str]] = set()
    for number, part in enumerate(parts):
        expected, left = [], []
        for position, identity in enumerate(part):
            key = (sources[number], identity or "")
            if identity is not None and key in seen:
                continue
            left.append((position, len(left)))
            expected.append(f"{number}:{position}")
            seen.add(key)
        assert kept[number] == expected
        gone = {f"{number}:{position}" for position in range(len(part))} - set(expected)
        rejects = {record["origin"] for record in results[number].pop("rejects")}
        assert rejects <= gone
        assert len(rejects) == min(2, len(gone))
        assert results[number] == {
            "removed": len(part) - len(left),
            "bytes": 6 * (len(part) - len(left)),
            "sampled": left,
        }


def test_a_part_without_any_is_not_written_again(tmp_path: Path) -> None:
    drop(tmp_path, [["a", "b"], ["c"]], [0, 0], 1)
    assert clean_file(tmp_path, 0).samefile(with_ids_file(tmp_path, 0))
    assert not [path for path in tmp_path.rglob("*.tmp")]


def test_it_can_be_done_again(tmp_path: Path) -> None:
    """As after a kill between its file and its result."""
    parts: list[list[str | None]] = [["a", "b", "a"], ["b", "c"]]
    assert drop(tmp_path, parts, [0, 0], 2) == drop(tmp_path, parts, [0, 0], 2)
    assert repeated_ids_file(tmp_path, 1).is_file()
