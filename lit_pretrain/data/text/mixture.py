"""Mixture: the share of each source in a run, the resulting data order, and what a run reads."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lit_pretrain.batch_sizes import SETTING, BatchSizes
from lit_pretrain.corpus.manifest import Manifest, rows_in
from lit_pretrain.data.text.order import Order
from lit_pretrain.data.text.stretches import Change, SourceBlocks
from lit_pretrain.errors import UserError
from lit_pretrain.skips import Skips

_SETTINGS = ("weights", "temperature", "max_epochs", "phases")


@dataclass(kw_only=True)
class Phase:
    """A mixture that holds from some point of a run until the next phase."""

    from_tokens: float
    """Begin of the phase in input tokens from the start of the run; rounded to the nearest
    optimizer step, a half up. With data.batch_schedule: to a multiple of the greatest common
    divisor of its sizes.
    """
    weights: dict[str, float] | None = None
    """Share of the samples by source name; null uses `temperature`, or else shares in proportion
    to the amount of text.
    """
    temperature: float | None = None
    """Shares in proportion to tokens^(1/temperature), in place of weights."""


@dataclass(kw_only=True)
class Mixture:
    """The mixture of a whole run: `weights` or `temperature`, and phases that replace them."""

    weights: dict[str, float] | None = None
    """Share of the samples by source name."""
    temperature: float | None = None
    """Shares in proportion to tokens^(1/temperature), in place of weights."""
    max_epochs: float | dict[str, float] | None = None
    """How often a source may be read over the whole run: one number for all, or by source name."""
    phases: Sequence[Phase] = ()
    """Changes of the mixture, in their order."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Mixture":
        """Build the mixture from the `data` of a config as plain values."""
        try:
            # float: YAML reads 15e6 as text, and `inspect order` takes configs that never went
            # through our parser.
            phases = [
                Phase(**{**phase, "from_tokens": float(phase["from_tokens"])})
                for phase in data.get("phases") or ()
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"data.phases: {error}; a phase has from_tokens, and weights or temperature"
            ) from None
        return cls(
            weights=data.get("weights"),
            temperature=data.get("temperature"),
            max_epochs=data.get("max_epochs"),
            phases=phases,
        )


def make_order(
    manifest: Manifest,
    mixture: Mixture,
    *,
    seq_len: int,
    batch: BatchSizes,
    seed: int,
    cycle: int,
    shuffle_chunks: int,
) -> Order:
    """Build the data order of training over a prepared dataset.

    Args:
        manifest: Manifest of the dataset.
        mixture: Shares of its sources.
        seq_len: Inputs per row.
        batch: Tokens of the optimizer steps; what they leave out, the order leaves out.
        seed: Seed of the order.
        cycle: Samples per cycle of the mixture.
        shuffle_chunks: Chunks whose rows are shuffled together.

    Raises:
        UserError: The mixture does not fit the data, or contradicts itself.
    """
    if seq_len < 1:
        raise UserError("data.seq_len must be at least 1")
    sources = [
        SourceBlocks(
            name, tuple(rows_in(chunk.tokens, seq_len) for chunk in source.splits["train"].chunks)
        )
        for name, source in manifest.sources.items()
    ]
    changes = _changes(mixture, sources, seq_len=seq_len, unit=batch.unit)
    return Order(
        sources,
        changes=changes,
        max_epochs=mixture.max_epochs,
        seed=seed,
        cycle=cycle,
        shuffle_chunks=shuffle_chunks,
        skips=batch.over(seq_len).left_out,
    )


def order_of(manifest: Manifest, data: Mapping[str, Any], skips: Skips = Skips()) -> Order:
    """Build the data order from the `data` of a config as plain values.

    A missing setting has the default of `TextData`. `skips` are of optimizer steps.
    """
    return make_order(
        manifest,
        Mixture.of(data),
        seq_len=data["seq_len"],
        batch=BatchSizes.of(data, skips),
        seed=data.get("seed", 0),
        cycle=data.get("cycle", 1024),
        shuffle_chunks=data.get("shuffle_chunks", 1),
    )


