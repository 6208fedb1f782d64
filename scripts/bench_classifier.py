"""Speed of a text classifier at scoring, on one core.

    python scripts/bench_classifier.py [--mb 20] [--repeats 5]

It trains a small classifier on the Python standard library (its modules against the prose of the
installed packages) and scores real text in documents of several sizes. Figures are medians of CPU
seconds of this process, so that what else the machine does counts little. Beside it stands how much
slower the whole chain of `gopher` gets when the classifier joins it, in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from bench_prepare import size_of, texts

from lit_pretrain.cli.classifier.examples import Examples
from lit_pretrain.cli.classifier.train_classifier import train_classifier
from lit_pretrain.prepare.document_store import Document
from lit_pretrain.prepare.filters.classifier import TextClassifier
from lit_pretrain.prepare.filters.filter import Chain

SIZES = (500, 2_000, 10_000, 100_000)
"""Characters of the documents."""


def cut(found: Sequence[Document], size: int) -> list[Document]:
    """Cut texts into documents of this size."""
    return [
        Document(each.text[begin : begin + size], each.origin)
        for each in found
        for begin in range(0, len(each.text), size)
    ]


def seconds(job: Callable[[], object]) -> float:
    """Measure the CPU seconds of a job."""
    begin = time.process_time()
    job()
    return time.process_time() - begin


def scoring(classifier: TextClassifier, documents: Sequence[Document]) -> float:
    """Measure the CPU seconds of scoring documents."""
    return seconds(lambda: [classifier.score(document.text) for document in documents])


def small_classifier() -> TextClassifier:
    """Train a classifier: prose of the installed packages against code."""
    sides = []
    for first, endings in enumerate(((".md", ".rst", ".txt"), (".py",))):
        chosen = cut(texts(1, endings), 4_000)
        sides.append(Examples({2 * n + first: d.text for n, d in enumerate(chosen)}))
    return train_classifier(*sides)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--mb", type=float, default=20, help="MB of text to score")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    found = texts(options.mb)
    classifier = small_classifier()
    print(f"{size_of(found):.1f} MB of {len(found):,} files")
    print("characters  documents   MB/s  µs each")
    for size in SIZES:
        documents = cut(found, size)
        spent = statistics.median(scoring(classifier, documents) for _ in range(options.repeats))
        print(
            f"{size:>10,} {len(documents):>10,} {size_of(documents) / spent:>6.1f}"
            f" {spent / len(documents) * 1e6:>8.0f}"
        )
    gopher = Chain(["gopher"])
    documents = cut(found, 4_000)[:2_000]
    alone, joined = [], []
    for _ in range(options.repeats):
        alone.append(seconds(lambda: [gopher(document) for document in documents]))
        joined.append(scoring(classifier, documents))
    ratio = 1 + statistics.median(joined) / statistics.median(alone)
    print(f"gopher and the classifier take {ratio:.2f} times as long as gopher")


if __name__ == "__main__":
    main()
