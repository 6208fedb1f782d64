"""Mixture: which share of a run comes from which source, as a config says it, and the data order that follows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Optional, Union

from lit_pretrain.data.manifest import Manifest, rows_in
from lit_pretrain.data.order import Order
from lit_pretrain.data.stretches import Change, SourceBlocks
from lit_pretrain.errors import UserError

_SETTINGS = ("weights", "temperature", "max_epochs", "phases")


@dataclass(kw_only=True)
class Phase:
    """A mixture that holds from some point of the run on, until the next phase."""

    from_tokens: float
    """Where it begins, in input tokens from the start of the run; rounded to the nearest whole optimizer step, a half up."""
    weights: Optional[dict[str, float]] = None
    """Share of the samples by source name; null follows `temperature`, or else the amount of text in each source."""
    temperature: Optional[float] = None
    """Shares in proportion to tokens^(1/temperature), in place of weights."""


@dataclass(kw_only=True)
class Mixture:
    """The mixture of a whole run: `weights` or `temperature` until the first phase, then the phases; caps over all of them."""

    weights: Optional[dict[str, float]] = None
    """Share of the samples by source name."""
    temperature: Optional[float] = None
    """Shares in proportion to tokens^(1/temperature), in place of weights."""
    max_epochs: Optional[Union[float, dict[str, float]]] = None
    """How often a source may be read: one number for all, or by source name."""
    phases: Sequence[Phase] = ()
    """Changes, in their order."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Mixture":
        """The mixture in the `data` of a config, as plain values."""
        try:
            # float: to YAML 15e6 is a text, and a file that never went through our parser may be inspected.
            phases = [Phase(**{**phase, "from_tokens": float(phase["from_tokens"])}) for phase in data.get("phases") or ()]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"data.phases: {error}; a phase has from_tokens, and weights or temperature") from None
        return cls(weights=data.get("weights"), temperature=data.get("temperature"), max_epochs=data.get("max_epochs"), phases=phases)


def make_order(
    manifest: Manifest,
    mixture: Mixture,
    *,
    seq_len: int,
    global_batch_tokens: int,
    seed: int,
    cycle: int,
    shuffle_chunks: int,
) -> Order:
    """The data order of training over a prepared dataset.

    Raises:
        UserError: The mixture does not fit the data, or contradicts itself.
    """
    if seq_len < 1 or global_batch_tokens < 1:
        raise UserError(f"{'data.seq_len' if seq_len < 1 else 'data.global_batch_tokens'} must be at least 1")
    sources = [
        SourceBlocks(name, tuple(rows_in(chunk.tokens, seq_len) for chunk in source.splits["train"].chunks))
        for name, source in manifest.sources.items()
    ]
    changes = _changes(mixture, sources, seq_len=seq_len, global_batch_tokens=global_batch_tokens)
    return Order(sources, changes=changes, max_epochs=mixture.max_epochs, seed=seed, cycle=cycle, shuffle_chunks=shuffle_chunks)


def order_of(manifest: Manifest, data: Mapping[str, Any]) -> Order:
    """The same from the `data` of a config, as plain values; what is missing has the default of `TextData`."""
    return make_order(
        manifest,
        Mixture.of(data),
        seq_len=data["seq_len"],
        global_batch_tokens=data["global_batch_tokens"],
        seed=data.get("seed", 0),
        cycle=data.get("cycle", 1024),
        shuffle_chunks=data.get("shuffle_chunks", 1),
    )


def check_past(manifest: Manifest, saved: Mapping[str, Any], now: Mapping[str, Any], *, step: int, where: str) -> None:
    """Refuse a fork that would have read other samples until the step at which it begins: it would skip some text and repeat other.

    Args:
        manifest: The data of both runs.
        saved: The `data` of the run that is forked.
        now: The `data` of the fork.
        step: Optimizer steps of the checkpoint.
        where: The checkpoint, for the message.

    Raises:
        UserError: Says how the fork can have its mixture.
    """
    tokens, rows = now["global_batch_tokens"], now["global_batch_tokens"] // now["seq_len"]
    if order_of(manifest, now).begins_as(order_of(manifest, saved), step * rows):
        return
    settings = (
        ", ".join(f"{name}: {saved[name]!r}" for name in _SETTINGS if saved.get(name) is not None)
        or "weights, temperature, max_epochs and phases null"
    )
    raise UserError(
        f"cannot fork {where} with this mixture: its {step:,} steps were read in another one, and a fork reads every source on from where "
        f"it was. Keep the mixture of the run ({settings}) and say what changes as a phase from token {step * tokens} on, such as "
        f"data.phases: [{{from_tokens: {step * tokens}, weights: {{...}}}}]"
    )


def temperature_weights(sources: Sequence[SourceBlocks], temperature: float, where: str) -> dict[str, float]:
    """Weights in proportion to tokens^(1/temperature).

    1 follows the text; larger gives small sources more than their text, towards equal shares (temperature sampling, Arivazhagan et al.
    2019, "Massively Multilingual Neural Machine Translation in the Wild"). The exponent α of XLM-R (Conneau et al. 2020, "Unsupervised
    Cross-lingual Representation Learning at Scale") is 1/temperature: its α = 0.3 is a temperature of 3.33. Tokens are counted in complete
    rows, as the default weights are.
    """
    if not 1 <= temperature < float("inf"):
        raise UserError(
            f"{where}={temperature:g} must be finite and at least 1: shares go with tokens^(1/temperature), 1 follows the amount of text, "
            "larger evens the sources out"
        )
    return {source.name: source.blocks ** (1 / temperature) if source.blocks else 0.0 for source in sources}


def _changes(mixture: Mixture, sources: Sequence[SourceBlocks], *, seq_len: int, global_batch_tokens: int) -> list[Change]:
    """The mixture in sample numbers and weights."""
    phases = list(mixture.phases)
    settings = [f"data.phases[{i}]." for i in range(len(phases))]
    if not phases or phases[0].from_tokens > 0:
        phases.insert(0, Phase(from_tokens=0, weights=mixture.weights, temperature=mixture.temperature))
        settings.insert(0, "data.")
    elif mixture.weights is not None or mixture.temperature is not None:
        raise UserError(
            "data.phases begins at token 0, so that data.weights and data.temperature would hold nowhere; set them to null, or begin the "
            "phases later"
        )
    rows = max(1, global_batch_tokens // seq_len)  # a batch that does not divide is refused elsewhere, with its arithmetic
    changes: list[Change] = []
    step = -1
    for phase, setting in zip(phases, settings, strict=True):
        if phase.weights is not None and phase.temperature is not None:
            raise UserError(f"{setting}weights and {setting}temperature exclude each other; set one of them to null")
        if not 0 <= phase.from_tokens < float("inf"):
            raise UserError(f"{setting}from_tokens={phase.from_tokens:g} must be finite and not negative")
        before, step = step, math.floor(Fraction(phase.from_tokens) / global_batch_tokens + Fraction(1, 2))
        if step <= before:
            raise UserError(
                f"{setting}from_tokens={phase.from_tokens:,.0f} is step {step}, but the phase before it begins at step {before} (of "
                f"{global_batch_tokens:,} tokens): phases stand in their order, one optimizer step or more apart"
            )
        weights, where = phase.weights, f"{setting}weights"
        if phase.temperature is not None:
            where = f"{setting}temperature"
            weights = temperature_weights(sources, phase.temperature, where)
        changes.append(Change(step * rows, weights, where))
    return changes
