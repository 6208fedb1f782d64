"""A missing segmenter is noticed before a run, or at the latest when the text has been read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_pretrain import words
from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.prepare import missing_segmenter

ENGLISH = "The boats left the harbour at noon and nobody saw where they went that day. "
TEXTS = {
    "zh": "老师昨天在学校里修理旧机器，农民在河边种植苹果和梨。",
    "ja": "先生は昨日学校で古い機械を直し、農家の人は川沿いにりんごを植えた。",
    "th": "ครูไปที่โรงเรียนเพื่อซ่อมเครื่องจักรเก่า ชาวนาปลูกแอปเปิล",
}
OPTIONS = ("--tokenizer.vocab_size=280", "--splits.validation=0", "--splits.test=0", "--workers=1")


@pytest.fixture(params=[False, True])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the segmenter is installed, wherever it is asked for."""
    if request.param:
        pytest.importorskip("icu4py", reason="needs the words extra")
    for module in (
        words, missing_segmenter, "lit_pretrain.prepare.filters.filter.has_segmenter",
        "lit_pretrain.prepare.stages.clean.has_segmenter",
    ):  # fmt: skip
        target = module if isinstance(module, str) else f"{module.__name__}.has_segmenter"
        monkeypatch.setattr(target, lambda: request.param)
    return bool(request.param)


def source(folder: Path, kind: str, text: str) -> dict[str, Any]:
    folder.mkdir()
    for number in range(4):
        content = (text + f" {number} ") * 20
        if kind == "jsonl":
            content = json.dumps({"text": content}) + "\n"
        (folder / f"{number}.{'jsonl' if kind == 'jsonl' else 'txt'}").write_text(content)
    return {"kind": kind, "path": str(folder)}


def test_the_warning_comes_before_the_run_and_names_source_and_cure(
    tmp_path: Path, prepare_here: Callable[..., Any], installed: bool
) -> None:
    sources = {
        "mixed": source(tmp_path / "a", "text", TEXTS["zh"]),
        "rows": source(tmp_path / "b", "jsonl", TEXTS["ja"]),
        "plain": source(tmp_path / "c", "text", ENGLISH),
        "unfiltered": {**source(tmp_path / "d", "text", TEXTS["th"]), "filters": ["Language"]},
    }
    (tmp_path / "a" / "2.txt").write_text(TEXTS["th"] * 20)
    result = prepare_here(
        f"--out={tmp_path / 'out'}", f"--sources={json.dumps(sources)}",
        "--filters=[{class_path: C4, init_args: {min_sentences: 1}}]", "--allow_empty=true",
        *OPTIONS,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = result.stderr.splitlines()
    warnings = [line for line in lines if "warning" in line]
    if installed:
        assert not warnings
    else:
        begin = next(n for n, line in enumerate(lines) if "read and clean" in line)
        assert [line in lines[:begin] for line in warnings] == [True, True]
        assert "sources.mixed holds Chinese and Thai: words are counted by white" in warnings[0]
        assert "sources.rows holds Japanese" in warnings[1]
        assert all("pip install 'lit_pretrain[words]'" in line for line in warnings)
    # The text goes its own way: without a segmenter no line of it has enough words.
    kept = Manifest.load(tmp_path / "out").sources["mixed"].tokens
    assert (kept > 0) == installed


def test_what_no_look_beforehand_shows_is_said_after_reading(
    tmp_path: Path, prepare_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as documents of a store, which are not fetched twice, or those far into a file."""
    monkeypatch.setattr(missing_segmenter, "has_segmenter", lambda: False)
    monkeypatch.setattr("lit_pretrain.prepare.stages.clean.has_segmenter", lambda: False)
    rows = [ENGLISH * 5] * 30 + [TEXTS["zh"] * 9] * 3 + [TEXTS["th"] * 9] * 2
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{n} {row}"}) + "\n" for n, row in enumerate(rows))
    )
    asked = f"--sources={json.dumps({'rows': {'kind': 'jsonl', 'path': str(file)}})}"
    result = prepare_here(f"--out={tmp_path / 'out'}", asked, "--filters=[FineWeb]", *OPTIONS)
    assert result.returncode == 0, result.stderr
    assert (
        "warning: sources.rows holds documents without spaces between words (3 in Chinese, 2 in"
        " Thai): words are counted by white space"
    ) in result.stderr
