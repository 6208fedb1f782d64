"""The best share of a source stays: the same documents however it is cut, counted and recorded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_pretrain.corpus.manifest import Manifest
from lit_pretrain.files import file_sha256
from lit_pretrain.prepare.filters.classifier import TextClassifier


@pytest.fixture
def config(tmp_path: Path, classifier_file: Path, dataset: Path) -> dict[str, Any]:
    """Two files of stories, sums and code, of which the best quarter stays."""
    raw = tmp_path / "raw"
    raw.mkdir()
    sources = json.loads((dataset / "manifest.json").read_text())["sources"]
    folder = Path(sources["story"]["path"])
    lines = [
        {**json.loads(line), "id": f"{name}-{number // 2}"}
        for name in ("code", "sums", "story")
        for number, line in enumerate((folder / f"{name}.jsonl").read_text().splitlines()[:80])
    ]
    for part in (0, 1):
        chosen = "".join(json.dumps(line) + "\n" for line in lines[part::2])
        (raw / f"{part}.jsonl").write_text(chosen)
    return {
        "out": str(tmp_path / "data"),
        "sources": {"web": {"kind": "jsonl", "path": str(raw)}},
        "filters": [
            {"class_path": "Classifier", "init_args": {"path": str(classifier_file), "keep": 0.25}}
        ],
        "tokenizer": {"vocab_size": 300},
        "splits": {"validation": 0.1, "test": 0.0},
        "workers": 1,
        "keep_rejects": 2,
    }


def prepared(prepare_here, config: dict[str, Any], tmp_path: Path, **more: Any) -> Any:
    file = tmp_path / "prepare.yaml"
    file.write_text(yaml.safe_dump({**config, **more}))
    return prepare_here("--config", file)


def documents(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in Path(config["out"]).glob("*/*/documents.jsonl")
        for line in file.read_text().splitlines()
    ]


def texts(config: dict[str, Any]) -> list[tuple[str, str]]:
    folder = Path(config["sources"]["web"]["path"])
    return [
        (f"{file.name}:{number}", json.loads(line)["text"])
        for file in sorted(folder.iterdir())
        for number, line in enumerate(file.read_text().splitlines(), start=1)
    ]


def test_the_best_share_stays(prepare_here, config, classifier_file: Path, tmp_path: Path) -> None:
    result = prepared(prepare_here, config, tmp_path)
    assert result.returncode == 0, result.stderr
    classifier = TextClassifier.load(classifier_file)
    everything = texts(config)
    ranked = sorted(everything, key=lambda pair: -classifier.score(pair[1]))
    total = sum(len(text.encode()) for _, text in everything)
    expected, size = set[str](), 0
    for origin, text in ranked:
        if size >= total / 4:
            break
        expected.add(origin)
        size += len(text.encode())
    lowest = min(classifier.score(text) for origin, text in everything if origin in expected)
    expected |= {origin for origin, text in everything if classifier.score(text) >= lowest}
    kept = documents(config)
    assert {row["origin"] for row in kept} == expected
    by_origin = dict(everything)
    for row in kept:
        score = classifier.score(by_origin[row["origin"]])
        assert row["fields"]["quality"] == f"{score:.6f}"
    manifest = Manifest.load(config["out"])
    read, filtered, best, _ = manifest.sources["web"].funnel
    assert (filtered.name, best.name) == ("Classifier", "keep_best")
    assert filtered.documents == read.documents == len(everything)
    reason, count = next(iter(best.removed.items()))
    assert reason == f"score_below_{lowest:.6f}"
    assert count == len(everything) - len(expected)
    histogram = [0] * 20
    for _, text in everything:
        histogram[min(19, int(classifier.score(text) * 20))] += 1
    assert list(filtered.scores) == histogram
    assert manifest.versions[f"file {classifier_file}"] == f"sha256:{file_sha256(classifier_file)}"
    assert re.search(r"web: scores of Classifier from 0 to 1: [▁-█·]{20}\n", result.stdout)
    rejects = [
        json.loads(line)
        for line in (Path(config["out"]) / "rejects.jsonl").read_text().splitlines()
    ]
    assert {row["step"] for row in rejects} == {"keep_best"}
    assert len(rejects) == 2


def test_parts_and_ids_change_nothing(prepare_here, config, tmp_path: Path) -> None:
    source = {**config["sources"]["web"], "fields": {"id": "id"}}
    config["sources"] = {"web": source}
    funnels, kept = [], []
    for place, part_bytes in (("whole", 10**9), ("parts", 1000)):
        config["out"] = str(tmp_path / place)
        result = prepared(prepare_here, config, tmp_path, part_bytes=part_bytes)
        assert result.returncode == 0, result.stderr
        manifest = Manifest.load(config["out"])
        funnels.append(manifest.sources["web"].funnel)
        kept.append(sorted(row["origin"] for row in documents(config)))
    assert kept[0] == kept[1]
    assert [step.name for step in funnels[0]] == ["read", "Classifier", "keep_best", "ids", "store"]
    for one, other in zip(*funnels, strict=True):
        assert (one.documents, one.bytes, one.removed, one.scores) == (
            other.documents, other.bytes, other.removed, other.scores,
        )  # fmt: skip
    # The first with an id of those that are good enough stays, not the first of all.
    assert len(kept[0]) == len({row["fields"]["id"] for row in documents(config)})


def test_another_classifier_is_another_dataset(
    prepare_here, config, classifier_file: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(classifier_file.read_bytes())
    config["filters"][0]["init_args"]["path"] = str(own)
    assert prepared(prepare_here, config, tmp_path).returncode == 0
    assert "nothing to do" in prepared(prepare_here, config, tmp_path).stderr
    classifier = TextClassifier.load(own)
    TextClassifier(-classifier.weights, classifier.about).save(own)
    result = prepared(prepare_here, config, tmp_path)
    assert result.returncode == 2
    assert f"content of file {own}: sha256:" in result.stderr


def test_a_filter_of_ones_own_may_score_and_keep_a_share(
    prepare_here, config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_scores.py").write_text(
        "from lit_pretrain.prepare.filters.filter import Verdict\n"
        "class Longest:\n"
        "    keep_share = 0.5\n"
        "    def __call__(self, document, view):\n"
        "        return Verdict(True, score=min(1.0, len(document.text) / 1e4))\n"
        "def wrong(document, view):\n"
        "    return Verdict(True, score=2.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    config["filters"] = ["own_scores.Longest"]
    result = prepared(prepare_here, config, tmp_path)
    assert result.returncode == 0, result.stderr
    by_origin = dict(texts(config))
    kept = {row["origin"] for row in documents(config)}
    shortest = min(len(by_origin[origin]) for origin in kept)
    assert all(len(text) <= shortest for origin, text in by_origin.items() if origin not in kept)
    result = prepared(
        prepare_here, config, tmp_path, out=str(tmp_path / "b"), filters=["own_scores.wrong"]
    )
    assert result.returncode == 2
    assert "gave the score 2.0; it must be from 0 to 1" in result.stderr
