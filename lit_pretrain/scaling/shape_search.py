"""The shape for a time: of a grid of layers, widths and vocabularies, the one of the lowest loss.

More parameters learn more from a token, and leave time for fewer of them. Here the steps that fit
the time come from seconds, which small networks spend at another rate than FLOPs say: those of a
machine (`StepCost`, fitted to measured steps) or of a known device (`step_time`).

Losses are in bits per byte, because those of different vocabularies compare. A law of the bits
takes the parameters of a network, its vocabulary and the bytes of text that it reads, E + A /
N^alpha + B V^gamma / S^beta. Text that is read again counts less: S' = U + U R (1 - exp(-(S/U - 1)
/ R)), R = 15.4 (Muennighoff et al. 2023, eq. 5).
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lit_pretrain.batch_sizes import BatchSizes
from lit_pretrain.errors import UserError
from lit_pretrain.model.config import ModelConfig, count_parameters
from lit_pretrain.scaling.published import PublishedLaw, published_law

HEAD = 64
"""Channels of a head in the grid."""
ASPECT = (30.0, 140.0)
"""Width per layer in the grid; the race's shapes and most published networks lie within."""
_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
_SHALLOWEST, _DEEPEST = 3, 128
"""Layers of the grid. To copy from earlier text takes two layers at least, and networks of two had
not learned it by the end of a short run, where three had (docs/experiments.md): a law of parameters
and text cannot tell."""
SHOWN = 5
"""Shapes that a proposal lists."""
NATS_PER_BIT = math.log(2)

# ------------------------------------------------------------------ the text


@dataclass(frozen=True)
class Text:
    """A prepared dataset, as far as the choice of a shape asks."""

    path: str
    vocab_size: int
    """Rows of the embedding and of the head."""
    tokens: float
    """Distinct training tokens."""
    bytes: float
    """Their bytes."""

    @property
    def bytes_per_token(self) -> float:
        """Return the bytes of a token."""
        return self.bytes / self.tokens


def useful_passes(passes: float) -> float:
    """Return how many passes over new text these passes over the same text are worth."""
    if passes <= 1:
        return passes
    half = published_law("muennighoff").params["R_D"]
    return 1 + half * (1 - math.exp(-(passes - 1) / half))


# ------------------------------------------------------------------ the loss


class Terms(NamedTuple):
    """What a loss in bits per byte is made of."""

    rest: float
    """What no network and no text of this kind would learn."""
    network: float
    """What a larger network would learn."""
    text: float
    """What more text, or more steps, would teach."""

    @property
    def bits(self) -> float:
        """Return the loss."""
        return sum(self)


Counted = Literal["blocks", "matmul", "total", "nonembed"]


def size_by(net: ModelConfig, which: Counted) -> int:
    """Return N as a law counts it; blocks: what multiplies activations, but for the head."""
    counts = count_parameters(net)
    if which == "blocks":
        return counts.matmul - net.vocab_size * net.width
    return counts.counted(which)


@dataclass(frozen=True)
class BitsLaw:
    """Bits per byte of size, vocabulary and text: E + A / N^alpha + B V^gamma / S^beta."""

    name: str
    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float
    counts: Counted
    """Which parameters N counts."""
    parameters: tuple[float, float]
    """Smallest and largest N among the runs that it was fitted to."""
    bytes: tuple[float, float]
    """Fewest and most bytes among these runs."""
    gamma: float = 0.0
    """Of the vocabulary: the more tokens there are, the less often each is read. 0 where a law does
    not know."""
    vocabularies: tuple[float, float] = (0, math.inf)
    """Smallest and largest vocabulary among these runs."""

    def terms(self, net: ModelConfig, read: float) -> Terms:
        """Compute the loss of a network that has read so many bytes of new text."""
        n = size_by(net, self.counts)
        text = self.b * net.vocab_size**self.gamma / read**self.beta
        return Terms(self.e, self.a / n**self.alpha, text)

    def outside(self, net: ModelConfig, read: float) -> list[str]:
        """Say how a run lies outside those of the law."""
        said = []
        for name, value, (low, high) in (
            ("N", size_by(net, self.counts), self.parameters), ("S", read, self.bytes),
            ("V", net.vocab_size, self.vocabularies),
        ):  # fmt: skip
            if value > 1.01 * high:
                said.append(f"{name} {value / high:,.1f} × above the largest of its runs")
            elif value < 0.99 * low:
                said.append(f"{name} {low / value:,.1f} × below the smallest of its runs")
        return said


