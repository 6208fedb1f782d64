"""Stepwise data: the tokens and labels of TRL's PRMTrainer, from its definition; and its rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_pretrain.batch import IGNORE_INDEX
from lit_pretrain.chat.messages import BadRow
from lit_pretrain.data import StepwiseData
from lit_pretrain.data.chat.formats import ROW_FORMATS
from lit_pretrain.data.chat.row_reader import read_row
from lit_pretrain.errors import UserError
from lit_pretrain.tokenizer.tokenizer import Tokenizer

WriteRows = Callable[..., str]
ROWS = [
    {
        "prompt": f"What is {i} + 1?",
        "completions": ["We add one.", f" It is {i + 1}.", "Done, <|im_end|> 🦊!"][: 1 + i % 3],
        "labels": [[True, 1, False], [True, False, False]][i % 2][: 1 + i % 3],
    }
    for i in range(40)
]


def prm_tokens(
    row: dict[str, Any], tokenizer: Tokenizer, *, separator: str, last_only: bool, limit: int
) -> tuple[list[int], list[int]]:
    """`PRMTrainer.tokenize_row` as published: ids, and the class of each token or -100."""
    prompt = [tokenizer.bos_id, *tokenizer.encode(row["prompt"])]
    labels = [int(label) for label in row["labels"]]
    if last_only:
        labels = [-100] * (len(labels) - 1) + labels[-1:]
    ids, classes = list(prompt), [-100] * len(prompt)
    for step, label in zip(row["completions"], labels, strict=True):
        piece = tokenizer.encode(step) + tokenizer.encode(separator)
        ids += piece
        classes += [-100] * (len(piece) - 1) + [label]
    return ids[:limit], classes[:limit]


def make(path: str, folder: Path, **options: Any) -> StepwiseData:
    return StepwiseData(
        **{
            "path": path, "format": "auto", "tokenizer": str(folder), "template": "plain",
            "seq_len": 128, "global_batch_rows": 8, "micro_batch_size": 4, "validation": 0.25,
            **options,
        }
    )  # fmt: skip


def rows_of(data: StepwiseData, split: str) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The sequences of a split as they are laid out in batches, each with its classes."""
    samples = (
        data.held_out(split)
        if split == "validation"
        else [data.samples.train(n) for n in range(data.samples.order.first(1))]
    )
    found = set()
    for batch in data.collate(samples):
        for b in range(len(batch.index_B)):
            inside = batch.doc_BT[b] == 0
            ids, right = batch.tokens_BT[b][inside].tolist(), batch.right_BT[b]
            assert (right[~inside] == IGNORE_INDEX).all()
            found.add((tuple(ids), tuple(right[inside].tolist())))
            # What is shown as learned, one place before, are the same tokens.
            assert torch.equal(batch.labels_BT[b, :-1] != IGNORE_INDEX, right[1:] != IGNORE_INDEX)
    return found


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("separator", ["\n", "\n\n", " ки", ""])
def test_tokens_and_labels_are_those_of_trl(
    separator: str, last_only: bool, write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    data = make(
        write_rows(ROWS), tokenizer_folder,
        step_separator=separator, train_on_last_step_only=last_only,
    )  # fmt: skip
    assert data.contract.provides == {"labels", "steps"}
    for split in ("train", "validation"):
        expected = {
            tuple(map(tuple, prm_tokens(
                row, data.tokenizer, separator=separator, limit=128,
                last_only=last_only and split == "train",
            )))
            for row in ROWS
        }  # fmt: skip
        found = rows_of(data, split)
        assert found <= expected
        assert len(found) == {"train": 40 - len(data.held_out("validation"))}.get(
            split, len(data.held_out("validation"))
        )


def test_a_special_token_may_separate_steps(write_rows: WriteRows, tokenizer_folder: Path) -> None:
    data = make(write_rows(ROWS), tokenizer_folder, step_separator="<|im_end|>", template="chatml")
    stop = data.tokenizer.special_tokens["<|im_end|>"]
    for ids, right in rows_of(data, "train"):
        judged = [i for i, label in enumerate(right) if label != IGNORE_INDEX]
        assert {ids[i] for i in judged} == {stop}
        # The prompt's own, and one for each step: the spelling within a step is text.
        assert ids.count(stop) == 1 + len(judged)
    assert "separator_within_step" in data.encoded.lines()[0]


def test_long_answers_keep_the_verdicts_on_what_is_left(
    write_rows: WriteRows, tokenizer_folder: Path
) -> None:
    row = {"prompt": "Hi", "completions": ["a" * 5, "b" * 5, "c" * 5], "labels": [1, 0, 1]}
    path = write_rows([{**row, "prompt": f"{i:02}"} for i in range(20)])
    found: dict[str, set[tuple[int, ...]]] = {}
    for truncation in ("keep_start", "keep_end"):
        data = make(path, tokenizer_folder, seq_len=10, truncation=truncation)
        found[truncation] = {
            tuple(label for label in right if label != IGNORE_INDEX)
            for _, right in rows_of(data, "train")
        }
        assert "truncated 20" in data.encoded.lines()[0]
    whole = prm_tokens(
        {**row, "prompt": "00"}, data.tokenizer, separator="\n", last_only=False, limit=10
    )[1]
    assert found["keep_start"] == {tuple(label for label in whole if label != IGNORE_INDEX)}
    assert found["keep_start"] <= {(1,), (1, 0)}
    assert found["keep_end"] <= {(1,), (0, 1)}
    with pytest.raises(UserError, match=r"no row is left(.|\n)*only one to be learned"):
        make(path, tokenizer_folder, seq_len=10, train_on_last_step_only=True).encoded  # noqa: B018
    last = make(
        path, tokenizer_folder, seq_len=10, train_on_last_step_only=True, truncation="keep_end"
    )
    assert all(sum(label == 1 for label in right) == 1 for _, right in rows_of(last, "train"))


@pytest.mark.parametrize(
    ("change", "reason", "mistake"),
    [
        ({"labels": [True]}, "steps", True),
        ({"completions": "abc"}, "steps", True),
        ({"labels": "ab"}, "steps", True),
        ({"labels": [True, None]}, "label", True),
        ({"labels": [True, -1]}, "label", True),
        ({"labels": [True, "+"]}, "label", True),
        ({"labels": [True, 0.5]}, "label", True),
        ({"completions": [], "labels": []}, "empty_answer", False),
        ({"completions": ["a", " "]}, "empty_answer", False),
        ({"prompt": " "}, "empty_prompt", False),
        ({"solution": "The text of it."}, "unread_field", True),
    ],
)
def test_wrong_rows_are_named(change: dict[str, Any], reason: str, mistake: bool) -> None:
    row = {"prompt": "Hi", "completions": ["a", "b"], "labels": [True, False], **change}
    with pytest.raises(BadRow) as bad:
        read_row(row, ROW_FORMATS["steps"], kind="stepwise")
    assert (bad.value.reason, bad.value.mistake) == (reason, mistake)


def test_what_rows_teach_is_said_before(write_rows: WriteRows, tokenizer_folder: Path) -> None:
    data = make(write_rows(ROWS), tokenizer_folder, validation=0.0)
    labels = [bool(label) for row in ROWS for label in row["labels"]]
    assert data.exposure(1).splitlines()[0].startswith("rows: the format is steps")
    assert data.exposure(1).endswith(
        f"\n{sum(labels)} steps are right, {len(labels) - sum(labels)} are wrong"
    )
    assert data.remarks() == []
    alike = [{**row, "labels": [True] * len(row["labels"])} for row in ROWS]
    assert (
        "every step that is learned is right"
        in make(write_rows(alike, "alike.jsonl"), tokenizer_folder).remarks()[0]
    )
    (batch,) = data.step_batches(0, 4)
    assert data.row_note(batch, 0).startswith("steps right")
    other = make(write_rows(ROWS), tokenizer_folder, step_separator=" ")
    last = make(write_rows(ROWS), tokenizer_folder, train_on_last_step_only=True)
    assert len({data.manifest_hash, other.manifest_hash, last.manifest_hash}) == 3
