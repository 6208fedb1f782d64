"""Splits follow the text and nothing else; the sample is uniform, bounded, and does not depend on the order."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lit_pretrain.prepare.config import SplitsConfig
from lit_pretrain.prepare.split import Sample, Splitter


def split_of(text: str, seed: int = 0, **fractions: float) -> str:
    splitter = Splitter(SplitsConfig(**fractions), seed)
    return splitter.split(splitter.key(text.encode()))


def test_fractions_are_met() -> None:
    counts = {"train": 0, "validation": 0, "test": 0}
    for n in range(20_000):
        counts[split_of(f"document {n}", validation=0.2, test=0.1)] += 1
    assert abs(counts["validation"] / 20_000 - 0.2) < 0.01  # three standard deviations
    assert abs(counts["test"] / 20_000 - 0.1) < 0.01


@given(text=st.text(max_size=20), seed=st.integers(-5, 5))
def test_text_alone_decides(text: str, seed: int) -> None:
    assert split_of(text, seed, validation=0.3, test=0.3) == split_of(text, seed, validation=0.3, test=0.3)
    assert split_of(text, seed, validation=0.0, test=0.0) == "train"
    if split_of(text, seed, validation=0.1, test=0.1) == "test":  # a larger validation split takes from training only
        assert split_of(text, seed, validation=0.5, test=0.1) == "test"


def test_seed_changes_the_split() -> None:
    held_out = [{n for n in range(1000) if split_of(str(n), seed, validation=0.1, test=0.0) == "validation"} for seed in (0, 1)]
    assert len(held_out[0] & held_out[1]) < 40


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=60), limit=st.integers(1, 400), shuffle=st.randoms())
def test_sample_is_bounded_and_does_not_depend_on_the_order(sizes: list[int], limit: int, shuffle: random.Random) -> None:
    splitter = Splitter(SplitsConfig(), 0)
    documents = [f"{n:03d}" + "é" * size for n, size in enumerate(sizes)]
    orders = [documents, shuffle.sample(documents, len(documents))]
    samples = []
    for order in orders:
        sample = Sample(limit)
        for text in order:
            sample.offer(splitter.key(text.encode()), text, len(text.encode()))
        samples.append(sample.texts())
    assert samples[0] == samples[1]
    size = sum(len(text.encode()) for text in samples[0])
    total = sum(len(text.encode()) for text in documents)
    assert min(limit, total) - 1 <= size <= limit  # the last document is cut at a whole character
    ranked = sorted(documents, key=lambda text: splitter.key(text.encode()))
    assert samples[0][:-1] == ranked[: len(samples[0]) - 1]