def check_past(
    manifest: Manifest,
    saved: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    step: int,
    checkpoint: str,
    skips: Skips = Skips(),
) -> None:
    """Refuse a fork that would have read other samples before the step at which it begins.

    Such a fork would skip some text and repeat other text.

    Args:
        manifest: Manifest of the data of both runs.
        saved: The `data` config of the run that is forked.
        now: The `data` config of the fork.
        step: Optimizer step of the checkpoint.
        checkpoint: Path of the checkpoint, for the message.
        skips: The steps that its run left out. Phases count them.

    Raises:
        UserError: Says how to state the mixture instead.
    """
    begin = BatchSizes.of(now).until(skips.gone(step))
    if order_of(manifest, now).begins_as(order_of(manifest, saved), begin // now["seq_len"]):
        return
    settings = (
        ", ".join(f"{name}: {saved[name]!r}" for name in _SETTINGS if saved.get(name) is not None)
        or "weights, temperature, max_epochs and phases null"
    )
    raise UserError(
        f"cannot fork {checkpoint} with this mixture: its {step:,} steps were read in another"
        " one, and a fork reads every source on from where it was. Keep the mixture of the run"
        f" ({settings}) and say what changes as a phase from token {begin} on, such as"
        f" data.phases: [{{from_tokens: {begin}, weights: {{...}}}}]"
    )


def temperature_weights(
    sources: Sequence[SourceBlocks], temperature: float, where: str
) -> dict[str, float]:
    """Compute weights in proportion to tokens^(1/temperature).

    1 follows the amount of text; a larger temperature gives small sources more, towards equal
    shares (temperature sampling, Arivazhagan et al. 2019, "Massively Multilingual Neural Machine
    Translation in the Wild"). The exponent α of XLM-R (Conneau et al. 2020, "Unsupervised
    Cross-lingual Representation Learning at Scale") is 1/temperature: its α = 0.3 is a temperature
    of 3.33. Tokens are counted in complete rows, as the default weights are.
    """
    if not 1 <= temperature < float("inf"):
        raise UserError(
            f"{where}={temperature:g} must be finite and at least 1: shares go with"
            " tokens^(1/temperature), 1 follows the amount of text, larger evens the sources out"
        )
    return {
        source.name: source.blocks ** (1 / temperature) if source.blocks else 0.0
        for source in sources
    }


def _changes(
    mixture: Mixture, sources: Sequence[SourceBlocks], *, seq_len: int, unit: int
) -> list[Change]:
    """Convert the phases of a mixture to changes of the weights at sample numbers.

    Every step of a schedule of batches is a whole number of units. So the rows are those of a run
    whose batch is one unit, and a phase can begin wherever a step does.

    Args:
        mixture: Weights and phases.
        sources: All sources of the data.
        seq_len: Inputs per row.
        unit: Tokens to a multiple of which a phase is rounded: the greatest common divisor of the
            batches.
    """
    phases = list(mixture.phases)
    settings = [f"data.phases[{i}]." for i in range(len(phases))]
    if not phases or phases[0].from_tokens > 0:
        phases.insert(
            0, Phase(from_tokens=0, weights=mixture.weights, temperature=mixture.temperature)
        )
        settings.insert(0, "data.")
    elif mixture.weights is not None or mixture.temperature is not None:
        raise UserError(
            "data.phases begins at token 0, so that data.weights and data.temperature would hold"
            " nowhere; set them to null, or begin the phases later"
        )
    # `StepSize` refuses a batch that does not divide, and shows the arithmetic.
    rows = max(1, unit // seq_len)
    changes: list[Change] = []
    step = -1
    for phase, setting in zip(phases, settings, strict=True):
        if phase.weights is not None and phase.temperature is not None:
            raise UserError(
                f"{setting}weights and {setting}temperature exclude each other; set one of them to"
                " null"
            )
        if not 0 <= phase.from_tokens < float("inf"):
            raise UserError(
                f"{setting}from_tokens={phase.from_tokens:g} must be finite and not negative"
            )
        before, step = (
            step,
            math.floor(Fraction(phase.from_tokens) / unit + Fraction(1, 2)),
        )
        if step <= before:
            raise UserError(
                f"{setting}from_tokens={phase.from_tokens:,.0f} is step {step}, but the phase"
                f" before it begins at step {before} (of {unit:,} tokens): phases"
                " stand in their order, one optimizer step or more apart"
            )
        weights, where = phase.weights, f"{setting}weights"
        if phase.temperature is not None:
            where = f"{setting}temperature"
            weights = temperature_weights(sources, phase.temperature, where)
        changes.append(Change(step * rows, weights, where))
    return changes


# ---------------------------------------------------------------------- what a run will read

EPOCHS_LIKE_NEW = 4
"""Up to about this many epochs, repeated text lowers the loss nearly as much as new text; beyond,
it is worth less and less (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models").
"""


def check_amount(
    order: Order, *, seq_len: int, batch: BatchSizes, scheduled: bool, location: str
) -> None:
    """Refuse text that does not fill a single batch.

    Args:
        order: Data order of the run.
        seq_len: Inputs per row.
        batch: Inputs per optimizer step.
        scheduled: Whether a schedule states them.
        location: Where the data lies, for the message.

    Raises:
        UserError: The sources of the mixture hold fewer tokens.
    """
    used = [max(weights) > 0 for weights in zip(*order.weights, strict=True)]
    rows = sum(
        source.blocks for source, is_used in zip(order.sources, used, strict=True) if is_used
    )
    if rows * seq_len < batch.largest:
        named = f"{SETTING}: tokens" if scheduled else "data.global_batch_tokens"
        raise UserError(
            f"{location} holds {rows:,} rows × {seq_len} = {rows * seq_len:,} training tokens in"
            " the sources of the mixture, fewer than one batch of"
            f" {named}={batch.largest:,}; add text, or lower it"
        )


def check_length(order: Order, *, steps: int, batch: BatchSizes, seq_len: int) -> None:
    """Refuse a run that continues after every source has reached its cap of epochs.

    Args:
        order: Data order of the run.
        steps: Length of the run in optimizer steps.
        batch: Rows of the steps over all devices.
        seq_len: Inputs per row.

    Raises:
        UserError: Names the longest run that the caps allow.
    """
    if order.end is None or batch.first(steps) <= order.end:
        return
    most = batch.whole(order.end)
    by_then = ", ".join(
        f"{source.name} {epochs:.4g}"
        for source, epochs in zip(order.sources, _epochs(order, order.end), strict=True)
    )
    raise UserError(
        f"the run of {steps:,} steps reads {batch.first(steps):,} rows, but after {order.end:,} no"
        f" source of its mixture may be read any more (data.max_epochs; epochs by then: {by_then})."
        f" The longest run is max_steps={most}, max_tokens={batch.planned.first(most) * seq_len};"
        " shorten it, raise data.max_epochs, add text, or give weight to a source that has text"
        " left"
    )


def exposure(order: Order, manifest: Manifest, *, samples: int, seq_len: int) -> str:
    """Tabulate what a run reads of each source, and add warnings.

    The columns are source, tokens, weight in each phase, share of the run's tokens, and epochs.

    Args:
        order: Data order of the run.
        manifest: Manifest of the data.
        samples: Rows that the run reads.
        seq_len: Inputs per row.
    """
    reach = order.skips.gone(samples)
    epochs = _epochs(order, samples)
    tokens = [manifest.sources[source.name].splits["train"].tokens for source in order.sources]
    if len(order.sources) == 1:
        lines = [
            f"mixture: {order.sources[0].name} alone, {tokens[0]:,} tokens, {epochs[0]:.2f} epochs"
        ]
    else:
        phases = [change for change in order.changes if change.begin < reach]
        titles = (
            ["weight"]
            if len(phases) == 1
            else [f"from {change.begin * seq_len:,}" for change in phases]
        )
        weights = [
            [f"{w / sum(column):.4f}" for w in column] for column in order.weights[: len(phases)]
        ]
        shares = [f"{count / samples:.2%}" for count in order.counts(samples)]
        columns = [
            ["source", *(source.name for source in order.sources)],
            ["tokens", *(f"{n:,}" for n in tokens)],
            *([title, *column] for title, column in zip(titles, weights, strict=True)),
            ["share", *shares],
            ["epochs", *(f"{e:.2f}" for e in epochs)],
        ]
        lines = [f"mixture over {samples * seq_len:,} tokens:", *_table(columns)]
    lines += [
        f"{name} has been read as often as data.max_epochs allows after {n * seq_len:,} tokens"
        for name, n in _leaves(order, samples)
    ]
    lines += [
        f"warning: the phase from {change.begin * seq_len:,} tokens begins after the end of the run"
        for change in order.changes
        if change.begin >= reach
    ]
    lines += [
        f"warning: {source.name} is read {e:.1f} times; beyond about {EPOCHS_LIKE_NEW} epochs"
        " repeated text is worth less and less (Muennighoff et al. 2023): add text, lower its"
        " weight or set data.max_epochs"
        for source, e in zip(order.sources, epochs, strict=True)
        if e > EPOCHS_LIKE_NEW
    ]
    return "\n".join(lines)


def unique_tokens(order: Order, *, samples: int, seq_len: int) -> int:
    """Count the distinct training tokens that a run reads."""
    counts = order.counts(samples)
    return seq_len * sum(
        min(count, source.blocks) for count, source in zip(counts, order.sources, strict=True)
    )


def _epochs(order: Order, samples: int) -> list[float]:
    return [
        count / max(source.blocks, 1)
        for count, source in zip(order.counts(samples), order.sources, strict=True)
    ]


def _leaves(order: Order, samples: int) -> Iterator[tuple[str, int]]:
    """Yield each source that reaches its cap within the run, with the samples read until then."""
    moments = [(stretch.begin, stretch.before) for stretch in order.stretches]
    if order.last_place is not None:
        moments.append((order.last_place, order.counts_before(order.last_place)))
    for s, (source, limit) in enumerate(zip(order.sources, order.limits, strict=True)):
        moment = next(
            (order.skips.kept_until(place) for place, gone in moments if gone[s] == limit), None
        )
        if moment is not None and moment <= samples:
            yield source.name, moment


def _table(columns: Sequence[Sequence[str]]) -> list[str]:
    """Join columns to lines; align the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in columns]
    aligned = [
        [cell.rjust(w) if i else cell.ljust(w) for cell in column]
        for i, (column, w) in enumerate(zip(columns, widths, strict=True))
    ]
    return ["  ".join(row) for row in zip(*aligned, strict=True)]
