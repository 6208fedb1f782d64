"""`classifier train` and `report`: what they measure is so, and mistakes are one message."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_pretrain.cli.classifier.examples import read_examples
from lit_pretrain.cli.classifier.train_classifier import fit_logistic, measure_scores
from lit_pretrain.prepare.filters.classifier import TextClassifier
from tests.test_cli import here


def train(out: Path, positive: object, negative: object, *more: object) -> tuple[int, str, str]:
    return here(*map(str, (
        "classifier", "train", "--positive", positive, "--negative", negative, "--out", out, *more,
    )))  # fmt: skip


def test_a_report_says_what_the_classifier_is_worth(
    classifier_file: Path, classifier_examples: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    code, out, err = here(
        "classifier", "report", str(classifier_file), "--text", str(classifier_examples),
        "--json", "--html", str(page),
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    # What was held out: every fifth of each side, in the order of the hashes.
    sides = [
        list(read_examples("--x", [str(classifier_examples / name)]).texts.values())
        for name in ("negative.jsonl", "positive")
    ]
    held_out = [side[4::5] for side in sides]
    classifier = TextClassifier.load(classifier_file)
    other, good = ([classifier.score(text) for text in side] for side in held_out)
    wins = [(a > b) + 0.5 * (a == b) for a in good for b in other]
    assert found["held_out"]["auc"] == pytest.approx(np.mean(wins))
    assert found["held_out"]["positive"] == len(good)
    assert sum(found["held_out"]["negative_scores"]) == len(other)
    assert found["examples"]["positive"]["texts"] == len(sides[1])
    losses = [-np.mean(np.log(good)), -np.mean(np.log(1 - np.array(other)))]
    assert found["held_out"]["log_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["held_out"]["auc"] > 0.95
    assert {"fox", "hen", "owl", "cat"} & set(found["words"]["positive"])
    scores = [classifier.score(text) for side in sides for text in side]
    sizes = [len(text.encode()) for side in sides for text in side]
    for row in found["text"]["thresholds"]:
        kept = sum(n for s, n in zip(scores, sizes, strict=True) if s >= row["threshold"])
        more = sum(n for s, n in zip(scores, sizes, strict=True) if s > row["threshold"])
        assert more < row["share"] * sum(sizes) <= kept
    html = page.read_text()
    assert "<svg" in html
    assert found["sha256"] in html
    table = here("classifier", "report", str(classifier_file)).out
    assert f"AUC                {found['held_out']['auc']:.4f}" in table
    assert found["sha256"][:16] in table


def test_the_same_examples_give_the_same_file(
    run_cli, classifier_examples: Path, classifier_file: Path, tmp_path: Path
) -> None:
    """In another process with other threads, from other files in another order."""
    lines = (classifier_examples / "negative.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[100:] + lines[:5]))
    (tmp_path / "b.jsonl").write_text("".join(lines[4:100]))
    result = run_cli(
        "classifier", "train", "--positive", classifier_examples / "positive", "--negative",
        "b.jsonl", "a.jsonl", "--out", "q.safetensors", env={"OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found, before = (
        TextClassifier.load(file) for file in (tmp_path / "q.safetensors", classifier_file)
    )
    assert (found.weights == before.weights).all()
    assert found.about["bias"] == before.about["bias"]
    assert found.about["held_out"] == before.about["held_out"]
    assert found.about["examples"]["negative"]["copies"] > 0


def test_the_fit_is_the_optimum() -> None:
    from scipy import optimize, sparse

    rng = np.random.default_rng(0)
    dense = rng.normal(size=(60, 9)) * (rng.random((60, 9)) < 0.5)
    labels = (dense[:, 0] + rng.normal(size=60) > 0.5).astype(float)
    weights, bias = fit_logistic(sparse.csr_matrix(dense), labels, 10.0)
    a = np.where(labels > 0, 0.5 / labels.sum(), 0.5 / (60 - labels.sum()))

    def loss(point: np.ndarray) -> float:
        margins = dense @ point[:-1] + point[-1]
        penalty = (point[:-1] ** 2).sum() / (2 * 60 * 10.0)
        return float((a * np.logaddexp(0, -(2 * labels - 1) * margins)).sum() + penalty)

    best = optimize.minimize(loss, np.zeros(10), tol=1e-12)
    assert loss(np.append(weights, bias)) <= best.fun + 1e-9
    assert weights == pytest.approx(best.x[:-1], abs=1e-3)


def test_calibrated_scores_have_no_calibration_error() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(200_000)
    labels = (rng.random(200_000) < scores).astype(float)
    found = measure_scores(scores, labels)
    assert found["calibration_error"] < 0.01
    assert found["auc"] == pytest.approx(5 / 6, abs=0.005)
    low, high = found["auc_interval"]
    assert high - low == pytest.approx(4 * 0.00091, rel=0.1)


def test_no_difference_is_no_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        lines = [
            json.dumps({"text": " ".join(rng.choice(list("abcdefgh"), 30))}) for _ in range(99)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "q.safetensors"
    code, said, err = train(out, tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--json")
    assert (code, err) == (0, "")
    held_out = json.loads(said)["held_out"]
    assert held_out["auc_interval"][0] < 0.5 < held_out["auc_interval"][1]
    assert held_out["log_loss"] == pytest.approx(np.log(2), abs=0.05)


@pytest.fixture
def mistakes(tmp_path: Path, classifier_examples: Path, dataset: Path) -> Path:
    """A folder with everything that cannot be an example."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "few.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "fields.jsonl").write_text('{"content": "one"}\n' * 40)
    (tmp_path / "broken.jsonl").write_text("not JSON\n" * 40)
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    shutil.copytree(dataset, tmp_path / "dataset")
    return tmp_path


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        ("nowhere", "--positive {} does not exist"),
        ("empty", "--positive {} holds no file that can be read"),
        ("images", "--positive {} holds no file that can be read"),
        ("images/a.png", "--positive {} holds no file that can be read"),
        ("few.jsonl", "--positive holds 2 distinct texts; a classifier needs at least 30"),
        ("blank.txt", "--positive {} holds no text"),
        ("fields.jsonl", "name the field with the text by --text_field"),
        ("broken.jsonl", "40 of 40 records cannot be used, the first in broken.jsonl:1"),
        ("latin.txt", "convert it to UTF-8"),
        ("dataset", "is a prepared dataset"),
        ("same", "0 distinct texts (120 that both sides have are left out)"),
    ],
)
def test_mistakes_are_one_message(
    mistakes: Path, positive: str, message: str, classifier_examples: Path
) -> None:
    negative = classifier_examples / "negative.jsonl"
    place = negative if positive == "same" else mistakes / positive
    code, out, err = train(mistakes / "q.safetensors", place, negative)
    assert (code, out) == (2, "")
    assert message.format(place) in err
    assert err.count("\n") == 1
    assert not (mistakes / "q.safetensors").exists()