_PUBLISHED = published_law().params
RACED = BitsLaw(
    name="raced",
    source=(
        "E, A, B and gamma fitted to 7 runs of configs/pretrain/muon.yaml in other shapes on"
        " Python's standard library, of 2 to 4 minutes on two cores, one seed each (worst off by"
        " 4 %); exponents of besiroglu (python scripts/shape_law.py)"
    ),
    e=0.4708,
    a=40.8,
    b=53.33,
    alpha=_PUBLISHED["alpha"],
    beta=_PUBLISHED["beta"],
    gamma=0.155,
    counts="blocks",
    parameters=(1.33e6, 1.06e7),
    bytes=(2.25e6, 8.68e6),
    vocabularies=(2048, 8192),
)
"""Of small networks.

The head and the tables are left out of N: what they cost is time, and what a vocabulary costs in
text is in gamma.
"""
BYTES_PER_TOKEN = {"MassiveText": (10.5e12 / 2.35e12, "Rae et al. 2021, section 3.1")}
"""Of the text that published laws were fitted to, with the source."""


def bits_law(law: PublishedLaw, text: Text) -> BitsLaw:
    """Read a law of tokens as one of bytes.

    A law of nats per token speaks of the tokens of its own text. A fit to runs of one's own speaks
    of those of the dataset.

    Raises:
        UserError: It has another form, or the bytes of its tokens are not known.
    """
    if law.form not in ("chinchilla", "tied"):
        raise UserError(
            f"--minutes compares shapes by a law of the form E + A/N^a + B/D^b, and {law.name} is"
            f" of the form {law.form}: leave --law out, or name besiroglu"
        )
    known = [value for name, value in BYTES_PER_TOKEN.items() if name in law.unit]
    own = law.note == ""  # `find_law` has read it from a file
    if not known and not own:
        raise UserError(f"the bytes of a token of {law.name} are not known: name besiroglu")
    per_token, cited = (text.bytes_per_token, "") if own else known[0]
    scale = 1.0 if law.unit.startswith("bits") else 1 / (NATS_PER_BIT * per_token)
    p = law.params
    beta = p["alpha" if law.form == "tied" else "beta"]
    told = f"; {per_token:.2f} bytes a token ({cited})" if cited else ""
    return BitsLaw(
        name=law.name,
        source=law.citation + told,
        e=p["E"] * scale,
        a=p["A"] * scale,
        b=p["B"] * scale * per_token**beta,
        alpha=p["alpha"],
        beta=beta,
        counts=law.counts,
        parameters=law.parameters,
        bytes=(law.tokens[0] * per_token, law.tokens[1] * per_token),
    )


# ------------------------------------------------------------------ the time

Seconds = Callable[[ModelConfig, int], float]
"""Seconds of an optimizer step of some tokens."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step on a CPU, in parts that grow with different sizes of a network.

    The proportions are those of one machine; the steps that were measured on another one set the
    whole right (`MeasuredCost`).
    """

    products: float
    """Of a FLOP of a matrix product of weights."""
    channel: float
    """Of a channel of a token in a layer: attention, norms, activations."""
    logit: float
    """Of a logit beside its product: softmax and its gradient."""
    parameter: float
    """Of a parameter in the optimizer's update, once a step."""

    def seconds(self, net: ModelConfig, tokens: int) -> float:
        """Compute the seconds of a step of some tokens."""
        counts = count_parameters(net)
        return (
            self.products * 6 * counts.matmul * tokens
            + self.channel * net.n_layer * net.width * tokens
            + self.logit * net.vocab_size * tokens
            + self.parameter * counts.total
        )


