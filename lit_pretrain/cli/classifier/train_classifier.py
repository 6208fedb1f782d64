"""Train a classifier on examples, and measure it on those that were held out.

Every fifth example of each side, by the hash of its text, is held out for the measures. On the
others, three folds choose how strongly weights are held back, and calibrate the scores. Both sides
weigh the same, however many examples they have. Nothing is drawn at random and no sum depends on
the number of threads: the same examples give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from lit_pretrain.cli.classifier.examples import Examples
from lit_pretrain.errors import UserError
from lit_pretrain.files import canonical_hash
from lit_pretrain.prepare.filters.classifier import (
    BUCKETS,
    KINDS,
    TextClassifier,
    ngram_buckets,
    text_blocks,
    word_spans,
)
from lit_pretrain.prepare.funnel import score_histogram

LEAST = 30
"""Fewest distinct examples of a side: a fifth of them measures it."""
CALIBRATION_BINS = 10
_HELD_OUT = 5
"""One example in so many is held out."""
_FOLDS = 3
_FEATURE = 16.0
"""Factor of a feature, the share of an n-gram among all of its kind, so that the strengths below
are near the best for texts of some hundred to some thousand bytes.
"""
_STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse strengths of the penalty to choose among: C of liblinear."""
_SHOWN_WORDS = 20
Vector = npt.NDArray[np.float64]


class CalibrationBin(TypedDict):
    """Held-out texts whose scores lie in a tenth of the scale."""

    texts: int
    mean_score: float
    positive: float
    """Share of the positive side, both sides weighing the same."""


class HeldOutMeasures(TypedDict):
    """What a classifier does to the examples that it was not trained on."""

    positive: int
    negative: int
    auc: float
    """Chance that a positive text scores higher than a negative one."""
    auc_interval: tuple[float, float]
    """95 % (DeLong et al. 1988)."""
    log_loss: float
    """Nats; ln 2 = 0.693 says nothing."""
    brier: float
    calibration_error: float
    """Mean distance of score and share over the bins (expected calibration error)."""
    calibration: list[CalibrationBin]
    positive_scores: list[int]
    """Histogram (`funnel.score_histogram`)."""
    negative_scores: list[int]
    positive_quantiles: list[float]
    """Scores that 0, 1, …, 1000 per mille of the texts do not exceed."""
    negative_quantiles: list[float]


def train_classifier(positive: Examples, negative: Examples) -> TextClassifier:
    """Train and measure a classifier; `about` of the result holds the measures.

    Raises:
        UserError: A side has too few examples, or both have the same ones.
    """
    both = positive.texts.keys() & negative.texts.keys()
    sides = {
        name: [text for key, text in side.texts.items() if key not in both]
        for name, side in (("negative", negative), ("positive", positive))
    }
    for name, texts in sides.items():
        if len(texts) < LEAST:
            gone = f" ({len(both):,} that both sides have are left out)" if both else ""
            raise UserError(
                f"--{name} holds {len(texts):,} distinct texts{gone}; a classifier needs at least"
                f" {LEAST} of each side, and hundreds to be of use. A text file is one text unless"
                " --separator cuts it, e.g. --separator '\\n\\n'"
            )
    texts = [*sides["negative"], *sides["positive"]]
    labels = np.repeat([0.0, 1.0], [len(sides["negative"]), len(sides["positive"])])
    # Numbers within a side: every fifth is held out, and folds take turns.
    number = np.concatenate([np.arange(len(side)) for side in sides.values()])
    held_out = number % _HELD_OUT == _HELD_OUT - 1
    whole = _features([text for text, out in zip(texts, held_out, strict=True) if not out])
    present = np.unique(whole.indices)  # buckets that no example has would cost time
    rows = whole[:, present]
    known, fold = labels[~held_out], number[~held_out] // _HELD_OUT % _FOLDS
    strength, margins, losses = _choose_strength(rows, known, fold)
    slope, shift = _calibrate(margins, known)
    fitted, bias = fit_logistic(rows, known, strength)
    weights, bias = np.zeros(BUCKETS), bias * slope + shift
    weights[present] = fitted * slope * _FEATURE
    scale = float(np.abs(weights).max()) / np.iinfo(np.int16).max
    about: dict[str, Any] = {
        "bias": bias,
        "scale": scale,
        "strength": strength,
        "log_loss_by_strength": {f"{c:g}": loss for c, loss in losses.items()},
        "examples": {
            name: {
                "texts": len(sides[name]),
                "bytes": sum(len(text.encode("utf-8", "surrogatepass")) for text in sides[name]),
                "read": side.read,
                "copies": side.copies,
                "bad": side.bad,
                "content": canonical_hash(sorted(map(str, side.texts.keys() - both))),
            }
            for name, side in (("positive", positive), ("negative", negative))
        },
        "in_both": len(both),
        "words": _strongest_words(texts, labels, weights),
    }
    integers = np.rint(weights / scale).astype(np.int16)
    measured = TextClassifier(integers, about)
    scores = np.array(
        [measured.score(text) for text, out in zip(texts, held_out, strict=True) if out]
    )
    about["held_out"] = measure_scores(scores, labels[held_out])
    return TextClassifier(integers, about)