def test_empty_options_are_refused(classifier_examples: Path, tmp_path: Path) -> None:
    for option in ("--separator", "--text_field"):
        examples = classifier_examples / "positive"
        code, _, err = train(tmp_path / "q.safetensors", examples, examples, option, "")
        assert code == 2
        assert f"{option} is empty" in err
    code, _, err = train(tmp_path / "q", examples, examples, "--max_bytes", "0")
    assert (code, "--max_bytes 0 must be at least 1" in err) == (2, True)


def test_places_are_tried_before_the_work(classifier_examples: Path, tmp_path: Path) -> None:
    for option in ("--out", "--html"):
        (tmp_path / "file").write_text("")
        result = here(
            "classifier", "train", "--positive", "nowhere", "--negative", "nowhere",
            "--out", str(tmp_path / "q.safetensors"), option, str(tmp_path / "file" / "x"),
        )  # fmt: skip
        assert result.code == 2
        assert f"{option}={tmp_path / 'file' / 'x'} cannot be written" in result.err


def test_files_are_read_as_prepare_reads_them(tmp_path: Path) -> None:
    """A folder of several kinds, packed and hidden files, a separator, another field, a limit."""
    import gzip

    folder = tmp_path / "folder"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "hidden.txt").write_text("hidden")
    (folder / "A.TXT").write_text("first\n\nsecond")
    (folder / "b.jsonl").write_text('{"body": "third"}\n{"body": "first"}\n')
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"fourth"))
    found = read_examples("--x", [str(folder)], text_field="body", separator="\n\n")
    assert sorted(found.texts.values()) == ["first", "fourth", "second", "third"]
    assert (found.read, found.copies) == (5, 1)
    few = read_examples("--x", [str(folder)], text_field="body", separator="\\n\\n", max_bytes=12)
    assert list(few.texts.items()) == list(found.texts.items())[: len(few.texts)]
    assert few.bytes == sum(map(len, few.texts.values())) <= 12
    assert len(few.texts) == 2