CPU = StepCost(products=1.83e-12, channel=7.7e-8, logit=2.0e-9, parameter=6.7e-9)
"""Fitted to the steps of 18 shapes of `muon.yaml`, 2 × 192 to 6 × 384, taken in turn
on two cores: worst off by 8 % (python scripts/shape_law.py --seconds)."""


class TimedStep(NamedTuple):
    """An optimizer step that was taken."""

    net: ModelConfig
    tokens: int
    seconds: float
    date: str


@dataclass(frozen=True)
class MeasuredCost:
    """`StepCost`, set right by measured steps: exact where one was taken, between them by ratio."""

    cost: StepCost
    measured: Sequence[TimedStep]

    def __post_init__(self) -> None:
        assert self.measured

    def seconds(self, net: ModelConfig, tokens: int) -> float:
        """Compute the seconds of a step; ratios to the model are interpolated by its logarithm."""
        here = self.cost.seconds(net, tokens)
        points = sorted(
            (math.log(modelled), math.log(seconds / modelled))
            for shape, size, seconds, _ in self.measured
            for modelled in [self.cost.seconds(shape, size)]
        )
        x, xs = math.log(here), [point[0] for point in points]
        after = bisect_left(xs, x)
        if after == 0 or after == len(points):
            return here * math.exp(points[min(after, len(points) - 1)][1])
        (x0, y0), (x1, y1) = points[after - 1 : after + 1]
        return here * math.exp(y0 + (y1 - y0) * (x - x0) / (x1 - x0))


def steps_within(seconds: float, batch: BatchSizes, of_step: Callable[[int], float]) -> int:
    """Count the whole steps that fit, at least one.

    Args:
        seconds: The time.
        batch: Tokens of the steps.
        of_step: Seconds of a step of some tokens.
    """
    planned = batch.planned
    steps, left = 0, seconds
    for size, end in zip(planned.sizes, [*planned.begins[1:], None], strict=True):
        fit = math.floor(left / of_step(size) + 1e-9)
        if end is None or steps + fit < end:
            return max(1, steps + fit)
        left -= (end - steps) * of_step(size)
        steps = end
    raise AssertionError("the last size has no end")


# ------------------------------------------------------------------ the search


@dataclass(frozen=True)
class ShapeCandidate:
    """A shape with what fits the time."""

    net: ModelConfig
    text: Text
    step_seconds: float
    """Of the last step."""
    steps: int
    tokens: int
    terms: Terms

    @property
    def label(self) -> str:
        """Name it: layers × width."""
        return f"{self.net.n_layer} × {self.net.width}"

    @property
    def bits(self) -> float:
        """Return the bits per byte that the law forecasts."""
        return self.terms.bits

    @property
    def passes(self) -> float:
        """Return how often the text is read."""
        return self.tokens / self.text.tokens

    @property
    def useful_bytes(self) -> float:
        """Return the bytes of new text that what is read is worth."""
        return useful_passes(self.passes) * self.text.bytes


def grid(net: ModelConfig, rows: Mapping[str, int]) -> Iterator[tuple[ModelConfig, str]]:
    """Yield the network in every shape of the grid, itself first, with the dataset of each.

    Args:
        net: The network of the config. Its proportions stay: key and value heads to heads, and a
            hidden size that was given to the width.
        rows: Rows of the embedding for the tokenizer of each dataset.
    """
    for path, vocabulary in rows.items():
        yield dataclasses.replace(net, vocab_size=vocabulary), path
        for heads in _STEPS:
            for layers in _STEPS:
                width = HEAD * heads
                aspect = width / layers
                if not _SHALLOWEST <= layers <= _DEEPEST or not ASPECT[0] <= aspect <= ASPECT[1]:
                    continue
                if (layers, width) == (net.n_layer, net.width):
                    continue
                yield reshaped(net, layers, width, vocabulary), path