# ------------------------------------------------------------------ features and fit


def _features(texts: Sequence[str]) -> sparse.csr_matrix:
    """Count n-grams: of each kind, the share of each bucket among all, [texts, BUCKETS]."""
    columns, values, ends = [], [], [0]
    for text in texts:
        blocks = [ngram_buckets(block) for block in text_blocks(text)]
        size = 0
        for kind in range(len(KINDS)):
            buckets = np.concatenate([block[kind] for block in blocks]).astype(np.int32)
            found, counts = np.unique(buckets, return_counts=True)
            columns.append(found)
            values.append(counts * (_FEATURE / max(1, len(buckets))))
            size += len(found)
        ends.append(ends[-1] + size)
    return sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.array(ends)),
        shape=(len(texts), BUCKETS),
    )


def _balance(labels: Vector) -> Vector:
    """Weigh the texts so that both sides sum to a half."""
    positive = labels.sum() / len(labels)
    weights: Vector = np.where(labels > 0.5, 0.5 / positive, 0.5 / (1 - positive)) / len(labels)
    return weights


def _dot(a: Vector, b: Vector) -> float:
    """Multiply two vectors. BLAS would add in another order for each number of threads."""
    return float((a * b).sum())


def fit_logistic(
    rows: sparse.csr_matrix, labels: Vector, strength: float, targets: Vector | None = None
) -> tuple[Vector, float]:
    """Fit a logistic regression whose sides weigh the same.

    Minimises Σ aᵢ loss(wᵀxᵢ + b, yᵢ) + |w|² / (2 n C) with Σ aᵢ = 1, by Newton steps whose linear
    systems conjugate gradients solve.

    Args:
        rows: Features, [texts, features].
        labels: 0 or 1, which weigh the sides, [texts].
        strength: C.
        targets: Probabilities to fit in place of the labels, [texts].

    Returns:
        Weights, [features], and bias.
    """
    a, y = _balance(labels), labels if targets is None else targets
    penalty = 1 / (strength * len(labels))
    columns = rows.T.tocsr()
    weights, bias = np.zeros(rows.shape[1]), 0.0
    start = math.inf

    def objective(w: Vector, b: float) -> float:
        margins = rows @ w + b
        return _dot(a, np.logaddexp(0, margins) - y * margins) + 0.5 * penalty * _dot(w, w)

    value = objective(weights, bias)
    for _ in range(_NEWTON_STEPS):
        chance = _sigmoid(rows @ weights + bias)
        slope = a * (chance - y)
        gradient, gradient_bias = columns @ slope + penalty * weights, float(slope.sum())
        norm = math.sqrt(_dot(gradient, gradient) + gradient_bias**2)
        start = norm if math.isinf(start) else start
        if norm <= _TOLERANCE * start:
            break
        curvature = a * chance * (1 - chance)
        step, step_bias = _newton_step(
            rows, columns, curvature, penalty, gradient, gradient_bias, 0.1 * norm
        )
        along = _dot(gradient, step) + gradient_bias * step_bias
        size = 1.0
        while size > _LEAST_STEP:
            tried = objective(weights + size * step, bias + size * step_bias)
            if tried <= value + 1e-4 * size * along:
                break
            size /= 2
        else:
            break  # rounding hides what is left to gain
        weights, bias, value = weights + size * step, bias + size * step_bias, tried
    return weights, bias


