"""Exposure: how much of every source a run will read, as a table before it begins."""

from collections.abc import Iterator, Sequence

from lit_pretrain.data.manifest import Manifest
from lit_pretrain.data.order import Order
from lit_pretrain.errors import UserError

EPOCHS_LIKE_NEW = 4
"""Up to about as many epochs, repeated text lowers the loss nearly as much as new text would; then it is worth less and less (Muennighoff
et al. 2023, "Scaling Data-Constrained Language Models")."""


def check_amount(order: Order, *, seq_len: int, global_batch_tokens: int, where: str) -> None:
    """Refuse text that does not fill one batch.

    Args:
        order: The order of the run.
        seq_len: Inputs per row.
        global_batch_tokens: Inputs per optimizer step.
        where: Where the data lie, for the message.

    Raises:
        UserError: The sources of the mixture hold less.
    """
    used = [max(weights) > 0 for weights in zip(*order.weights, strict=True)]
    rows = sum(source.blocks for source, is_used in zip(order.sources, used, strict=True) if is_used)
    if rows * seq_len < global_batch_tokens:
        raise UserError(
            f"{where} holds {rows:,} rows × {seq_len} = {rows * seq_len:,} training tokens in the sources of the "
            f"mixture, fewer than one batch of data.global_batch_tokens={global_batch_tokens:,}; add text, or lower it"
        )


def check_length(order: Order, *, steps: int, rows: int, seq_len: int) -> None:
    """Refuse a run that goes on when no source may be read any more.

    Args:
        order: The order of the run.
        steps: Its length in optimizer steps.
        rows: Rows of a step over all ranks.
        seq_len: Inputs per row.

    Raises:
        UserError: Names the longest run that the caps allow.
    """
    if order.end is None or steps * rows <= order.end:
        return
    most = order.end // rows
    by_then = ", ".join(f"{source.name} {epochs:.4g}" for source, epochs in zip(order.sources, _epochs(order, order.end), strict=True))
    raise UserError(
        f"the run of {steps:,} steps reads {steps * rows:,} rows, but after {order.end:,} no source of its mixture may be read any more "
        f"(data.max_epochs; epochs by then: {by_then}). The longest run is max_steps={most}, max_tokens={most * rows * seq_len}; shorten "
        "it, raise data.max_epochs, add text, or give weight to a source that has text left"
    )


def exposure(order: Order, manifest: Manifest, *, steps: int, rows: int, seq_len: int) -> str:
    """The table: source, tokens, weight in every phase, share of the run's tokens, epochs; then what is worth a warning.

    Args:
        order: The order of the run.
        manifest: The data.
        steps: Length of the run in optimizer steps.
        rows: Rows of a step over all ranks.
        seq_len: Inputs per row.
    """
    samples = steps * rows
    epochs = _epochs(order, samples)
    tokens = [manifest.sources[source.name].splits["train"].tokens for source in order.sources]
    if len(order.sources) == 1:
        lines = [f"mixture: {order.sources[0].name} alone, {tokens[0]:,} tokens, {epochs[0]:.2f} epochs"]
    else:
        phases = [change for change in order.changes if change.begin < samples]
        titles = ["weight"] if len(phases) == 1 else [f"from {change.begin * seq_len:,}" for change in phases]
        weights = [[f"{w / sum(column):.4f}" for w in column] for column in order.weights[: len(phases)]]
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
        f"{name} has been read as often as data.max_epochs allows after {n * seq_len:,} tokens" for name, n in _leaves(order, samples)
    ]
    lines += [
        f"warning: the phase from {change.begin * seq_len:,} tokens begins after the end of the run"
        for change in order.changes
        if change.begin >= samples
    ]
    lines += [
        f"warning: {source.name} is read {e:.1f} times; beyond about {EPOCHS_LIKE_NEW} epochs repeated text is worth less and less "
        "(Muennighoff et al. 2023): add text, lower its weight or set data.max_epochs"
        for source, e in zip(order.sources, epochs, strict=True)
        if e > EPOCHS_LIKE_NEW
    ]
    return "\n".join(lines)


def unique_tokens(order: Order, *, steps: int, rows: int, seq_len: int) -> int:
    """Distinct training tokens that a run reads: of each source what it reads, and no more than there is."""
    counts = order.counts(steps * rows)
    return seq_len * sum(min(count, source.blocks) for count, source in zip(counts, order.sources, strict=True))


def _epochs(order: Order, samples: int) -> list[float]:
    return [count / max(source.blocks, 1) for count, source in zip(order.counts(samples), order.sources, strict=True)]


def _leaves(order: Order, samples: int) -> Iterator[tuple[str, int]]:
    """Every source that reaches its cap within the run, and the number of samples until then."""
    moments = [(stretch.begin, stretch.before) for stretch in order.stretches]
    if order.end is not None:
        moments.append((order.end, order.counts(order.end)))
    for s, (source, limit) in enumerate(zip(order.sources, order.limits, strict=True)):
        moment = next((n for n, read in moments if read[s] == limit), None)
        if moment is not None and moment <= samples:
            yield source.name, moment


def _table(columns: Sequence[Sequence[str]]) -> list[str]:
    """Columns as lines: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in columns]
    aligned = [
        [cell.rjust(w) if i else cell.ljust(w) for cell in column] for i, (column, w) in enumerate(zip(columns, widths, strict=True))
    ]
    return ["  ".join(row) for row in zip(*aligned, strict=True)]
