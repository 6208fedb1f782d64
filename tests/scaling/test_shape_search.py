"""The shape for a time: steps that fit, seconds by parts, bits per byte, and what wins."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_pretrain.batch_sizes import BatchSizes, ScheduledBatch
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig
from lit_pretrain.scaling.published import published_law
from lit_pretrain.scaling.shape_search import (
    CPU,
    RACED,
    MeasuredCost,
    Text,
    TimedStep,
    bits_law,
    grid,
    reshaped,
    search_shapes,
    steps_within,
    useful_passes,
)

NET = ModelConfig(
    n_layer=6, width=384, n_head=6, activation="relu2", norm_weight=False, qk_norm=True,
    value_embeddings="alternate", residual_scalars=True,
)  # fmt: skip
TEXT = Text("data/embedded", 8192, 8_057_669, 30_713_982)
BATCH = BatchSizes.one(4096)
MEASURED = {(6, 384): (1.670, 144, 1.6054), (4, 256): (0.740, 324, 1.4471),
            (3, 192): (0.432, 556, 1.3884)}  # fmt: skip
"""Seconds of a step, steps of 240 s and bits per byte of shapes of the quickstart's recipe on two
idle cores, in bf16 (docs/experiments.md)."""


def shape(layers: int, width: int, vocabulary: int = 8192) -> ModelConfig:
    return reshaped(NET, layers, width, vocabulary)


def steps(*shapes: tuple[int, int]) -> list[TimedStep]:
    return [TimedStep(shape(*its), 4096, MEASURED[its][0], "") for its in shapes]


@pytest.mark.parametrize("anchor", list(MEASURED))
def test_one_measured_step_sets_the_others_right(anchor: tuple[int, int]) -> None:
    cost = MeasuredCost(CPU, steps(anchor))
    for its, (seconds, _, _) in MEASURED.items():
        near = 1e-12 if its == anchor else 0.12
        assert cost.seconds(shape(*its), 4096) == pytest.approx(seconds, rel=near)


def test_between_measured_steps_the_ratio_moves_evenly() -> None:
    cost = MeasuredCost(CPU, steps((6, 384), (3, 192)))
    ratios = [
        cost.seconds(net, 4096) / CPU.seconds(net, 4096)
        for net in (shape(2, 128), shape(3, 192), shape(4, 256), shape(6, 384), shape(8, 512))
    ]
    assert ratios[0] == pytest.approx(ratios[1])
    assert ratios[3] == pytest.approx(ratios[4])
    assert min(ratios[1], ratios[3]) < ratios[2] < max(ratios[1], ratios[3])


def test_the_law_agrees_with_what_was_raced() -> None:
    for its, (_, made, bits) in MEASURED.items():
        read = made * 4096 * TEXT.bytes_per_token
        assert RACED.terms(shape(*its), read).bits == pytest.approx(bits, rel=0.02)


def test_the_best_of_what_was_raced_wins() -> None:
    cost = MeasuredCost(CPU, steps(*MEASURED))
    found = search_shapes(
        NET, [TEXT], BATCH, minutes=4, seconds=cost.seconds, law=RACED, fits=lambda net: True
    )
    order = [(its.net.n_layer, its.net.width) for its in found.found]
    assert order.index((3, 192)) < order.index((4, 256)) < order.index((6, 384))
    by_shape = dict(zip(order, found.found, strict=True))
    assert found.best.bits <= by_shape[3, 192].bits <= 1.01 * found.best.bits
    for its, (seconds, made, _) in MEASURED.items():
        assert by_shape[its].step_seconds == pytest.approx(seconds)
        assert abs(by_shape[its].steps - made) <= 1
    assert found.own is by_shape[6, 384]


def test_more_time_takes_a_larger_network() -> None:
    sizes = []
    for minutes in (0.5, 4, 30, 240, 1440):
        found = search_shapes(
            NET, [Text("a", 8192, 1e12, 4e12)], BATCH, minutes=minutes, seconds=CPU.seconds,
            law=RACED, fits=lambda net: True,
        )  # fmt: skip
        sizes.append(6 * found.best.net.n_layer * found.best.net.width**2)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_little_text_takes_a_smaller_network_than_much() -> None:
    """Text that is read again teaches less, so that time is better spent on a larger network."""
    sizes = [
        search_shapes(
            NET, [Text("a", 8192, tokens, 4 * tokens)], BATCH, minutes=600, seconds=CPU.seconds,
            law=RACED, fits=lambda net: True,
        ).best.net.width
        for tokens in (1e5, 1e12)
    ]  # fmt: skip
    assert sizes[0] >= sizes[1]


def test_neighbours_differ_in_one_size_each() -> None:
    texts = [TEXT, Text("small", 4096, 8.93e6, 30.7e6)]
    found = search_shapes(
        NET, texts, BATCH, minutes=4, seconds=CPU.seconds, law=RACED, fits=lambda net: True
    )
    best = found.best
    for other in found.neighbours():
        differ = [
            its.net.n_layer != best.net.n_layer or its.net.width != best.net.width
            if name == "shape" else its.text != best.text
            for name in ("shape", "text") for its in [other]
        ]  # fmt: skip
        assert sum(differ) == 1
        assert other.bits >= best.bits
    assert [its.text for its in found.neighbours()].count(best.text) >= 2


def test_what_does_not_fit_in_memory_is_left_out() -> None:
    everything = search_shapes(
        NET, [TEXT], BATCH, minutes=4, seconds=CPU.seconds, law=RACED, fits=lambda net: True
    )
    narrow = search_shapes(
        NET, [TEXT], BATCH, minutes=4, seconds=CPU.seconds, law=RACED,
        fits=lambda net: net.width < 384,
    )  # fmt: skip
    assert narrow.too_large + len(narrow.found) == len(everything.found)
    assert narrow.own is None
    with pytest.raises(UserError, match="no shape fits in memory, of"):
        search_shapes(
            NET, [TEXT], BATCH, minutes=4, seconds=CPU.seconds, law=RACED, fits=lambda net: False
        )


def test_the_grid_keeps_the_networks_proportions() -> None:
    net = dataclasses.replace(NET, n_head=6, n_kv_head=2, ffn_width=768)
    shapes = [its for its, _ in grid(net, {"a": 8192, "b": 1024})]
    assert shapes[0] == net
    assert len({(its.n_layer, its.width, its.vocab_size) for its in shapes}) == len(shapes)
    for its in shapes:
        assert its.head_size == 64
        assert its.n_kv_head is None or its.n_head == 3 * its.n_kv_head
        assert its.ffn_size == pytest.approx(2 * its.width, abs=64)


@given(
    seconds=st.floats(0.01, 1e5),
    sizes=st.lists(st.sampled_from([64, 128, 256, 512]), min_size=1, max_size=3),
)
def test_steps_that_fit_take_no_longer_and_one_more_would(seconds: float, sizes: list[int]) -> None:
    begins = [0.0, 5120.0, 20480.0]
    batch = BatchSizes.scheduled(
        [ScheduledBatch(from_tokens=at, tokens=of) for at, of in zip(begins, sizes, strict=False)]
    )

    def of_step(tokens: int) -> float:
        return 0.01 + tokens / 1024

    made = steps_within(seconds, batch, of_step)
    spent = [of_step(batch.size(step)) for step in range(min(made + 1, 5000))]
    if made > 1 and made < 5000:
        assert sum(spent[:made]) <= seconds * (1 + 1e-6)
        assert sum(spent[: made + 1]) > seconds * (1 - 1e-6)


def test_passes_over_the_same_text_are_worth_less_and_less() -> None:
    worth = [useful_passes(passes) for passes in (0.3, 1, 2, 4, 16, 64, 1000)]
    assert worth[:2] == [0.3, 1]
    gains = [after - before for before, after in itertools.pairwise(worth)]
    assert all(gain > 0 for gain in gains)
    assert worth[3] > 3.7  # up to about four passes are nearly as good as new text
    assert worth[-1] < 17


def test_a_published_law_says_the_same_in_bytes() -> None:
    published = published_law("besiroglu")
    law = bits_law(published, TEXT)
    net, tokens = shape(24, 2048), 1e10
    per_token = 10.5e12 / 2.35e12
    nats = float(published.loss(law_count(net), tokens))
    assert law.terms(net, tokens * per_token).bits == pytest.approx(
        nats / 0.6931471805599453 / per_token
    )
    assert law.outside(net, tokens * per_token) == published.outside(law_count(net), tokens)
    with pytest.raises(UserError, match="of the form kaplan"):
        bits_law(published_law("kaplan"), TEXT)


def law_count(net: ModelConfig) -> int:
    from lit_pretrain.model.config import count_parameters

    return count_parameters(net).total