_NEWTON_STEPS, _GRADIENT_STEPS = 50, 60
_TOLERANCE, _LEAST_STEP = 1e-5, 1e-6


def _newton_step(
    rows: sparse.csr_matrix,
    columns: sparse.csr_matrix,
    curvature: Vector,
    penalty: float,
    gradient: Vector,
    gradient_bias: float,
    enough: float,
) -> tuple[Vector, float]:
    """Solve for the Newton step by conjugate gradients, until the residual is small enough."""
    step, step_bias = np.zeros_like(gradient), 0.0
    left, left_bias = -gradient, -gradient_bias
    way, way_bias = left.copy(), left_bias
    square = _dot(left, left) + left_bias**2
    for _ in range(_GRADIENT_STEPS):
        bent = curvature * (rows @ way + way_bias)
        product, product_bias = columns @ bent + penalty * way, float(bent.sum())
        curve = _dot(way, product) + way_bias * product_bias
        if curve <= 0:
            break
        length = square / curve
        step, step_bias = step + length * way, step_bias + length * way_bias
        left, left_bias = left - length * product, left_bias - length * product_bias
        before, square = square, _dot(left, left) + left_bias**2
        if math.sqrt(square) <= enough:
            break
        way, way_bias = left + square / before * way, left_bias + square / before * way_bias
    return step, step_bias


def _sigmoid(margins: Vector) -> Vector:
    chance: Vector = 0.5 * (1 + np.tanh(margins / 2))
    return chance


def _choose_strength(
    rows: sparse.csr_matrix, labels: Vector, fold: npt.NDArray[np.int64]
) -> tuple[float, Vector, dict[float, float]]:
    """Choose the strength whose calibrated log loss is least on folds that were left out.

    Returns:
        The strength, the margin of each text by the fit that did not see it, and the losses.
    """
    losses, margins = {}, {}
    for strength in _STRENGTHS:
        found = np.empty(len(labels))
        for left_out in range(_FOLDS):
            out = fold == left_out
            weights, bias = fit_logistic(rows[~out], labels[~out], strength)
            found[out] = rows[out] @ weights + bias
        slope, shift = _calibrate(found, labels)
        margins[strength] = found
        losses[strength] = balanced_log_loss(_sigmoid(found * slope + shift), labels)
    best = min(_STRENGTHS, key=losses.__getitem__)
    return best, margins[best], losses


def _calibrate(margins: Vector, labels: Vector) -> tuple[float, float]:
    """Fit slope and shift that turn margins into log-odds, with the targets of Platt (1999).

    They are (n₊ + 1) / (n₊ + 2) and 1 / (n₋ + 2), so that separable sides have a finite slope.
    """
    positive = float(labels.sum())
    targets = np.where(
        labels > 0.5, (positive + 1) / (positive + 2), 1 / (len(labels) - positive + 2)
    )
    column = sparse.csr_matrix(margins[:, None])
    slope, shift = fit_logistic(column, labels, 1e6, targets)
    # Sides that no n-gram tells apart have a slope around zero; scores must not turn round.
    return max(float(slope[0]), 1e-3), shift


# ------------------------------------------------------------------ measures


def balanced_log_loss(scores: Vector, labels: Vector) -> float:
    """Return the mean log loss, both sides weighing the same, in nats."""
    right = np.where(labels > 0.5, scores, 1 - scores)
    return _dot(_balance(labels), -np.log(np.maximum(right, 1e-6)))