def reshaped(net: ModelConfig, layers: int, width: int, vocabulary: int) -> ModelConfig:
    """Give the network another depth, width and vocabulary, with heads of 64 channels."""
    heads = width // HEAD
    groups = net.n_head // net.kv_heads
    shared = heads % groups == 0
    ffn = net.ffn_width
    return dataclasses.replace(
        net, n_layer=layers, width=width, n_head=heads, head_dim=None, vocab_size=vocabulary,
        n_kv_head=None if net.n_kv_head is None or not shared else heads // groups,
        ffn_width=None if ffn is None else HEAD * max(1, round(ffn * width / net.width / HEAD)),
    )  # fmt: skip


@dataclass(frozen=True)
class ShapeSearch:
    """What a search has found, lowest loss first."""

    law: BitsLaw
    found: Sequence[ShapeCandidate]
    too_large: int
    """Shapes that do not fit in memory."""
    own: ShapeCandidate | None
    """The config's shape on its dataset; None where it does not fit in memory."""

    @property
    def best(self) -> ShapeCandidate:
        """Return the proposal."""
        return self.found[0]

    def neighbours(self) -> list[ShapeCandidate]:
        """List the best's neighbours in the grid: in depth, width and vocabulary."""
        best = self.best
        depth, width, text = best.net.n_layer, best.net.width, best.text
        same_text = [its for its in self.found if its.text == text]
        by_depth = [its for its in same_text if its.net.width == width]
        by_width = [its for its in same_text if its.net.n_layer == depth]
        near = [
            *_either_side(by_depth, best, lambda its: its.net.n_layer),
            *_either_side(by_width, best, lambda its: its.net.width),
            *(
                its
                for its in self.found
                if (its.net.n_layer, its.net.width) == (depth, width) and its.text != text
            ),
        ]
        return sorted(near, key=lambda its: its.bits)


def _either_side(
    others: Sequence[ShapeCandidate], best: ShapeCandidate, size: Callable[[ShapeCandidate], int]
) -> list[ShapeCandidate]:
    below = [other for other in others if size(other) < size(best)]
    above = [other for other in others if size(other) > size(best)]
    return [*sorted(below, key=size)[-1:], *sorted(above, key=size)[:1]]


def search_shapes(
    net: ModelConfig,
    texts: Sequence[Text],
    batch: BatchSizes,
    *,
    minutes: float,
    seconds: Seconds,
    law: BitsLaw,
    fits: Callable[[ModelConfig], bool],
) -> ShapeSearch:
    """Forecast every shape of the grid at equal time.

    Args:
        net: The network of the config, whose recipe all shapes take.
        texts: The dataset of the config, then others of the same text.
        batch: Tokens of the steps.
        minutes: Training time.
        seconds: Seconds of a step.
        law: Forecasts the loss.
        fits: Whether a network fits in memory.

    Raises:
        UserError: No shape fits in memory.
    """
    by_path = {text.path: text for text in texts}
    found, too_large, own = list[ShapeCandidate](), 0, None
    for shape, path in grid(net, {text.path: text.vocab_size for text in texts}):
        if not fits(shape):
            too_large += 1
            continue
        text = by_path[path]

        def of_step(tokens: int, shape: ModelConfig = shape) -> float:
            return seconds(shape, tokens)

        steps = steps_within(60 * minutes, batch, of_step)
        planned = batch.planned
        tokens = planned.first(steps)
        read = useful_passes(tokens / text.tokens) * text.bytes
        candidate = ShapeCandidate(
            shape, text, of_step(planned.size(steps - 1)), steps, tokens, law.terms(shape, read)
        )
        found.append(candidate)
        if shape == dataclasses.replace(net, vocab_size=texts[0].vocab_size) and text is texts[0]:
            own = candidate
    if not found:
        raise UserError(
            f"no shape fits in memory, of {too_large:,} that were tried: smaller micro-batches or"
            " shorter rows would"
        )
    return ShapeSearch(law, sorted(found, key=lambda its: its.bits), too_large, own)