def measure_scores(scores: Vector, labels: Vector) -> HeldOutMeasures:
    """Measure scores of texts whose sides are known.

    Args:
        scores: From 0 to 1, [texts].
        labels: 1 for the positive side, else 0, [texts].
    """
    weights = _balance(labels)
    place = np.minimum((scores * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    calibration, error = [], 0.0
    for bin_ in range(CALIBRATION_BINS):
        here = place == bin_
        weight = float(weights[here].sum())
        mean = _dot(weights[here], scores[here]) / weight if weight else 0.0
        share = _dot(weights[here], labels[here]) / weight if weight else 0.0
        error += weight * abs(mean - share)
        calibration.append(CalibrationBin(texts=int(here.sum()), mean_score=mean, positive=share))
    good, other = scores[labels > 0.5], scores[labels <= 0.5]
    auc, spread = _auc(good, other)
    return HeldOutMeasures(
        positive=len(good),
        negative=len(other),
        auc=auc,
        auc_interval=(max(0.0, auc - 1.96 * spread), min(1.0, auc + 1.96 * spread)),
        log_loss=balanced_log_loss(scores, labels),
        brier=_dot(weights, (scores - labels) ** 2),
        calibration_error=error,
        calibration=calibration,
        positive_scores=score_histogram(good),
        negative_scores=score_histogram(other),
        positive_quantiles=_quantiles(good),
        negative_quantiles=_quantiles(other),
    )


def _quantiles(scores: Vector) -> list[float]:
    """Return the scores at each per mille of the texts, each the score of one of them."""
    found = np.quantile(scores, np.arange(1001) / 1000, method="inverted_cdf")
    return [float(score) for score in found]


def _auc(good: Vector, other: Vector) -> tuple[float, float]:
    """Return the area under the ROC curve and its standard error (DeLong et al. 1988)."""
    ranks = stats.rankdata(np.concatenate([good, other]))
    # The share of the other side that a text beats, and of the good ones that beat another.
    beats = (ranks[: len(good)] - stats.rankdata(good)) / len(other)
    loses = 1 - (ranks[len(good) :] - stats.rankdata(other)) / len(good)
    variance = beats.var(ddof=1) / len(good) + loses.var(ddof=1) / len(other)
    return float(beats.mean()), math.sqrt(float(variance))


def _strongest_words(
    texts: Sequence[str], labels: Vector, weights: Vector
) -> Mapping[str, list[str]]:
    """List the words that move the scores of the two sides apart most, for a person to look at.

    A word counts by its weight times the difference of its mean share in the two sides.
    """
    shares = np.zeros((2, BUCKETS))
    spelt: dict[int, dict[bytes, int]] = {}
    wanted: set[int] = set()
    for pass_ in range(2):
        for text, label in zip(texts, labels, strict=True):
            block = text_blocks(text)[0]
            starts, ends, letters = word_spans(block)
            buckets = ngram_buckets(block)[0].astype(np.int64)
            if pass_ == 0 and len(buckets):
                np.add.at(shares[int(label)], buckets, 1 / len(buckets))
            elif wanted:
                lowered = letters.tobytes()
                for at in np.flatnonzero(np.isin(buckets, list(wanted))):
                    words = spelt.setdefault(int(buckets[at]), {})
                    word = lowered[starts[at] : ends[at]]
                    words[word] = words.get(word, 0) + 1
        if pass_ == 0:
            count = np.array([(labels <= 0.5).sum(), (labels > 0.5).sum()])[:, None]
            apart = weights * ((shares / count)[1] - (shares / count)[0])
            order = np.argsort(-apart, kind="stable")[: 6 * _SHOWN_WORDS]
            wanted = {int(bucket) for bucket in order if apart[bucket] > 0}
    found: dict[str, list[str]] = {"positive": [], "negative": []}
    for bucket in (int(bucket) for bucket in order if int(bucket) in spelt):
        side = found["positive" if weights[bucket] > 0 else "negative"]
        word = max(sorted(spelt[bucket]), key=spelt[bucket].__getitem__)
        if len(side) < _SHOWN_WORDS:
            side.append(word.decode("utf-8", "replace"))
    return found
